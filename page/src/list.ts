// The list of processes.

import { namespaces, Problem, type Process, type Session } from './api';
import { fill, h, hasSelection } from './dom';
import { age, moment } from './time';
import { Processes } from './watch';

const PHASES = ['Pending', 'Starting', 'Running', 'Paused', 'Stopping', 'Succeeded', 'Failed'];
/** Rows that are drawn at first, and with each further click. */
const STEP = 200;

export interface Filter { namespace: string; phase: string; labels: string; name: string }

export class ListView {
  readonly element: HTMLElement;
  readonly #body = h('tbody');
  readonly #status = h('p', { class: 'hint', role: 'status' });
  readonly #more = h('button', { type: 'button', hidden: true, on: { click: () => { this.#shown += STEP; this.#draw(); } } }, 'Show more');
  readonly #ticking = setInterval(() => this.#draw(), 5000);
  #processes: Processes;
  #shown = STEP;
  #isDrawing = false;

  constructor(readonly session: Session, readonly filter: Filter, readonly changed: (filter: Filter) => void) {
    const names = h('datalist', { id: 'namespaces' });
    // Without the right to list them, the user types the name.
    namespaces().then((found) => fill(names, ...found.map((name) => h('option', { value: name }))), () => {});
    this.element = h('main', {},
      h('h1', {}, 'Processes'),
      h('form', { class: 'filters', role: 'search', on: { submit: (event) => event.preventDefault() } },
        this.#field('Namespace', 'namespace', 'all', { list: 'namespaces' }),
        h('label', {}, 'Phase', this.#phase()),
        this.#field('Labels', 'labels', 'app=web,tier!=test'),
        this.#field('Name', 'name', 'part of a name'), names),
      this.#status,
      h('table', { class: 'processes' },
        h('thead', {}, h('tr', {}, ...['Name', 'Namespace', 'Phase', 'Exit', 'Age', 'Ran', 'Message'].map((title) => h('th', { scope: 'col' }, title)))),
        this.#body),
      this.#more);
    this.#processes = this.#open();
    this.#draw();
  }

  stop(): void {
    clearInterval(this.#ticking);
    this.#processes.stop();
  }

  #field(label: string, key: 'namespace' | 'labels' | 'name', placeholder: string, more: Record<string, string> = {}): HTMLElement {
    const input = h('input', { value: this.filter[key], placeholder, autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', ...more });
    input.addEventListener(key === 'name' ? 'input' : 'change', () => this.#set(key, input.value.trim()));
    return h('label', {}, label, input);
  }

  #phase(): HTMLElement {
    const select = h('select', {}, h('option', { value: '' }, 'all'), ...PHASES.map((phase) => h('option', { selected: phase === this.filter.phase }, phase)));
    select.addEventListener('change', () => this.#set('phase', select.value));
    return select;
  }

  #set(key: keyof Filter, value: string): void {
    this.filter[key] = value;
    this.#shown = STEP;
    this.changed(this.filter);
    if (key === 'namespace' || key === 'labels') {
      this.#processes.stop();
      this.#processes = this.#open();
    }
    this.#draw();
  }

  #open(): Processes {
    return new Processes({ namespace: this.filter.namespace, labelSelector: this.filter.labels }, () => this.#draw());
  }

  #draw(): void {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      if (!hasSelection(this.#body)) this.#drawNow();
    });
  }

  #drawNow(): void {
    const { phase, name } = this.filter;
    const all = [...this.#processes.items.values()].filter((process) =>
      (!phase || phaseOf(process) === phase) && (!name || process.metadata.name.includes(name)));
    all.sort((a, b) => b.metadata.creationTimestamp.localeCompare(a.metadata.creationTimestamp) || a.metadata.name.localeCompare(b.metadata.name));
    const focused = document.activeElement instanceof HTMLAnchorElement ? document.activeElement.getAttribute('href') : null;
    fill(this.#body, ...all.slice(0, this.#shown).map(row));
    if (focused && document.activeElement === document.body) {
      this.#body.querySelector<HTMLAnchorElement>(`a[href="${CSS.escape(focused)}"]`)?.focus();
    }
    this.#more.hidden = all.length <= this.#shown;
    const text = this.#text(all.length);
    if (this.#status.textContent !== text) this.#status.textContent = text;
    this.#status.classList.toggle('problem', this.#processes.problem !== null);
  }

  #text(count: number): string {
    const { problem, isComplete } = this.#processes;
    if (problem) return this.#explain(problem);
    if (!isComplete) return 'Loading …';
    const total = this.#processes.items.size;
    const which = count === total ? '' : ` of ${total.toLocaleString()}`;
    const where = this.filter.namespace ? `in namespace ${this.filter.namespace}` : 'in all namespaces';
    return `${count.toLocaleString()}${which} ${total === 1 ? 'process' : 'processes'} ${where}, newest first. This list is live.`;
  }

  #explain(problem: Problem): string {
    if (problem.status !== 403) return `Not up to date, trying again: ${problem.message}`;
    const hint = this.filter.namespace ? 'The ClusterRole remoteprocess-view allows it.' : 'Enter a namespace in which you may.';
    return `You may not list these processes. ${hint} (${problem.message})`;
  }
}

function row(process: Process): HTMLElement {
  const { metadata, status = {} } = process;
  const cell = (label: string, ...children: (Node | string)[]) => h('td', { 'data-label': label }, ...children);
  return h('tr', {},
    cell('Name', h('a', { href: `#/${metadata.namespace}/${metadata.name}` }, metadata.name)),
    cell('Namespace', metadata.namespace),
    cell('Phase', badge(process)),
    cell('Exit', exitOf(process)),
    cell('Age', h('time', { datetime: metadata.creationTimestamp, title: moment(metadata.creationTimestamp) }, age(metadata.creationTimestamp))),
    cell('Ran', status.duration ?? age(status.startedAt)),
    cell('Message', status.message ?? status.reason ?? ''));
}

export function phaseOf(process: Process): string {
  return process.status?.phase ?? 'Pending';
}

export function exitOf({ status = {} }: Process): string {
  return status.signal ?? (status.exitCode === undefined ? '' : String(status.exitCode));
}

export function badge(process: Process): HTMLElement {
  const phase = phaseOf(process);
  const name = process.metadata.deletionTimestamp ? `${phase}, being deleted` : phase;
  return h('span', { class: `phase ${phase.toLowerCase()}` }, name);
}
