// The output of one attempt, over any number of connections: each continues behind the last record.

import { ask, Problem, route } from './api';
import { Backoff, linesOf, untilShown, whileShown } from './reader';

export interface Data { type: 'data'; stream: 'stdout' | 'stderr'; offset: number; time?: string; text?: string; base64?: string; cursor: string }
export interface Gap { type: 'gap'; stream: 'stdout' | 'stderr'; from: number; to?: number; reason: string; cursor: string }
export interface End {
  type: 'end'; running: boolean; outcome?: string; exitCode?: number; signal?: string; reason?: string; message?: string;
  sealed?: boolean; cursor: string;
}
type Record_ = Data | Gap | End
  | { type: 'position'; cursor?: string }
  | { type: 'state'; phase: string; reason: string; message: string }
  | { type: 'error'; problem: { status: number; detail: string }; cursor?: string };

export interface Source { namespace: string; name: string; uid: string; attempt?: number; from?: string; tail?: number }

/** Who is told. */
export interface Sink {
  data(record: Data, before: string): void;
  gap(record: Gap, before: string): void;
  end(record: End): void;
  /** What is going on: `''` when records arrive. A problem that is not temporary is the end. */
  state(text: string, problem?: Problem): void;
}

/** Records come at least each 10 s. */
const SILENCE = 35_000;

/** Follows to the end. */
export async function follow(source: Source, sink: Sink, signal: AbortSignal): Promise<void> {
  const backoff = new Backoff();
  let cursor = source.from ?? '';
  while (!signal.aborted) {
    try {
      await untilShown(signal);
      await whileShown(signal, (shown) => read(source, cursor, sink, shown, () => backoff.reset()));
      return;
    } catch (error) {
      if (signal.aborted) return;
      const broken = error instanceof Broken ? error : new Broken(cursor, error);
      cursor = broken.cursor;
      const { problem } = broken;
      if (!problem.isTemporary) return sink.state(problem.message, problem);
      sink.state(`Reconnecting: ${problem.message}`);
      await backoff.wait(signal);
    }
  }
}

/** A connection that ended before the output did, and where the next one begins. */
class Broken extends Error {
  readonly problem: Problem;

  constructor(readonly cursor: string, cause: unknown) {
    super();
    this.problem = cause instanceof Problem ? cause : new Problem(0, 'the connection broke');
  }
}

function path(source: Source, cursor: string): string {
  const query = new URLSearchParams({ follow: 'true' });
  if (source.attempt) query.set('attempt', String(source.attempt));
  if (cursor) query.set('offset', cursor);
  else if (source.tail) query.set('tail', String(source.tail));
  return route(source.namespace, source.name, `output?${query}`);
}

async function read(source: Source, from: string, sink: Sink, signal: AbortSignal, heard: () => void): Promise<void> {
  let cursor = from;
  const silence = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const rearm = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE);
  };
  rearm();
  try {
    const either = AbortSignal.any([signal, silence.signal]);
    const response = await ask(path(source, from), { headers: { Accept: 'application/x-ndjson' }, signal: either });
    sink.state('');
    for await (const line of linesOf(response, rearm)) {
      const record = JSON.parse(line) as Record_;
      if (record.type === 'error') throw new Problem(record.problem.status === 401 ? 0 : record.problem.status, record.problem.detail);
      heard();
      if (record.type === 'state') sink.state(record.message || record.reason || record.phase);
      else if (record.type === 'position') sink.state('');
      else if (record.type === 'data') sink.data(record, cursor);
      else if (record.type === 'gap') sink.gap(record, cursor);
      else {
        sink.end(record);
        return;
      }
      cursor = ('cursor' in record && record.cursor) || cursor;
    }
    throw new Problem(0, 'the connection broke');
  } catch (error) {
    throw new Broken(cursor, error);
  } finally {
    clearTimeout(timer);
  }
}
