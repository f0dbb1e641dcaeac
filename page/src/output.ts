// Live output: a list that draws only the rows in view.

import { BOLD, DIM, INVERSE, ITALIC, parse, plain, STRIKE, UNDERLINE, visible, type Span, type Style } from './ansi';
import type { Problem } from './api';
import { arrange, h, hasSelection } from './dom';
import { Lines, NOTE, STDERR, STDOUT } from './lines';
import { Rows } from './rows';
import { pause } from './reader';
import { follow, type Data, type End, type Gap, type Sink, type Source } from './stream';
import { clock } from './time';

/** Height of a row in the style sheet. */
const ROW = 20;
/** Browsers do not scroll through more. */
const MAX_HEIGHT = 15_000_000;
/** Rows that are drawn above and below the view. */
const MARGIN = 10;
/** Matches that are counted. */
const MAX_MATCHES = 100_000;
/** Last lines that are read at first. */
const TAIL = 10_000;

export interface Options {
  source: Source;
  /** A byte to show: a deep link. */
  target?: { stream: 'stdout' | 'stderr'; offset: number };
  /** The link to a line. */
  link(stream: string, offset: number, cursor: string): string;
  /** Opens the output from its beginning. */
  all: string | null;
}

export class OutputView implements Sink {
  readonly element: HTMLElement;
  readonly #lines = new Lines();
  readonly #rows = new Rows(this.#lines);
  readonly #stopped = new AbortController();
  readonly #space = h('div', { class: 'space' });
  readonly #list = h('div', { class: 'rows' });
  readonly #view = h('div', { class: 'view', tabindex: 0, role: 'region', 'aria-label': 'Output', 'aria-describedby': 'output-keys' }, this.#space, this.#list);
  readonly #status = h('span', { class: 'status', role: 'status' });
  readonly #more = h('button', { class: 'more', type: 'button', hidden: true, on: { click: () => this.#toEnd() } });
  readonly #search = h('input', { type: 'search', placeholder: 'Search', 'aria-label': 'Search in the output', autocomplete: 'off', spellcheck: 'false' });
  readonly #count = h('span', { class: 'count', role: 'status' });
  readonly #ruler = h('span', { class: 'ruler', 'aria-hidden': 'true' }, '0'.repeat(100));
  #isFollowing = true;
  #isEnded = false;
  #seen = 0;
  #lastTop = 0;
  #isDrawing = false;
  #needle: RegExp | null = null;
  #matches: number[] = [];
  #match = -1;
  #scanned = 0;
  /** A step that waits for the first match. */
  #wanted: 1 | -1 | 0 = 0;
  #isScanning = false;
  #target: Options['target'];
  #targetLine = -1;
  #selected = '';
  #drawn = new Map<string, HTMLElement>();

