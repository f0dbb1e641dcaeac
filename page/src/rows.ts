// Which line is in which row. A line that is wrapped has several rows.

import type { Lines } from './lines';

const BLOCK = 512;

export class Rows {
  /** Columns of a row; 0 if lines are not wrapped. */
  #columns = 0;
  /** The row at which each whole block of lines begins. */
  #begins: number[] = [0];
  #dropped = 0;

  constructor(readonly lines: Lines) {}

  set columns(columns: number) {
    if (columns === this.#columns) return;
    this.#columns = columns;
    this.#begins = [0];
  }

  get columns(): number {
    return this.#columns;
  }

  of(line: number): number {
    return this.#columns ? Math.max(1, Math.ceil(this.lines.cells(line) / this.#columns)) : 1;
  }

  /** The rows of all lines. */
  get total(): number {
    return this.top(this.lines.length);
  }

  /** The first row of a line. */
  top(line: number): number {
    if (!this.#columns) return line;
    const block = Math.floor(line / BLOCK);
    this.#measure(block);
    let row = this.#begins[block] ?? 0;
    for (let before = block * BLOCK; before < line; before++) row += this.of(before);
    return row;
  }

  /** The line that has a row, and how many of its rows are above it. */
  at(row: number): { line: number; above: number } {
    if (!this.#columns) return { line: Math.min(row, Math.max(0, this.lines.length - 1)), above: 0 };
    this.#measure(Math.floor(this.lines.length / BLOCK));
    let [low, high] = [0, this.#begins.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#begins[middle] ?? 0) <= row) low = middle;
      else high = middle - 1;
    }
    let rest = row - (this.#begins[low] ?? 0);
    let line = low * BLOCK;
    while (line < this.lines.length - 1 && rest >= this.of(line)) rest -= this.of(line++);
    return { line, above: Math.min(rest, this.of(line) - 1) };
  }

  #measure(block: number): void {
    if (this.#dropped !== this.lines.dropped) {
      this.#dropped = this.lines.dropped;
      this.#begins = [0];
    }
    // A line that is still open may have grown.
    const stable = Math.floor(this.lines.touched / BLOCK) + 1;
    this.lines.touched = Infinity;
    if (this.#begins.length > stable) this.#begins.length = stable;
    while (this.#begins.length <= block) {
      const from = (this.#begins.length - 1) * BLOCK;
      let row = this.#begins.at(-1) ?? 0;
      for (let line = from; line < from + BLOCK; line++) row += this.of(line);
      this.#begins.push(row);
    }
  }
}
