// The WebSocket of a terminal. docs/ui.md describes the protocol.

export interface Size { rows: number; columns: number }
export interface Open { uid: string; size?: Size; command?: string[]; takeOver?: boolean; watch?: boolean }
export type ServerMessage =
  | { type: 'live' }
  | { type: 'cut'; message: string }
  | { type: 'state'; phase: string; message: string }
  | { type: 'gap'; message: string }
  | { type: 'input'; state: 'held' | 'closed' | 'refused'; message: string }
  | { type: 'exit'; code?: number; signal?: string; message: string }
  | { type: 'error'; code: string; message: string };
type AnyMessage = ServerMessage | { type: 'taken'; bytes: number };

/** What a connection reports to. */
export interface Listener {
  /** Output. Call {@link Connection.shown} when it is on the screen. */
  output(bytes: Uint8Array): void;
  message(message: ServerMessage): void;
  /** The socket has ended without a last message. `refusal`: why another connection would end, too; empty if it may not. */
  lost(refusal: string): void;
}

const PROTOCOL = 'v1.terminal.remoteprocess.dev';
/** The codes with which rproc closes the connection of a page that does not keep to the protocol. */
const REFUSALS = [1002, 1008, 1009];
/** What each side may send before the other has confirmed some of it. */
const WINDOW = 256 * 1024;
/** Most bytes in a message. */
const CHUNK = 16 * 1024;
/** Shown bytes after which rproc is told. */
const CONFIRM = 64 * 1024;
/** Most input that waits. */
const MAX_WAITING = 8 * 1024 * 1024;

/** One connection of a terminal. */
export class Connection {
  readonly #socket: WebSocket;
  readonly #listener: Listener;
  #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  #sent = 0;
  #taken = 0;
  #shown = 0;
  #confirmed = 0;
  #isOver = false;
  #ends = false;

  constructor(namespace: string, name: string, kind: 'attach' | 'exec', open: () => Open, listener: Listener) {
    this.#listener = listener;
    const path = `/terminal/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}/${kind}`;
    const socket = new WebSocket(`ws://${location.host}${path}`, PROTOCOL);
    this.#socket = socket;
    socket.binaryType = 'arraybuffer';
    socket.addEventListener('open', () => this.#send({ type: 'open', ...open() }));
    socket.addEventListener('message', ({ data }: MessageEvent<string | ArrayBuffer>) => this.#receive(data));
    socket.addEventListener('close', ({ code, reason }) => {
      if (this.#isOver) return;
      this.#isOver = true;
      listener.lost(REFUSALS.includes(code) ? reason : '');
    });
  }

  /** Leaves. */
  close(): void {
    this.#isOver = true;
    this.#waiting = [];
    this.#socket.close();
  }

  /** Sends input, as the process takes it. `false`: it is too much, and nothing is sent. */
  write(bytes: Uint8Array): boolean {
    if (this.#waitingBytes + bytes.length > MAX_WAITING) return false;
    for (let begin = 0; begin < bytes.length; begin += CHUNK) this.#waiting.push(bytes.subarray(begin, begin + CHUNK));
    this.#waitingBytes += bytes.length;
    this.#flush();
    return true;
  }

  /** Sends the end of the input, behind all input. */
  end(): void {
    this.#ends = true;
    this.#flush();
  }

  resize(size: Size): void {
    this.#send({ type: 'resize', ...size });
  }

  /** This many more bytes of output are on the screen. */
  shown(bytes: number): void {
    this.#shown += bytes;
    if (this.#shown - this.#confirmed < CONFIRM) return;
    this.#confirmed = this.#shown;
    this.#send({ type: 'taken', bytes: this.#shown });
  }

  #flush(): void {
    if (this.#isOver || this.#socket.readyState !== WebSocket.OPEN) return;
    for (let part = this.#waiting[0]; part; part = this.#waiting[0]) {
      if (this.#sent + part.length - this.#taken > WINDOW) return;
      this.#waiting.shift();
      this.#waitingBytes -= part.length;
      this.#sent += part.length;
      this.#socket.send(part as Uint8Array<ArrayBuffer>);
    }
    if (this.#ends) {
      this.#ends = false;
      this.#send({ type: 'end' });
    }
  }

  #send(message: object): void {
    if (!this.#isOver && this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #receive(data: string | ArrayBuffer): void {
    if (this.#isOver) return;
    if (typeof data !== 'string') return this.#listener.output(new Uint8Array(data));
    const message = JSON.parse(data) as AnyMessage;
    if (message.type === 'taken') {
      this.#taken = message.bytes;
      return this.#flush();
    }
    if (message.type === 'exit' || message.type === 'error') this.#isOver = true;
    this.#listener.message(message);
    if (message.type === 'live') this.#flush();
  }
}
