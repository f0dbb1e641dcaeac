// Stop, signal, pause, resume, attach and run: buttons for users who may, and the missing rule for those who may not.

import { desire, may, Problem, signal, stop, type Process } from './api';
import { fill, h } from './dom';

const SIGNALS = ['TERM', 'INT', 'HUP', 'QUIT', 'USR1', 'USR2', 'WINCH', 'KILL'];

/** Opens a terminal: for a command, or for the process itself. */
export type OpenTerminal = (process: Process, command?: string[]) => void;

/** The command that was run last. It is not stored, because it may have a secret. */
let lastCommand = 'sh';

interface Right { verb: string; resource: string; subresource: string; allowed: boolean }

export class Actions {
  readonly element = h('div', { class: 'actions' });
  #process: Process | null = null;
  #control: Right = { verb: 'create', resource: 'remoteprocesses/signal', subresource: 'signal', allowed: true };
  #patch: Right = { verb: 'patch', resource: 'remoteprocesses', subresource: '', allowed: true };
  #attach: Right = { verb: 'create', resource: 'remoteprocesses/attach', subresource: 'attach', allowed: true };
  #exec: Right = { verb: 'create', resource: 'remoteprocesses/exec', subresource: 'exec', allowed: true };
  #shown = '';

  constructor(namespace: string, readonly open: OpenTerminal) {
    for (const right of this.#rights()) {
      void may(namespace, right.verb, right.subresource).then((allowed) => {
        right.allowed = allowed;
        this.#draw();
      });
    }
  }

  #rights(): Right[] {
    return [this.#control, this.#patch, this.#attach, this.#exec];
  }

  update(process: Process): void {
    this.#process = process;
    this.#draw();
  }

  #draw(): void {
    const process = this.#process;
    if (!process) return;
    const phase = process.status?.phase ?? 'Pending';
    const isPaused = process.spec.desiredState === 'Paused';
    const isOver = phase === 'Succeeded' || phase === 'Failed';
    const isStopping = phase === 'Stopping' || process.spec.desiredState === 'Stopped';
    const runs = phase === 'Running' || phase === 'Paused' || phase === 'Stopping';
    const { stdin = false, tty = false } = process.spec;
    const state = JSON.stringify([isOver, isPaused, isStopping, runs, stdin, tty, this.#rights().map(({ allowed }) => allowed)]);
    if (state === this.#shown) return;
    this.#shown = state;
    if (isOver) return fill(this.element);
    const used = this.#rights().filter((right) => right !== this.#attach || stdin);
    const missing = used.filter(({ allowed }) => !allowed);
    const { namespace } = process.metadata;
    fill(this.element,
      this.#button('Stop …', this.#control, isStopping && 'It is being stopped.', () => this.#ask('Stop', 'The process gets its stop signal, and SIGKILL when its grace period is over.', [], (reason) => stop(process, reason))),
      this.#button('Signal …', this.#control, !runs && 'It does not run.', () => this.#ask('Signal', 'The signal is sent to the main process of the program.', SIGNALS, (_, name) => signal(process, name))),
      isPaused
        ? this.#button('Resume', this.#patch, isStopping && 'It is being stopped.', () => this.#ask('Resume', 'All processes of the program run again.', [], (reason) => desire(process, 'Running', reason)))
        : this.#button('Pause …', this.#patch, isStopping && 'It is being stopped.', () => this.#ask('Pause', 'All processes of the program are paused. The time counts for its run deadline.', [], (reason) => desire(process, 'Paused', reason))),
      // Users who may only look can watch the screen of a program that has no input.
      (stdin || tty) && this.#button('Attach', stdin ? this.#attach : ALLOWED, !runs && 'It does not run.', () => { if (this.#process) this.open(this.#process); }),
      this.#button('Run a command …', this.#exec, !runs && 'It does not run.', () => this.#run()),
      missing.length > 0 && h('p', { id: 'missing', class: 'hint' },
        `${missing.length === used.length ? 'You may only look.' : 'Some buttons are off.'} Missing in namespace ${namespace}: ${missing.map(({ verb, resource }) => `${verb} ${resource}`).join(', ')}. The ClusterRole remoteprocess-edit has it.`));
  }

  #button(label: string, right: Right, why: string | false, action: () => void): HTMLElement {
    const isOff = !right.allowed || why !== false;
    return h('button', {
      type: 'button', 'aria-disabled': isOff && 'true', title: why || null, 'aria-describedby': !right.allowed && 'missing',
      on: { click: () => { if (!isOff) action(); } },
    }, label);
  }

  /** Asks for the command of a terminal. */
  #run(): void {
    const process = this.#process;
    if (!process) return;
    const text = 'The command runs in the container of the process, at a terminal. It gets SIGHUP when you close the terminal or this page.';
    this.#ask('Run', text, [], async (typed) => {
      lastCommand = typed || 'sh';
      this.open(process, words(lastCommand));
    }, { heading: `Run a command in ${process.metadata.name}`, label: 'Command', value: lastCommand });
  }

  /** A dialog that stays open when the request is refused. */
  #ask(title: string, text: string, choices: string[], send: (reason: string, choice: string) => Promise<void>, field: Field = {}): void {
    const name = this.#process?.metadata.name ?? '';
    const reason = h('input', { maxlength: field.value === undefined ? 256 : 4096, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'none', value: field.value });
    const choice = h('select', {}, ...choices.map((found) => h('option', {}, found)));
    const problem = h('div', { class: 'problem', role: 'alert' });
    const confirm = h('button', { type: 'submit', class: 'primary' }, title);
    const dialog = h('dialog', { 'aria-labelledby': 'dialog-title', on: { close: () => dialog.remove() } },
      h('form', {
        on: {
          submit: (event) => {
            event.preventDefault();
            confirm.disabled = true;
            fill(problem);
            send(reason.value.trim(), choice.value).then(() => dialog.close(), (error: unknown) => {
              confirm.disabled = false;
              fill(problem, ...refusal(error));
            });
          },
        },
      },
        h('h2', { id: 'dialog-title' }, field.heading ?? `${title} ${name}`),
        h('p', {}, text),
        choices.length ? h('label', {}, 'Signal', choice) : h('label', {}, field.label ?? 'Reason (shown in the status)', reason),
        problem,
        h('div', { class: 'buttons' }, h('button', { type: 'button', on: { click: () => dialog.close() } }, 'Cancel'), confirm)));
    document.body.append(dialog);
    dialog.showModal();
  }
}

/** What a dialog asks for, instead of a reason. */
interface Field { heading?: string; label?: string; value?: string }

const ALLOWED: Right = { verb: '', resource: '', subresource: '', allowed: true };

/** A command of plain words is run as it is, because an image may have no shell; any other one by a shell. */
function words(command: string): string[] {
  return /^[\w@%+:,./-]+( +[\w@%+=:,./-]+)*$/.test(command) ? command.split(/ +/) : ['sh', '-c', command];
}

function refusal(error: unknown): HTMLElement[] {
  const text = h('p', {}, error instanceof Error ? error.message : String(error));
  if (!(error instanceof Problem) || !error.rule) return [text];
  const { kind, namespace, apiGroups, resources, verbs } = error.rule;
  const list = (values: string[]) => `[${values.map((value) => JSON.stringify(value)).join(', ')}]`;
  const rule = `- apiGroups: ${list(apiGroups)}\n  resources: ${list(resources)}\n  verbs: ${list(verbs)}`;
  return [text, h('p', {}, `The rule that a ${kind}${namespace ? ` in namespace ${namespace}` : ''} must have:`), h('pre', { tabindex: 0 }, rule)];
}
