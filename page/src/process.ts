// One process: its state, its timeline, its output.

import { Actions } from './actions';
import { events, Problem, route, type Attempt, type KubeEvent, type Process } from './api';
import { fill, h } from './dom';
import { badge, exitOf } from './list';
import { OutputView, type Options } from './output';
import { steps } from './timeline';
import type { TerminalView } from './terminal';
import { age, bytes, duration, moment } from './time';
import { Processes } from './watch';

export interface Place { namespace: string; name: string; attempt?: number; from?: string; at?: { stream: 'stdout' | 'stderr'; offset: number } }

/** The address of a place in this page. */
export function address({ namespace, name, attempt, from, at }: Place): string {
  const query = new URLSearchParams();
  if (attempt) query.set('attempt', String(attempt));
  if (from !== undefined) query.set('from', from);
  if (at) query.set('at', `${at.stream}:${at.offset}`);
  const text = query.toString();
  return `#/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}${text && `?${text}`}`;
}

export class ProcessView {
  readonly element: HTMLElement;
  readonly #title = h('h1', { tabindex: -1 });
  readonly #head = h('div', { class: 'summary' });
  readonly #problem = h('p', { class: 'problem', role: 'status', hidden: true });
  readonly #timeline = h('ol', { class: 'timeline', 'aria-label': 'Timeline' });
  readonly #details = h('div', { class: 'details' });
  readonly #terminalSlot = h('div');
  readonly #outputSlot = h('section', { 'aria-label': 'Output of the process' });
  readonly #downloads = h('p', { class: 'downloads' });
  readonly #actions: Actions;
  readonly #processes: Processes;
  readonly #ticking = setInterval(() => this.#tick(), 1000);
  readonly #terminals = new Set<TerminalView>();
  #isStopped = false;
  #process: Process | null = null;
  #output: OutputView | null = null;
  #attempt = 0;
  #events: KubeEvent[] | Problem = [];
  #eventsOf = '';

