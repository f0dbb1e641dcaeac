// What a terminal would show of one line. Colors and weights (ECMA-48, SGR) are kept, other sequences are left out, and
// control characters become visible, so that output can neither hide nor reorder text.

export interface Style {
  /** 0 to 15: a color of the theme; a text: `#rrggbb`. */
  readonly color?: number | string;
  readonly background?: number | string;
  readonly flags: number;
}

export const BOLD = 1, DIM = 2, ITALIC = 4, UNDERLINE = 8, INVERSE = 16, STRIKE = 32;
export const PLAIN: Style = { flags: 0 };

export interface Span { text: string; style: Style }

/** CSI, strings that a terminal reads silently (OSC, DCS, PM, APC, SOS), other escapes, and single controls. */
const SPECIAL = new RegExp(
  '\\x1b\\[([0-?]*)[ -/]*([@-~])|\\x1b[\\]PX^_][^\\x07\\x1b]{0,4096}(?:\\x07|\\x1b\\\\)|\\x1b[ -/]*[0-OQ-WYZ`-~]' +
    '|[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]',
  'g',
);
const SIMPLE = /^[\x20-\x7e]*$/;

/** What is left of a line that was overwritten after carriage returns. */
export function visible(text: string): string {
  if (!text.includes('\r')) return text;
  const parts = text.split('\r').filter((part) => part !== '');
  return parts.at(-1) ?? '';
}

/** The spans of a line that begins in a style, and the style at its end. */
export function parse(text: string, begin: Style): { spans: Span[]; end: Style } {
  if (SIMPLE.test(text)) return { spans: text ? [{ text, style: begin }] : [], end: begin };
  const spans: Span[] = [];
  let style = begin;
  let column = 0;
  const put = (part: string) => {
    if (!part) return;
    column += cells(part);
    const last = spans.at(-1);
    if (last?.style === style) last.text += part;
    else spans.push({ text: part, style });
  };
  let at = 0;
  for (const found of text.matchAll(SPECIAL)) {
    put(text.slice(at, found.index));
    at = found.index + found[0].length;
    if (found[2] === 'm') style = sgr(found[1] ?? '', style);
    else if (found[0] === '\t') put(' '.repeat(8 - (column % 8)));
    else if (found[0].length === 1) put(shown(found[0].charCodeAt(0)));
  }
  put(text.slice(at));
  return { spans, end: style };
}

/** The text of a line without its sequences. */
export function plain(text: string): string {
  return SIMPLE.test(text) ? text : parse(text, PLAIN).spans.map((span) => span.text).join('');
}

function shown(code: number): string {
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  return code === 0x7f ? '\u2421' : '\ufffd';
}

const WIDE = /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Extended_Pictographic}/u;
const ZERO = /\p{M}|\u200d|\ufe0f/u;

/** The width in cells of a terminal, nearly: fonts decide. */
export function cells(text: string): number {
  if (SIMPLE.test(text)) return text.length;
  let count = 0;
  for (const letter of text) {
    if (letter < '\u0300') count += 1;
    else if (!ZERO.test(letter)) count += WIDE.test(letter) ? 2 : 1;
  }
  return count;
}

function sgr(parameters: string, before: Style): Style {
  const codes = parameters.split(/[;:]/).map((code) => Number(code || 0));
  let { color, background, flags } = before;
  for (let index = 0; index < codes.length; index++) {
    const code = codes[index] ?? 0;
    if (code === 0) [color, background, flags] = [undefined, undefined, 0];
    else if (code === 1) flags |= BOLD;
    else if (code === 2) flags |= DIM;
    else if (code === 3) flags |= ITALIC;
    else if (code === 4) flags |= UNDERLINE;
    else if (code === 7) flags |= INVERSE;
    else if (code === 9) flags |= STRIKE;
    else if (code === 22) flags &= ~(BOLD | DIM);
    else if (code === 23) flags &= ~ITALIC;
    else if (code === 24) flags &= ~UNDERLINE;
    else if (code === 27) flags &= ~INVERSE;
    else if (code === 29) flags &= ~STRIKE;
    else if (code >= 30 && code <= 37) color = code - 30;
    else if (code >= 90 && code <= 97) color = code - 82;
    else if (code >= 40 && code <= 47) background = code - 40;
    else if (code >= 100 && code <= 107) background = code - 92;
    else if (code === 39) color = undefined;
    else if (code === 49) background = undefined;
    else if (code === 38 || code === 48) {
      const [value, used] = extended(codes.slice(index + 1));
      if (code === 38) color = value;
      else background = value;
      index += used;
    }
  }
  return { ...(color === undefined ? {} : { color }), ...(background === undefined ? {} : { background }), flags };
}

/** `5;n` or `2;r;g;b`, and how many numbers that are. */
function extended([kind, first = 0, second = 0, third = 0]: number[]): [number | string | undefined, number] {
  const hex = (...parts: number[]) => '#' + parts.map((part) => Math.min(255, part | 0).toString(16).padStart(2, '0')).join('');
  if (kind === 2) return [hex(first, second, third), 4];
  if (kind !== 5) return [undefined, 1];
  if (first < 16) return [first, 2];
  if (first >= 232) return [hex(...Array<number>(3).fill(8 + 10 * (first - 232))), 2];
  const level = (step: number) => (step === 0 ? 0 : 55 + 40 * step);
  const cube = first - 16;
  return [hex(level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6)), 2];
}
