// The frame of the page, and which view an address has.

import { session, type Session } from './api';
import { fill, h } from './dom';
import { ListView, type Filter } from './list';
import { ProcessView, type Place } from './process';

interface View { element: HTMLElement; stop(): void }

let view: View | null = null;
const slot = h('div');

function listAddress({ namespace, phase, labels, name }: Filter): string {
  const query = new URLSearchParams({ namespace });
  for (const [key, value] of Object.entries({ phase, labels, name })) if (value) query.set(key, value);
  return `#/?${query}`;
}

function filterOf(query: URLSearchParams, known: Session): Filter {
  const value = (key: string) => query.get(key) ?? '';
  return { namespace: query.get('namespace') ?? known.namespace, phase: value('phase'), labels: value('labels'), name: value('name') };
}

function placeOf(namespace: string, name: string, query: URLSearchParams): Place {
  const attempt = Number(query.get('attempt'));
  const from = query.get('from');
  const at = /^(stdout|stderr):(\d+)$/.exec(query.get('at') ?? '');
  return {
    namespace, name,
    ...(attempt > 0 ? { attempt } : {}),
    ...(from === null ? {} : { from }),
    ...(at ? { at: { stream: at[1] as 'stdout' | 'stderr', offset: Number(at[2]) } } : {}),
  };
}

function show(known: Session): void {
  const [path = '', query = ''] = location.hash.slice(1).split('?', 2);
  const [, namespace, name] = path.split('/').map(decodeURIComponent);
  const parameters = new URLSearchParams(query);
  view?.stop();
  view = namespace && name
    ? new ProcessView(placeOf(namespace, name, parameters))
    : new ListView(known, filterOf(parameters, known), (filter) => history.replaceState(null, '', listAddress(filter)));
  document.title = namespace && name ? `${name} · rproc` : 'Processes · rproc';
  fill(slot, view.element);
  window.scrollTo(0, 0);
}

async function begin(): Promise<void> {
  const known = await session();
  fill(document.body,
    h('header', {},
      h('a', { class: 'logo', href: '#/' }, 'rproc'),
      h('span', { class: 'who' }, known.user && h('span', {}, known.user), h('span', { class: 'hint' }, known.cluster.replace(/^https?:\/\//, '').replace(/\/$/, '')))),
    slot,
    h('footer', { class: 'hint' }, h('a', { href: '/licenses.txt' }, 'Licenses of what this page contains')));
  window.addEventListener('hashchange', () => show(known));
  show(known);
}

begin().catch((error: unknown) => {
  const text = error instanceof Error ? error.message : String(error);
  fill(document.body, h('main', {}, h('h1', {}, 'rproc'), h('p', { class: 'problem', role: 'alert' }, text)));
});
