// A terminal: the process itself (attach), or a command in its container (exec).

import { FitAddon } from '@xterm/addon-fit';
import { Terminal, type ITheme } from '@xterm/xterm';
import { Problem, session, type Process } from './api';
import { Connection, type Listener, type ServerMessage } from './connection';
import { fill, h } from './dom';
import { allowStyles } from './policy';
import { Backoff, untilShown } from './reader';

export interface Options {
  process: Process;
  /** What to run; absent: attach to the process. */
  command?: string[];
  /** Called when the user closes it. */
  closed(): void;
}

/** Keys that a phone does not have: label, bytes and name. */
const KEYS: [string, string, string][] = [
  ['Esc', '\x1b', 'Esc'], ['Tab', '\t', 'Tab'], ['^C', '\x03', 'Control C'], ['^D', '\x04', 'Control D'],
  ['↑', '\x1b[A', 'Up'], ['↓', '\x1b[B', 'Down'], ['←', '\x1b[D', 'Left'], ['→', '\x1b[C', 'Right'],
];
/** Lines that can be scrolled back. */
const SCROLLBACK = 5000;
/** Where the choice for screen readers is kept. */
const SPOKEN = 'rproc-screen-reader';

const LIGHT: ITheme = {
  background: '#fbfcfd', foreground: '#1b2430', cursor: '#1f5fd0', cursorAccent: '#fbfcfd', selectionBackground: '#bfd5ff', selectionForeground: '#1b2430',
  black: '#1b2430', red: '#b3261e', green: '#17703a', yellow: '#7d5500', blue: '#1f5fd0', magenta: '#8a2a9b', cyan: '#0b6b78', white: '#4a5666',
  brightBlack: '#566272', brightRed: '#c02a20', brightGreen: '#18793e', brightYellow: '#845c00', brightBlue: '#2b66d6', brightMagenta: '#9a33ab', brightCyan: '#0c7280', brightWhite: '#1b2430',
};
const DARK: ITheme = {
  background: '#0c0f13', foreground: '#e4e9f0', cursor: '#7eb0ff', cursorAccent: '#0c0f13', selectionBackground: '#1f4d9f', selectionForeground: '#ffffff',
  black: '#2a323d', red: '#ff8a80', green: '#6fd08c', yellow: '#f0c05a', blue: '#7eb0ff', magenta: '#e39af0', cyan: '#64d3e0', white: '#d5dce5',
  brightBlack: '#9aa7b8', brightRed: '#ffa59d', brightGreen: '#8fe3a8', brightYellow: '#ffd881', brightBlue: '#a3c6ff', brightMagenta: '#efb5f8', brightCyan: '#8ee6f0', brightWhite: '#ffffff',
};

let count = 0;

export class TerminalView implements Listener {
  readonly element: HTMLElement;
  readonly #status = h('span', { class: 'status waiting', role: 'status' }, 'Connecting …');
  readonly #question = h('div', { class: 'question', role: 'alert', hidden: true });
  readonly #problem = h('div', { class: 'problem', role: 'alert', hidden: true });
  readonly #again = h('button', { type: 'button', hidden: true, on: { click: () => this.#restart() } });
  readonly #close = h('button', { type: 'button', on: { click: () => this.options.closed() } }, 'Close');
  readonly #spoken = h('button', { type: 'button', 'aria-pressed': String(isSpoken()), title: 'Reads what the program writes', on: { click: () => this.#speak() } }, 'Screen reader');
  readonly #screen = h('div', { class: 'screen' });
  readonly #input = h('input', { 'aria-label': 'Line to send', placeholder: 'Line to send', autocomplete: 'off', spellcheck: 'false' });
  readonly #terminal: Terminal;
  readonly #fit = new FitAddon();
  readonly #stopped = new AbortController();
  readonly #backoff = new Backoff();
  readonly #darkness = matchMedia('(prefers-color-scheme: dark)');
  readonly #observer = new ResizeObserver(() => this.#fitSoon());
  /** The process has a terminal; otherwise lines are sent. */
  readonly #isTty: boolean;
  #connection: Connection | null = null;
  #frame = 0;
  /** Input goes to the process. */
  #isOpen = false;
  #isOver = false;

