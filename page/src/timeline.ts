// The life of the current attempt as steps.

import type { Process } from './api';

export interface Step { name: string; at: string; /** Milliseconds until the next step; `null`: it goes on. */ took: number | null; detail?: string }

/** The steps that have happened, oldest first. */
export function steps(process: Process, now: number): Step[] {
  const status = process.status ?? {};
  const attempt = (status.attempts ?? []).find(({ number }) => number === status.attempt) ?? status.attempts?.at(-1);
  const condition = (type: string) => status.conditions?.find((found) => found.type === type && found.status === 'True');
  const known: { name: string; at: string | undefined; detail?: string | undefined }[] = [
    { name: 'Created', at: process.metadata.creationTimestamp },
    { name: attempt && attempt.number > 1 ? `Attempt ${attempt.number}` : 'Pod', at: attempt?.begunAt, detail: attempt?.podName },
    { name: 'Scheduled', at: attempt?.node ? condition('Scheduled')?.lastTransitionTime : undefined, detail: attempt?.node },
    { name: 'Granted', at: attempt?.grantedAt },
    { name: 'Started', at: attempt?.startedAt },
    { name: 'Paused', at: attempt?.pausedAt },
    { name: 'Ended', at: attempt?.finishedAt ?? status.finishedAt, detail: attempt?.exit?.reason ?? status.reason },
    { name: 'Output sealed', at: condition('OutputSealed')?.lastTransitionTime },
  ];
  const found = known.filter((step): step is { name: string; at: string; detail?: string } => step.at !== undefined);
  // Times of the API server have whole seconds.
  found.sort((a, b) => Math.floor(Date.parse(a.at) / 1000) - Math.floor(Date.parse(b.at) / 1000));
  const isOver = status.phase === 'Succeeded' || status.phase === 'Failed';
  return found.map((step, index) => {
    const next = found[index + 1];
    const until = next ? Date.parse(next.at) : isOver ? null : now;
    return { ...step, took: until === null ? null : Math.max(0, until - Date.parse(step.at)) };
  });
}
