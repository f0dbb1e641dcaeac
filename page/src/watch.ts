// Processes, kept up to date: a list, then a watch from its version on.

import { ask, objects, Problem, type Process } from './api';
import { Backoff, linesOf, untilShown, whileShown } from './reader';

const PAGE = 500;

export interface Selection { namespace: string; labelSelector?: string; fieldSelector?: string }

type Change = { type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK'; object: Process } | { type: 'ERROR'; object: { code?: number; message?: string } };

/** The processes of a selection. */
export class Processes {
  readonly items = new Map<string, Process>();
  /** Whether the first list is complete. */
  isComplete = false;
  /** Why the list is not up to date. */
  problem: Problem | null = null;
  readonly #stopped = new AbortController();
  #version = '';

  constructor(readonly selection: Selection, readonly changed: () => void) {
    void this.#run();
  }

  stop(): void {
    this.#stopped.abort();
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopped;
    const backoff = new Backoff();
    while (!signal.aborted) {
      try {
        await untilShown(signal);
        await whileShown(signal, async (shown) => {
          if (!this.#version) await this.#list(shown);
          backoff.reset();
          this.#report(null);
          await this.#watch(shown);
        });
      } catch (error) {
        if (signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem(0, String(error));
        if (problem.status === 410) this.#version = '';
        else this.#report(problem);
        if (problem.status === 400) return;
        await backoff.wait(signal);
      }
    }
  }

  #report(problem: Problem | null): void {
    this.problem = problem;
    this.changed();
  }

  #query(more: Record<string, string>): string {
    const query = new URLSearchParams(more);
    if (this.selection.labelSelector) query.set('labelSelector', this.selection.labelSelector);
    if (this.selection.fieldSelector) query.set('fieldSelector', this.selection.fieldSelector);
    return `${objects(this.selection.namespace)}?${query}`;
  }

  async #list(signal: AbortSignal): Promise<void> {
    const found = new Map<string, Process>();
    let next = '';
    do {
      const more: Record<string, string> = next ? { limit: `${PAGE}`, continue: next } : { limit: `${PAGE}` };
      const page = await (await ask(this.#query(more), { signal })).json();
      for (const item of page.items as Process[]) found.set(item.metadata.uid, item);
      this.#version = page.metadata.resourceVersion;
      next = page.metadata.continue ?? '';
    } while (next);
    this.items.clear();
    for (const [uid, item] of found) this.items.set(uid, item);
    this.isComplete = true;
  }

  async #watch(signal: AbortSignal): Promise<void> {
    const query = this.#query({ watch: 'true', resourceVersion: this.#version, allowWatchBookmarks: 'true', timeoutSeconds: '240' });
    const response = await ask(query, { signal });
    for await (const line of linesOf(response)) {
      const change = JSON.parse(line) as Change;
      if (change.type === 'ERROR') {
        throw new Problem(change.object.code ?? 410, change.object.message ?? 'the watch has failed');
      }
      this.#version = change.object.metadata.resourceVersion;
      if (change.type === 'BOOKMARK') continue;
      const { uid } = change.object.metadata;
      if (change.type === 'DELETED') this.items.delete(uid);
      else this.items.set(uid, change.object);
      this.changed();
    }
  }
}