  constructor(readonly place: Place) {
    const { namespace, name } = place;
    this.#title.append(name);
    this.#actions = new Actions(namespace, (process, command) => void this.#openTerminal(process, command));
    this.element = h('main', {},
      h('p', { class: 'path' }, h('a', { href: '#/' }, 'Processes'), ` / ${namespace}`),
      this.#title, this.#problem, this.#head, this.#actions.element, this.#terminalSlot, this.#timeline, this.#outputSlot, this.#downloads, this.#details);
    this.#processes = new Processes({ namespace, fieldSelector: `metadata.name=${name}` }, () => this.#changed());
  }

  stop(): void {
    clearInterval(this.#ticking);
    this.#processes.stop();
    this.#output?.stop();
    this.#isStopped = true;
    for (const terminal of this.#terminals) terminal.stop();
  }

  /** Terminals are read only when one is opened. */
  async #openTerminal(process: Process, command?: string[]): Promise<void> {
    const { TerminalView } = await import('./terminal');
    if (this.#isStopped) return;
    const terminal = new TerminalView({
      process, ...(command ? { command } : {}),
      closed: () => {
        this.#terminals.delete(terminal);
        terminal.stop();
        terminal.element.remove();
        // A process that has ended has no buttons.
        (this.#actions.element.querySelector('button') ?? this.#title).focus();
      },
    });
    this.#terminals.add(terminal);
    this.#terminalSlot.append(terminal.element);
  }

  #changed(): void {
    const { problem, isComplete, items } = this.#processes;
    const found = items.values().next().value as Process | undefined;
    const isGone = isComplete && !found;
    const text = problem ? (problem.status === 403 ? problem.message : `Not up to date, trying again: ${problem.message}`)
      : isGone ? 'This process was deleted. What you see is the last that was known.' : '';
    this.#problem.hidden = !text;
    if (this.#problem.textContent !== text) this.#problem.textContent = text;
    if (isGone && !this.#process) this.#problem.textContent = 'There is no such process.';
    if (!found) return;
    this.#process = found;
    this.#drawHead(found);
    this.#actions.update(found);
    this.#tick();
    this.#drawDetails(found);
    this.#open(found);
    void this.#readEvents(found);
  }

  #drawHead(process: Process): void {
    const { spec, status = {} } = process;
    const exit = exitOf(process);
    const command = [...(spec.command ?? []), ...(spec.args ?? [])].join(' ');
    fill(this.#head,
      h('p', {}, badge(process), exit && h('span', { class: 'exit' }, status.signal ? exit : `exit code ${exit}`), h('span', { class: 'message' }, status.message ?? status.reason ?? '')),
      h('p', { class: 'command' }, h('code', {}, command || '(the command of the image)'), h('span', { class: 'hint' }, ` ${spec.image ?? ''}`)));
  }

  #tick(): void {
    if (!this.#process) return;
    const found = steps(this.#process, Date.now());
    fill(this.#timeline, ...found.map(({ name, at, took, detail }) => h('li', {},
      h('span', { class: 'step' }, name),
      h('time', { datetime: at, title: moment(at) }, new Date(at).toLocaleTimeString()),
      detail && h('span', { class: 'detail', title: detail }, detail),
      took !== null && h('span', { class: 'took' }, duration(took)))));
  }

  /** The output of the attempt in the address, or of the current one. */
  #open(process: Process): void {
    const attempt = this.place.attempt ?? process.status?.attempt ?? 0;
    if (!attempt || attempt === this.#attempt) return;
    this.#attempt = attempt;
    this.#output?.stop();
    const { namespace, name, uid } = process.metadata;
    const { from, at } = this.place;
    const source = { namespace, name, uid, attempt, ...(from === undefined ? {} : { from }) };
    const link: Options['link'] = (stream, offset, cursor) =>
      address({ namespace, name, attempt, from: cursor, at: { stream: stream as 'stdout' | 'stderr', offset } });
    const all = from === '' && !at ? null : address({ namespace, name, attempt, from: '' });
    this.#output = new OutputView({ source, link, all, ...(at ? { target: at } : {}) });
    fill(this.#outputSlot, h('h2', {}, `Output${(process.status?.attempts?.length ?? 0) > 1 ? ` of attempt ${attempt}` : ''}`), this.#output.element);
    this.#drawDownloads(namespace, name, attempt);
  }

  #drawDownloads(namespace: string, name: string, attempt: number): void {
    const link = (stream: string) => h('a', {
      download: `${name}-${attempt}.${stream}`, href: route(namespace, name, `output?${new URLSearchParams({ stream, attempt: String(attempt) })}`),
    }, stream);
    fill(this.#downloads, 'Download ', link('stdout'), ' or ', link('stderr'), '. Bytes as the program wrote them; a download that is not complete fails.');
  }

  #drawDetails(process: Process): void {
    const { status = {}, metadata } = process;
    const labels = Object.entries(metadata.labels ?? {});
    fill(this.#details,
      section('Attempts', attempts(process, this.#attempt)),
      section('Conditions', table(['Type', 'Status', 'Reason', 'Since', 'Message'],
        (status.conditions ?? []).map(({ type, status: is, reason, lastTransitionTime, message }) => [type, is, reason, age(lastTransitionTime), message]))),
      section('Events', this.#events instanceof Problem
        ? h('p', { class: 'hint' }, `You may not see the Events: ${this.#events.message}`)
        : table(['Age', 'Type', 'Reason', 'Message'], this.#events.map((event) =>
          [age(timeOf(event)), event.type ?? '', event.reason ?? '', `${event.message ?? event.note ?? ''}${count(event)}`]))),
      labels.length > 0 && section('Labels', h('p', {}, labels.map(([key, value]) => `${key}=${value}`).join('  '))));
  }

  async #readEvents(process: Process): Promise<void> {
    const version = `${process.metadata.uid} ${process.metadata.resourceVersion}`;
    if (version === this.#eventsOf) return;
    this.#eventsOf = version;
    try {
      this.#events = (await events(process)).sort((a, b) => timeOf(b).localeCompare(timeOf(a)));
    } catch (error) {
      this.#events = error instanceof Problem ? error : new Problem(0, String(error));
    }
    if (this.#process) this.#drawDetails(this.#process);
  }
}

function attempts(process: Process, current: number): HTMLElement {
  const list = process.status?.attempts ?? [];
  const { namespace, name } = process.metadata;
  const size = ({ output }: Attempt) => output ? bytes((output.stdout?.bytes ?? 0) + (output.stderr?.bytes ?? 0)) : '';
  const ran = ({ startedAt, finishedAt }: Attempt) => startedAt ? duration((finishedAt ? Date.parse(finishedAt) : Date.now()) - Date.parse(startedAt)) : '';
  return table(['Attempt', 'Began', 'Ran', 'End', 'Output', 'Pod', 'Node'], list.map((attempt) => [
    attempt.number === current ? String(attempt.number) : h('a', { href: address({ namespace, name, attempt: attempt.number }) }, attempt.number),
    age(attempt.begunAt), ran(attempt), [attempt.exit?.reason, attempt.exit?.signal ?? attempt.exit?.code].filter((part) => part !== undefined).join(' '),
    size(attempt), attempt.podName ?? '', attempt.node ?? '']));
}

function section(title: string, content: HTMLElement): HTMLElement {
  return h('section', {}, h('h2', {}, title), content);
}

function table(titles: string[], rows: (string | Node)[][]): HTMLElement {
  if (rows.length === 0) return h('p', { class: 'hint' }, 'None');
  return h('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': titles.join(', ') }, h('table', {},
    h('thead', {}, h('tr', {}, ...titles.map((title) => h('th', { scope: 'col' }, title)))),
    h('tbody', {}, ...rows.map((row) => h('tr', {}, ...row.map((cell) => h('td', {}, cell)))))));
}

function timeOf(event: KubeEvent): string {
  return event.series?.lastObservedTime ?? event.lastTimestamp ?? event.eventTime ?? event.metadata.creationTimestamp;
}

function count(event: KubeEvent): string {
  const times = event.series?.count ?? event.count ?? 1;
  return times > 1 ? ` (${times} times)` : '';
}
