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