  constructor(readonly options: Options) {
    this.#target = options.target;
    this.#isFollowing = !options.target;
    const wrap = toggle('Wrap', 'w', localStorage.getItem('wrap') === 'true', (is) => {
      localStorage.setItem('wrap', String(is));
      this.#view.classList.toggle('wrap', is);
      this.#resize();
    });
    const times = toggle('Times', 't', localStorage.getItem('times') === 'true', (is) => {
      localStorage.setItem('times', String(is));
      this.#view.classList.toggle('times', is);
      this.#resize();
    });
    const bar = h('div', { class: 'bar' },
      h('form', { class: 'search', role: 'search', on: { submit: (event) => { event.preventDefault(); this.#step(1); } } },
        this.#search, this.#count,
        h('button', { type: 'button', 'aria-label': 'Previous match', on: { click: () => this.#step(-1) } }, '↑'),
        h('button', { type: 'submit', 'aria-label': 'Next match' }, '↓')),
      wrap, times,
      options.all && h('a', { class: 'button', href: options.all }, 'From the beginning'),
      this.#status);
    this.element = h('div', { class: 'output' }, bar, h('div', { class: 'frame' }, this.#view, this.#more, this.#ruler),
      h('p', { id: 'output-keys', class: 'hint' }, 'With the output in focus: / searches, f follows, w wraps, t shows times, l makes a link to the match or the first line in view, as a click on ¶ does.'));
    for (const button of [wrap, times]) if (button.getAttribute('aria-pressed') === 'true') this.#view.classList.add(button.dataset['name'] ?? '');
    this.#listen(wrap, times);
    void this.#run();
  }

  stop(): void {
    this.#stopped.abort();
  }

  #listen(wrap: HTMLElement, times: HTMLElement): void {
    this.#view.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    this.#view.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const keys: Record<string, () => void> = {
        '/': () => this.#search.focus(), f: () => this.#toEnd(), w: () => wrap.click(), t: () => times.click(),
        n: () => this.#step(1), N: () => this.#step(-1), l: () => this.#select(this.#matches[this.#match] ?? this.#first()),
        Home: () => { this.#isFollowing = false; this.#view.scrollTop = 0; }, End: () => this.#toEnd(),
      };
      const action = keys[event.key];
      if (!action) return;
      event.preventDefault();
      action();
    });
    this.#search.addEventListener('input', () => this.#find());
    this.#search.addEventListener('keydown', (event) => {
      if (event.key === 'Enter') {
        event.preventDefault();
        this.#step(event.shiftKey ? -1 : 1);
      } else if (event.key === 'Escape') this.#view.focus();
    });
    const watch = new ResizeObserver(() => this.#resize());
    watch.observe(this.#view);
    this.#stopped.signal.addEventListener('abort', () => watch.disconnect());
  }

  async #run(): Promise<void> {
    const { source } = this.options;
    this.state('Connecting');
    await follow(source.from === undefined && !this.options.target ? { ...source, tail: TAIL } : source, this, this.#stopped.signal);
  }

  // What the stream tells.

  data(record: Data, before: string): void {
    this.#lines.data(record, before);
    this.#changed();
  }

  gap(record: Gap, before: string): void {
    this.#lines.gap(record, before);
    this.#changed();
  }

  end(record: End): void {
    this.#isEnded = true;
    const how = record.outcome === 'signal' ? `signal ${record.signal}` : record.exitCode !== undefined ? `exit code ${record.exitCode}` : record.reason ?? 'not known';
    this.#lines.note(`End of the output: ${how}${record.sealed ? '' : '. It is not confirmed that all of it is stored'}`);
    this.#say('ended', 'Ended');
    this.#changed();
  }

  state(text: string, problem?: Problem): void {
    if (problem) {
      const rule = problem.rule && `Missing rule: ${problem.rule.verbs.join(', ')} ${problem.rule.resources.join(', ')}`;
      this.#lines.note([text, rule].filter(Boolean).join('. '));
      this.#say('failed', 'Stopped');
      this.#changed();
    } else if (!this.#isEnded) this.#say(text ? 'waiting' : 'live', text || 'Live');
  }

  #say(kind: string, text: string): void {
    if (this.#status.textContent === text) return;
    this.#status.className = `status ${kind}`;
    this.#status.textContent = text;
  }

  #changed(): void {
    if (this.#target && this.#targetLine < 0) this.#goToTarget();
    if (this.#needle) void this.#scan();
    this.#draw();
  }

  #goToTarget(): void {
    const { stream, offset } = this.#target as NonNullable<Options['target']>;
    const line = this.#lines.find(stream === 'stdout' ? STDOUT : STDERR, offset);
    if (line < 0) return;
    this.#targetLine = line;
    requestAnimationFrame(() => this.#show(line));
  }

  // Drawing.

  #resize(): void {
    const isWrapped = this.#view.classList.contains('wrap');
    const anchor = this.#first();
    const text = this.#list.querySelector('.text');
    const width = text?.clientWidth ?? this.#view.clientWidth - 40;
    const letter = this.#ruler.getBoundingClientRect().width / 100 || 8;
    this.#rows.columns = isWrapped ? Math.max(10, Math.floor(width / letter)) : 0;
    if (!this.#isFollowing) this.#scrollTo(this.#rows.top(anchor));
    this.#draw();
  }

  /** How many pixels of the scroll bar a row has. */
  get #scale(): number {
    return Math.min(ROW, MAX_HEIGHT / Math.max(1, this.#rows.total));
  }

  #first(): number {
    return this.#rows.at(Math.floor(this.#view.scrollTop / this.#scale)).line;
  }

  #scrollTo(row: number): void {
    this.#view.scrollTop = row * this.#scale;
  }

  #scrolled(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.#view;
    if (scrollTop + clientHeight >= scrollHeight - ROW / 2) this.#isFollowing = true;
    else if (scrollTop < this.#lastTop - 1) this.#isFollowing = false;
    this.#lastTop = scrollTop;
    this.#draw();
  }

  #toEnd(): void {
    this.#isFollowing = true;
    this.#draw();
    this.#view.focus();
  }

  #draw(): void {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    // A window in the background gets no frames, and needs none.
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      if (!this.#stopped.signal.aborted) this.#drawNow();
    });
  }

  #drawNow(): void {
    const lines = this.#lines;
    const scale = this.#scale;
    const height = Math.ceil(this.#rows.total * scale);
    this.#space.style.height = `${Math.max(height, 1)}px`;
    // Text that is being selected stays where it is.
    if (this.#isFollowing && !hasSelection(this.#list)) this.#view.scrollTop = this.#view.scrollHeight;
    const top = (this.#lastTop = this.#view.scrollTop);
    const visibleRows = Math.ceil(this.#view.clientHeight / ROW);
    const lastRow = Math.max(0, this.#rows.total - visibleRows);
    const isAtEnd = top + this.#view.clientHeight >= height - 1;
    const row = isAtEnd && scale < ROW ? lastRow : Math.min(Math.floor(top / scale), Math.max(lastRow, 0));
    const { line } = this.#rows.at(Math.max(0, row - MARGIN));
    const until = Math.min(lines.length, line + visibleRows + 2 * MARGIN + (this.#rows.columns ? MARGIN : 0));
    const drawn = new Map<string, HTMLElement>();
    for (let index = line; index < until; index++) {
      const key = this.#key(index);
      drawn.set(key, this.#drawn.get(key) ?? this.#line(index));
    }
    arrange(this.#list, [...drawn.values()]);
    this.#drawn = drawn;
    // At full scale each row has its place; below it, the first row in view is at the edge.
    const y = scale === ROW ? this.#rows.top(line) * ROW : top - (row - this.#rows.top(line)) * ROW;
    this.#list.style.transform = `translateY(${y}px)`;
    this.#countNew();
  }

  #countNew(): void {
    const total = this.#lines.length + this.#lines.dropped;
    if (this.#isFollowing) this.#seen = total;
    const fresh = total - this.#seen;
    this.#more.hidden = this.#isFollowing || fresh === 0;
    const text = `↓ ${fresh.toLocaleString()} new ${fresh === 1 ? 'line' : 'lines'}`;
    if (this.#more.textContent !== text) this.#more.textContent = text;
  }

  /** What the element of a line is made of. */
  #key(index: number): string {
    const lines = this.#lines;
    const isCurrent = this.#matches[this.#match] === index;
    return [index + lines.dropped, lines.text(index).length, this.#needle?.source, isCurrent, this.#isTarget(index)].join(' ');
  }

  #isTarget(index: number): boolean {
    return index === this.#targetLine || (this.#selected !== '' && this.#selected === this.#name(index));
  }

  /** The stream and the offset of a line. */
  #name(index: number): string {
    return `${this.#lines.kind(index) === STDERR ? 'stderr' : 'stdout'}:${this.#lines.offset(index)}`;
  }

  #line(index: number): HTMLElement {
    const lines = this.#lines;
    const kind = lines.kind(index);
    const spans = kind === NOTE ? [{ text: lines.text(index), style: { flags: 0 } }] : parse(visible(lines.text(index)), lines.style(index)).spans;
    const text = h('span', { class: 'text' });
    text.append(...this.#marked(spans, index));
    if (kind === NOTE) return h('div', { class: 'row note' }, h('span', { class: 'gutter' }), text);
    const stream = kind === STDERR ? 'stderr' : 'stdout';
    const link = h('a', {
      class: 'gutter', href: this.options.link(stream, lines.offset(index), lines.cursor(index)), tabindex: -1,
      'aria-label': `${kind === STDERR ? 'err' : '¶'}: link to the line at offset ${lines.offset(index)} of ${stream}`,
      on: { click: (event) => this.#clicked(event, index) },
    }, kind === STDERR ? 'err' : '¶');
    const time = lines.time(index);
    return h('div', { class: `row ${stream}${this.#isTarget(index) ? ' target' : ''}` }, link,
      h('span', { class: 'time' }, Number.isNaN(time) ? '' : clock(time)), text);
  }

  #clicked(event: MouseEvent, index: number): void {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.#select(index);
  }

  /** Puts the link to a line into the address bar, and keeps what is on the screen. */
  #select(index: number): void {
    if (this.#lines.kind(index) === NOTE) return;
    const stream = this.#lines.kind(index) === STDERR ? 'stderr' : 'stdout';
    this.#selected = this.#name(index);
    this.#targetLine = -1;
    this.#target = undefined;
    history.replaceState(null, '', this.options.link(stream, this.#lines.offset(index), this.#lines.cursor(index)));
    this.#draw();
  }

  /** The spans as elements, with the matches of the search marked. */
  #marked(spans: Span[], line: number): Node[] {
    const ranges: [number, number][] = [];
    if (this.#needle) {
      const whole = spans.map((span) => span.text).join('');
      for (const found of whole.matchAll(this.#needle)) ranges.push([found.index, found.index + found[0].length]);
    }
    const isCurrent = this.#matches[this.#match] === line;
    const nodes: Node[] = [];
    let at = 0;
    for (const { text, style } of spans) {
      let from = 0;
      while (from < text.length) {
        while (ranges[0] && ranges[0][1] <= at + from) ranges.shift();
        const [begin, end] = ranges[0] ?? [Infinity, Infinity];
        const isMatch = begin <= at + from;
        const to = Math.min(text.length, (isMatch ? end : begin) - at);
        const node = styled(text.slice(from, to), style);
        nodes.push(isMatch ? h('mark', { class: isCurrent ? 'current' : null }, node) : node);
        from = to;
      }
      at += text.length;
    }
    return nodes;
  }

  // Search.

  #find(): void {
    const text = this.#search.value;
    this.#needle = text ? new RegExp(text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&'), 'gi') : null;
    [this.#matches, this.#match, this.#scanned, this.#wanted] = [[], -1, 0, 0];
    void this.#scan();
    this.#draw();
  }

  /** Looks for matches in lines that were not looked at, in slices. */
  async #scan(): Promise<void> {
    if (this.#isScanning) return;
    this.#isScanning = true;
    let dropped = this.#lines.dropped;
    while (this.#needle && this.#scanned < this.#lines.length && this.#matches.length < MAX_MATCHES) {
      const until = Math.min(this.#lines.length, this.#scanned + 20_000);
      for (; this.#scanned < until; this.#scanned++) {
        this.#needle.lastIndex = 0;
        if (this.#needle.test(plain(visible(this.#lines.text(this.#scanned))))) this.#matches.push(this.#scanned);
      }
      if (this.#wanted) this.#step(this.#wanted);
      this.#showCount();
      await pause(0);
      if (dropped !== this.#lines.dropped) {
        dropped = this.#lines.dropped;
        [this.#matches, this.#match, this.#scanned] = [[], -1, 0];
      }
    }
    this.#isScanning = false;
    this.#showCount();
  }

  #showCount(): void {
    const total = this.#matches.length;
    const shown = total >= MAX_MATCHES ? `${total.toLocaleString()}+` : total.toLocaleString();
    const text = !this.#needle ? '' : this.#match >= 0 ? `${(this.#match + 1).toLocaleString()}/${shown}` : `${shown} found`;
    if (this.#count.textContent !== text) this.#count.textContent = text;
  }

  /** The next match from what is on the screen, or the one after the current. */
  #step(by: 1 | -1): void {
    const total = this.#matches.length;
    this.#wanted = total === 0 ? by : 0;
    if (!total) return;
    if (this.#match < 0) {
      const first = this.#first();
      const next = this.#matches.findIndex((line) => line >= first);
      this.#match = by > 0 ? Math.max(0, next) : (next < 0 ? total : next) - 1;
    } else this.#match += by;
    this.#match = (this.#match + total) % total;
    this.#show(this.#matches[this.#match] ?? 0);
    this.#showCount();
  }

  /** Scrolls to a line, and does not follow from then on. */
  #show(line: number): void {
    this.#isFollowing = false;
    this.#space.style.height = `${Math.max(Math.ceil(this.#rows.total * this.#scale), 1)}px`;
    const above = Math.floor(this.#view.clientHeight / ROW / 3);
    this.#scrollTo(Math.max(0, this.#rows.top(line) - above));
    this.#lastTop = this.#view.scrollTop;
    this.#draw();
  }
}

function toggle(label: string, key: string, isOn: boolean, changed: (is: boolean) => void): HTMLButtonElement {
  const button = h('button', { type: 'button', 'aria-pressed': String(isOn), title: `${label} (${key})`, 'data-name': label.toLowerCase() }, label);
  button.addEventListener('click', () => {
    const is = button.getAttribute('aria-pressed') !== 'true';
    button.setAttribute('aria-pressed', String(is));
    changed(is);
  });
  return button;
}

const FLAGS: [number, string][] = [[BOLD, 'bold'], [DIM, 'dim'], [ITALIC, 'italic'], [UNDERLINE, 'underline'], [INVERSE, 'inverse'], [STRIKE, 'strike']];

function styled(text: string, style: Style): Node {
  if (style.flags === 0 && style.color === undefined && style.background === undefined) return document.createTextNode(text);
  const names = FLAGS.filter(([flag]) => style.flags & flag).map(([, name]) => name);
  if (typeof style.color === 'number') names.push(`f${style.color}`);
  if (typeof style.background === 'number') names.push(`b${style.background}`);
  const span = h('span', { class: names.join(' ') || null }, text);
  // Mixed with the color of the theme, it can be read on both backgrounds.
  if (typeof style.color === 'string') span.style.color = `color-mix(in oklab, ${style.color} 50%, var(--text))`;
  if (typeof style.background === 'string') span.style.backgroundColor = style.background;
  return span;
}
