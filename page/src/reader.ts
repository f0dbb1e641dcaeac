// Lines of a body that does not end for a long time.

/** Waits for a moment, so that the browser can draw and take input. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

/** How long the page may be busy before it lets the browser draw. */
const BUSY = 12;

/** The lines as they arrive. Ends when the body ends, also in the middle of a line, which is left out. */
export async function* linesOf(response: Response, heard: () => void = () => {}): AsyncGenerator<string> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let partial = '';
  let begun = performance.now();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      const lines = value.split('\n');
      lines[0] = partial + lines[0];
      partial = lines.pop() ?? '';
      for (const line of lines) {
        if (line) yield line;
        if (performance.now() - begun > BUSY) {
          await pause(0);
          begun = performance.now();
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Waits between tries: 0.2 s, then twice as long each time, at most 5 s. */
export class Backoff {
  #tries = 0;

  wait(signal: AbortSignal): Promise<void> {
    return pause(Math.min(5000, 200 * 2 ** this.#tries++), signal);
  }

  reset(): void {
    this.#tries = 0;
  }
}

/** How long a window in the background keeps its connections. Browsers allow six to a server, for all windows. */
const BACKGROUND = 20_000;

/** Returns when the window is visible. */
export function untilShown(signal: AbortSignal): Promise<void> {
  if (document.visibilityState === 'visible') return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      if (document.visibilityState !== 'visible' && !signal.aborted) return;
      document.removeEventListener('visibilitychange', done);
      resolve();
    };
    document.addEventListener('visibilitychange', done);
    signal.addEventListener('abort', done, { once: true });
  });
}

/** Uses a signal that is aborted when the window has been in the background for a while, or when the other one is. */
export async function whileShown<T>(other: AbortSignal, use: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const hidden = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const changed = () => {
    clearTimeout(timer);
    if (document.visibilityState !== 'visible') timer = setTimeout(() => hidden.abort(), BACKGROUND);
  };
  document.addEventListener('visibilitychange', changed);
  changed();
  try {
    return await use(AbortSignal.any([other, hidden.signal]));
  } finally {
    clearTimeout(timer);
    document.removeEventListener('visibilitychange', changed);
  }
}
