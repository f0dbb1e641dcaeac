// The lines of an output, made of records as they arrive. Columns of numbers instead of objects: a million lines fit.

import { cells, parse, plain, PLAIN, visible, type Style } from './ansi';
import type { Data, Gap } from './stream';

export const STDOUT = 0, STDERR = 1, NOTE = 2;
export type Kind = typeof STDOUT | typeof STDERR | typeof NOTE;

/** More lines than these are not kept: the oldest make room. */
export const MAX_LINES = 1_200_000;
const CUT_LINES = 200_000;
/** What is shown of one line. */
const MAX_LENGTH = 16_384;

const encoder = new TextEncoder();

/** One of the two streams while it arrives. */
interface Arriving {
  readonly kind: Kind;
  readonly decoder: TextDecoder;
  /** The line that has no end yet, or -1. */
  open: number;
  /** The offset behind the last byte. */
  end: number;
  /** Characters of the open line that are not kept. */
  cut: number;
  /** The last bytes may be a part of a character. */
  isSplit: boolean;
  style: Style;
}

export class Lines {
  length = 0;
  /** Lines that made room. */
  dropped = 0;
  /** The first line that has changed since this was reset. */
  touched = Infinity;
  #text: string[] = [];
  #kind = new Uint8Array(1024);
  #time = new Float64Array(1024);
  #offset = new Float64Array(1024);
  #cells = new Uint32Array(1024);
  #style = new Uint16Array(1024);
  #cursor = new Uint32Array(1024);
  #cursors: string[] = [''];
  #styles: Style[] = [PLAIN];
  #streams: Record<'stdout' | 'stderr', Arriving> = { stdout: arriving(STDOUT), stderr: arriving(STDERR) };

