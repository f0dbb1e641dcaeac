// Stop, signal, pause and resume: buttons for who may, and the missing rule for who may not.

import { desire, may, Problem, signal, stop, type Process } from './api';
import { fill, h } from './dom';

const SIGNALS = ['TERM', 'INT', 'HUP', 'QUIT', 'USR1', 'USR2', 'WINCH', 'KILL'];

interface Right { verb: string; resource: string; subresource: string; allowed: boolean }

export class Actions {
  readonly element = h('div', { class: 'actions' });
  #process: Process | null = null;
  #control: Right = { verb: 'create', resource: 'remoteprocesses/signal', subresource: 'signal', allowed: true };
  #patch: Right = { verb: 'patch', resource: 'remoteprocesses', subresource: '', allowed: true };
  #shown = '';

  constructor(namespace: string) {
    for (const right of [this.#control, this.#patch]) {
      void may(namespace, right.verb, right.subresource).then((allowed) => {
        right.allowed = allowed;
        this.#draw();
      });
    }
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
    const state = JSON.stringify([isOver, isPaused, isStopping, phase === 'Running' || phase === 'Paused', this.#control.allowed, this.#patch.allowed]);
    if (state === this.#shown) return;
    this.#shown = state;
    if (isOver) return fill(this.element);
    const missing = [this.#control, this.#patch].filter(({ allowed }) => !allowed);
    const { namespace } = process.metadata;
    fill(this.element,
      this.#button('Stop …', this.#control, isStopping && 'It is being stopped.', () => this.#ask('Stop', 'The process gets its stop signal, and SIGKILL when its grace period is over.', [], (reason) => stop(process, reason))),
      this.#button('Signal …', this.#control, !(phase === 'Running' || phase === 'Paused' || phase === 'Stopping') && 'It does not run.', () => this.#ask('Signal', 'The signal is sent to the main process of the program.', SIGNALS, (_, name) => signal(process, name))),
      isPaused
        ? this.#button('Resume', this.#patch, isStopping && 'It is being stopped.', () => this.#ask('Resume', 'All processes of the program run again.', [], (reason) => desire(process, 'Running', reason)))
        : this.#button('Pause …', this.#patch, isStopping && 'It is being stopped.', () => this.#ask('Pause', 'All processes of the program are paused. The time counts for its run deadline.', [], (reason) => desire(process, 'Paused', reason))),
      missing.length > 0 && h('p', { id: 'missing', class: 'hint' },
        `You may only look. Missing in namespace ${namespace}: ${missing.map(({ verb, resource }) => `${verb} ${resource}`).join(', ')}. The ClusterRole remoteprocess-edit has it.`));
  }

  #button(label: string, right: Right, why: string | false, action: () => void): HTMLElement {
    const isOff = !right.allowed || why !== false;
    return h('button', {
      type: 'button', 'aria-disabled': isOff && 'true', title: why || null, 'aria-describedby': !right.allowed && 'missing',
      on: { click: () => { if (!isOff) action(); } },
    }, label);
  }

  /** A dialog that stays open when the request is refused. */
  #ask(title: string, text: string, choices: string[], send: (reason: string, choice: string) => Promise<void>): void {
    const name = this.#process?.metadata.name ?? '';
    const reason = h('input', { maxlength: 256, autocomplete: 'off' });
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
        h('h2', { id: 'dialog-title' }, `${title} ${name}`),
        h('p', {}, text),
        choices.length ? h('label', {}, 'Signal', choice) : h('label', {}, 'Reason (shown in the status)', reason),
        problem,
        h('div', { class: 'buttons' }, h('button', { type: 'button', on: { click: () => dialog.close() } }, 'Cancel'), confirm)));
    document.body.append(dialog);
    dialog.showModal();
  }
}

function refusal(error: unknown): HTMLElement[] {
  const text = h('p', {}, error instanceof Error ? error.message : String(error));
  if (!(error instanceof Problem) || !error.rule) return [text];
  const { kind, namespace, apiGroups, resources, verbs } = error.rule;
  const list = (values: string[]) => `[${values.map((value) => JSON.stringify(value)).join(', ')}]`;
  const rule = `- apiGroups: ${list(apiGroups)}\n  resources: ${list(resources)}\n  verbs: ${list(verbs)}`;
  return [text, h('p', {}, `The rule that a ${kind}${namespace ? ` in namespace ${namespace}` : ''} must have:`), h('pre', { tabindex: 0 }, rule)];
}