  constructor(readonly options: Options) {
    const { process, command } = options;
    const { name } = process.metadata;
    this.#isTty = command !== undefined || process.spec.tty === true;
    allowStyles();
    this.#terminal = new Terminal({
      scrollback: SCROLLBACK, convertEol: !this.#isTty, disableStdin: !this.#isTty || !this.#wantsInput,
      fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace', fontSize: 13, minimumContrastRatio: 4.5,
      screenReaderMode: isSpoken(), theme: this.#darkness.matches ? DARK : LIGHT,
    });
    this.#terminal.loadAddon(this.#fit);
    const title = command ? `${command.join(' ')} in ${name}` : `Attached to ${name}`;
    const hint = `terminal-keys-${++count}`;
    this.element = h('section', { class: 'terminal-view', 'aria-label': title },
      h('div', { class: 'bar' }, h('strong', {}, title), this.#again, this.#spoken, this.#close, this.#status),
      this.#question, this.#problem, this.#screen,
      this.#isTty && this.#wantsInput ? this.#keys() : null,
      !this.#isTty && this.#wantsInput ? this.#form() : null,
      h('p', { class: 'hint', id: hint }, this.#isTty && this.#wantsInput
        ? 'All keys go to the program. Ctrl-Shift-Enter leaves the terminal, Ctrl-Shift-V pastes, Ctrl-Insert copies what is selected.'
        : 'What the program writes. Nothing that you type here goes to it.'));
    this.#terminal.attachCustomKeyEventHandler((event) => this.#key(event));
    this.#terminal.onData((data) => this.#write(new TextEncoder().encode(data)));
    this.#terminal.onBinary((data) => this.#write(Uint8Array.from(data, (byte) => byte.charCodeAt(0))));
    this.#terminal.onResize(({ rows, cols }) => { if (this.#isTty) this.#connection?.resize({ rows, columns: cols }); });
    this.#darkness.addEventListener('change', this.#recolor);
    // It is measured when it is in the page.
    requestAnimationFrame(() => this.#begin(hint));
  }

  get #wantsInput(): boolean {
    return this.options.command !== undefined || this.options.process.spec.stdin === true;
  }

  stop(): void {
    this.#stopped.abort();
    cancelAnimationFrame(this.#frame);
    this.#observer.disconnect();
    this.#darkness.removeEventListener('change', this.#recolor);
    this.#connection?.close();
    this.#terminal.dispose();
  }

  focus(): void {
    if (this.#isTty) this.#terminal.focus();
    else (this.#wantsInput ? this.#input : this.#close).focus();
  }

  output(bytes: Uint8Array): void {
    const connection = this.#connection;
    this.#terminal.write(bytes, () => connection?.shown(bytes.length));
  }

  message(message: ServerMessage): void {
    switch (message.type) {
      case 'live':
        this.#backoff.reset();
        return this.#say('live', 'Connected');
      case 'cut':
        return this.#say('waiting', `Reconnecting: ${message.message}`);
      case 'state':
        return message.phase === 'Running' ? this.#say('live', 'Connected') : this.#say('waiting', `${message.phase}: ${message.message}`);
      case 'gap':
        return this.#note(message.message);
      case 'input':
        return this.#inputEnded(message);
      case 'exit':
        return this.#ended(message);
      case 'error':
        this.#over('failed', message.code === 'PermissionDenied' ? 'Not allowed' : 'Failed');
        return this.#explain(message.message);
    }
  }

  lost(refusal: string): void {
    if (refusal) {
      this.#over('failed', 'Failed');
      return this.#explain(refusal);
    }
    if (!this.options.command) return void this.#comeBack();
    this.#over('failed', 'Connection lost');
    this.#explain('The connection to rproc broke. The command gets SIGHUP.');
  }

  #begin(hint: string): void {
    if (this.#stopped.signal.aborted) return;
    this.#terminal.open(this.#screen);
    this.#terminal.textarea?.setAttribute('aria-describedby', hint);
    this.#fit.fit();
    this.#observer.observe(this.#screen);
    this.#connect(false);
    this.focus();
  }

  #connect(takeOver: boolean): void {
    const { process: { metadata: { namespace, name, uid } }, command } = this.options;
    // The size may change until the connection is open.
    const open = () => {
      const { rows, cols } = this.#terminal;
      return { uid, takeOver, watch: !this.#wantsInput, ...(this.#isTty ? { size: { rows, columns: cols } } : {}), ...(command ? { command } : {}) };
    };
    this.#connection?.close();
    this.#isOpen = this.#wantsInput;
    this.#isOver = false;
    this.#question.hidden = true;
    this.#problem.hidden = true;
    this.#again.hidden = true;
    this.#terminal.reset();
    this.#connection = new Connection(namespace, name, command ? 'exec' : 'attach', open, this);
  }

  /** Attaches again after the connection to rproc has broken. What was typed since then is dropped, never sent twice. */
  async #comeBack(): Promise<void> {
    const { signal } = this.#stopped;
    this.#isOpen = false;
    this.#say('waiting', 'Reconnecting: rproc does not answer. Does it still run?');
    await this.#backoff.wait(signal);
    await untilShown(signal);
    if (signal.aborted || this.#isOver) return;
    try {
      // A WebSocket that is refused does not say why.
      await session();
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem) || error.isTemporary) return this.#comeBack();
      this.#over('failed', 'Failed');
      return this.#explain(error.message);
    }
    if (!signal.aborted) this.#connect(false);
  }

  #restart(takeOver = false): void {
    this.#say('waiting', 'Connecting …');
    this.#connect(takeOver);
    this.focus();
  }

  #write(bytes: Uint8Array): void {
    if (!this.#isOpen || this.#isOver || !this.#connection) return;
    if (!this.#connection.write(bytes)) this.#note('this is too much input at once: nothing of it was sent');
  }

  #inputEnded({ state, message }: ServerMessage & { type: 'input' }): void {
    this.#isOpen = false;
    if (state === 'closed') return this.#note(message);
    const text = h('p', {}, state === 'held' ? `${message}. You see the output; what you type is dropped.` : `You cannot write into it. ${message}`);
    const take = h('button', { type: 'button', class: 'primary', on: { click: () => this.#restart(true) } }, 'Take over the input');
    const watch = h('button', { type: 'button', on: { click: () => { this.#question.hidden = true; this.#close.focus(); } } }, 'Only watch');
    fill(this.#question, text, state === 'held' && h('div', { class: 'buttons' }, watch, take));
    this.#question.hidden = false;
  }

  #ended({ code, signal, message }: ServerMessage & { type: 'exit' }): void {
    this.#note(message);
    this.#over(code === 0 ? '' : 'failed', signal ? `Ended by ${signal}` : code === undefined ? 'Ended' : `Ended: exit code ${code}`);
    // A process that has ended takes nothing.
    if (!this.options.command) this.#again.hidden = true;
  }

  #say(kind: string, text: string): void {
    this.#status.className = `status ${kind}`;
    if (this.#status.textContent !== text) this.#status.textContent = text;
  }

  /** A line of our own between those of the program. */
  #note(text: string): void {
    const visible = text.replace(/[\u0000-\u001f\u007f-\u009f]+/g, ' ');
    this.#terminal.write(`\r\n\x1b[0;3m[${visible}]\x1b[0m\r\n`);
  }

  #over(kind: string, text: string): void {
    this.#isOver = true;
    this.#isOpen = false;
    this.#say(kind, text);
    this.#again.textContent = this.options.command ? 'Run again' : 'Attach again';
    this.#again.hidden = false;
    // A terminal that takes nothing must not hold the focus.
    if (this.#screen.contains(document.activeElement)) this.#close.focus();
  }

  #explain(message: string): void {
    fill(this.#problem, h('pre', { tabindex: 0 }, message));
    this.#problem.hidden = false;
  }

  #key(event: KeyboardEvent): boolean {
    if (!(event.ctrlKey && event.shiftKey && event.key === 'Enter')) return true;
    event.preventDefault();
    if (event.type === 'keydown') this.#close.focus();
    return false;
  }

  #keys(): HTMLElement {
    const press = (sequence: string) => {
      // Full-screen programs ask for other arrow keys (DECCKM).
      const sent = this.#terminal.modes.applicationCursorKeysMode ? sequence.replace('[', 'O') : sequence;
      this.#write(new TextEncoder().encode(sent));
      this.focus();
    };
    const button = ([label, sequence, name]: [string, string, string]) =>
      h('button', { type: 'button', 'aria-label': name, on: { click: () => press(sequence) } }, label);
    return h('div', { class: 'keys', role: 'group', 'aria-label': 'Keys' }, ...KEYS.map(button));
  }

  /** For a process that reads lines from a pipe. */
  #form(): HTMLElement {
    const input = this.#input;
    const end = h('button', { type: 'button', on: { click: () => { this.#connection?.end(); this.#isOpen = false; this.#note('end of the input'); } } }, 'End of input');
    return h('form', {
      class: 'bar send',
      on: {
        submit: (event) => {
          event.preventDefault();
          if (!this.#isOpen) return;
          this.#write(new TextEncoder().encode(`${input.value}\n`));
          input.value = '';
        },
      },
    }, input, h('button', { type: 'submit' }, 'Send'), end);
  }

  #speak(): void {
    const is = !isSpoken();
    localStorage.setItem(SPOKEN, String(is));
    this.#spoken.setAttribute('aria-pressed', String(is));
    this.#terminal.options.screenReaderMode = is;
  }

  readonly #recolor = () => { this.#terminal.options.theme = this.#darkness.matches ? DARK : LIGHT; };

  #fitSoon(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#fit.fit());
  }
}

function isSpoken(): boolean {
  return localStorage.getItem(SPOKEN) === 'true';
}