  text(line: number): string { return this.#text[line] ?? ''; }
  kind(line: number): Kind { return this.#kind[line] as Kind; }
  time(line: number): number { return this.#time[line] ?? NaN; }
  offset(line: number): number { return this.#offset[line] ?? 0; }
  cells(line: number): number { return this.#cells[line] ?? 0; }
  style(line: number): Style { return this.#styles[this.#style[line] ?? 0] ?? PLAIN; }
  /** Reading from here, the line comes again. */
  cursor(line: number): string { return this.#cursors[this.#cursor[line] ?? 0] ?? ''; }

  /** The line that has this byte of a stream, or -1. */
  find(kind: Kind, offset: number): number {
    let found = -1;
    if (offset >= this.#streams[kind === STDERR ? 'stderr' : 'stdout'].end) return found;
    for (let line = 0; line < this.length; line++) {
      if (this.#kind[line] !== kind) continue;
      if ((this.#offset[line] ?? 0) > offset) break;
      found = line;
    }
    return found;
  }

  data(record: Data, before: string): void {
    const stream = this.#streams[record.stream];
    const time = record.time ? Date.parse(record.time) : NaN;
    if (record.text !== undefined && !stream.isSplit) {
      let offset = record.offset;
      for (const [part, isWhole] of split(record.text)) {
        this.#put(stream, part, isWhole, { time, offset, before });
        offset += bytes(part) + (isWhole ? 1 : 0);
      }
      stream.end = offset;
      return;
    }
    const raw = record.text !== undefined ? encoder.encode(record.text) : Uint8Array.from(atob(record.base64 ?? ''), (c) => c.charCodeAt(0));
    for (let at = 0; at < raw.length;) {
      const newline = raw.indexOf(10, at);
      const end = newline < 0 ? raw.length : newline;
      const part = stream.decoder.decode(raw.subarray(at, end), { stream: newline < 0 });
      this.#put(stream, part, newline >= 0, { time, offset: record.offset + at, before });
      at = end + 1;
    }
    stream.isSplit = (raw.at(-1) ?? 0) >= 0x80;
    stream.end = record.offset + raw.length;
  }

  gap(record: Gap, before: string): void {
    const size = record.to === undefined ? 'The rest' : `${(record.to - record.from).toLocaleString()} bytes`;
    const stream = this.#streams[record.stream];
    [stream.open, stream.isSplit, stream.end] = [-1, false, record.to ?? Infinity];
    this.#add(NOTE, `${size} of ${record.stream} from offset ${record.from.toLocaleString()} ${size === 'The rest' ? 'is' : 'are'} missing (${record.reason})`, { time: NaN, offset: record.from, before }, PLAIN);
  }

  note(text: string): void {
    this.#add(NOTE, text, { time: NaN, offset: 0, before: '' }, PLAIN);
  }

  #put(stream: Arriving, part: string, isWhole: boolean, at: Place): void {
    if (!part && !isWhole && stream.open < 0) return;
    if (stream.open < 0) {
      stream.cut = 0;
      stream.open = this.#add(stream.kind, '', at, stream.style);
    }
    const line = stream.open;
    const known = this.#text[line] ?? '';
    const room = Math.max(0, MAX_LENGTH - known.length);
    stream.cut += Math.max(0, part.length - room);
    let text = known + part.slice(0, room);
    if (isWhole) {
      if (text.includes('\x1b')) stream.style = parse(text, stream.style).end;
      if (stream.cut > 0) text += ` … ${stream.cut.toLocaleString()} more characters`;
      stream.open = -1;
    }
    this.#text[line] = text;
    this.#cells[line] = cells(plain(visible(text)));
    this.touched = Math.min(this.touched, line);
  }

  #add(kind: Kind, text: string, { time, offset, before }: Place, style: Style): number {
    if (this.length >= MAX_LINES) this.#cut();
    const line = this.length++;
    if (line >= this.#kind.length) this.#grow();
    this.#text[line] = text;
    this.#kind[line] = kind;
    this.#time[line] = time;
    this.#offset[line] = offset;
    this.#cells[line] = cells(text);
    this.#style[line] = this.#intern(style);
    if (this.#cursors.at(-1) !== before) this.#cursors.push(before);
    this.#cursor[line] = this.#cursors.length - 1;
    return line;
  }

  /** Few styles begin a line; what is more than the column can count is plain. */
  #intern(style: Style): number {
    if (style === PLAIN) return 0;
    const known = this.#styles.findLastIndex((other) => other === style || JSON.stringify(other) === JSON.stringify(style));
    if (known >= 0) return known;
    return this.#styles.length < 1024 ? this.#styles.push(style) - 1 : 0;
  }

  #grow(): void {
    const grown = <T extends { set(from: T): void }>(make: (size: number) => T, from: T & { length: number }): T => {
      const next = make(from.length * 2);
      next.set(from);
      return next;
    };
    this.#kind = grown((size) => new Uint8Array(size), this.#kind);
    this.#time = grown((size) => new Float64Array(size), this.#time);
    this.#offset = grown((size) => new Float64Array(size), this.#offset);
    this.#cells = grown((size) => new Uint32Array(size), this.#cells);
    this.#style = grown((size) => new Uint16Array(size), this.#style);
    this.#cursor = grown((size) => new Uint32Array(size), this.#cursor);
  }

  #cut(): void {
    for (const column of [this.#kind, this.#time, this.#offset, this.#cells, this.#style, this.#cursor]) {
      column.copyWithin(0, CUT_LINES, this.length);
    }
    this.#text.splice(0, CUT_LINES);
    this.length -= CUT_LINES;
    this.dropped += CUT_LINES;
    for (const stream of Object.values(this.#streams)) stream.open = Math.max(-1, stream.open - CUT_LINES);
  }
}

interface Place { time: number; offset: number; before: string }

function arriving(kind: Kind): Arriving {
  return { kind, decoder: new TextDecoder(), open: -1, end: 0, cut: 0, isSplit: false, style: PLAIN };
}

/** The parts between newlines, and whether a newline follows. */
function* split(text: string): Generator<[string, boolean]> {
  let at = 0;
  for (let newline = text.indexOf('\n'); newline >= 0; newline = text.indexOf('\n', at)) {
    yield [text.slice(at, newline), true];
    at = newline + 1;
  }
  if (at < text.length) yield [text.slice(at), false];
}

/** The length in UTF-8. */
function bytes(text: string): number {
  return /^[\x00-\x7f]*$/.test(text) ? text.length : encoder.encode(text).length;
}
