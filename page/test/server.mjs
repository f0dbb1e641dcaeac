// What rproc serves to the page, made up: a few processes, their output, their terminals, and rights. The real server is
// tested in cli/tests/relay/proxy.rs and terminal.rs.
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { WebSocketServer } from 'ws';

const DIST = new URL('../dist/', import.meta.url);
const POLICY = readFileSync(new URL('../policy.txt', import.meta.url), 'utf8').trim();
const TYPES = { html: 'text/html; charset=utf-8', js: 'text/javascript', css: 'text/css', svg: 'image/svg+xml', txt: 'text/plain; charset=utf-8' };
/** What may be sent to a terminal before it confirms. */
const WINDOW = 256 * 1024;
const BEGIN = Date.parse('2026-01-31T12:00:00Z');

export const at = (seconds) => new Date(BEGIN + seconds * 1000).toISOString();

export function process(name, phase, more = {}) {
  const isOver = ['Succeeded', 'Failed'].includes(phase);
  const begun = { number: 1, begunAt: at(1), podName: `${name}-1`, node: 'node-a' };
  const ran = phase === 'Pending' ? begun : { ...begun, grantedAt: at(3), startedAt: at(4) };
  const attempt = isOver ? { ...ran, finishedAt: at(94), exit: { code: phase === 'Failed' ? 7 : 0, reason: phase === 'Failed' ? 'NonZeroExit' : 'Completed' }, output: { sealed: true, stdout: { bytes: 48123 }, stderr: { bytes: 812 } } } : ran;
  return {
    apiVersion: 'remoteprocess.dev/v1alpha1', kind: 'RemoteProcess',
    metadata: { name, namespace: 'default', uid: `uid-${name}`, creationTimestamp: at(more.created ?? 0), resourceVersion: '1', labels: more.labels ?? { app: name } },
    spec: { image: 'registry.example/tools:1.4', command: more.command ?? ['make', '-j8', 'all'], desiredState: phase === 'Paused' ? 'Paused' : 'Running', ...more.spec },
    status: {
      phase, attempt: 1, attempts: [attempt], message: more.message ?? (phase === 'Failed' ? 'the program exited with code 7' : undefined),
      ...(isOver ? { exitCode: attempt.exit.code, duration: '1m30s', finishedAt: at(94) } : {}), ...(attempt.startedAt ? { startedAt: at(4) } : {}),
      conditions: [
        { type: 'Scheduled', status: phase === 'Pending' ? 'False' : 'True', reason: phase === 'Pending' ? 'Unschedulable' : 'Scheduled', message: 'on node-a', lastTransitionTime: at(2) },
        { type: 'Started', status: attempt.startedAt ? 'True' : 'False', reason: 'Started', message: 'the program was launched', lastTransitionTime: at(4) },
        ...(isOver ? [{ type: 'OutputSealed', status: 'True', reason: 'Sealed', message: 'the archive holds every byte', lastTransitionTime: at(95) }] : []),
      ],
      ...more.status,
    },
  };
}

/** Lines of a build, with colors, standard error, and text that is hostile. */
export const demo = [
  ['stdout', '\x1b[1;34m==>\x1b[0m Resolving 214 packages\n'],
  ...Array.from({ length: 40 }, (_, index) => ['stdout', `\x1b[32m Compiling\x1b[0m module-${String(index).padStart(2, '0')} v1.${index}.0 \x1b[2m(crates/module-${index})\x1b[0m\n`]),
  ['stderr', '\x1b[33mwarning\x1b[0m: unused variable: `limit` in src/queue.rs:88\n'],
  ['stdout', 'progress 10%\rprogress 60%\rprogress 100%\n'],
  ['stdout', '<img src=x onerror="document.title=\'hacked\'"> is text \u202e and cannot turn around\n'],
  ['stdout', '\x1b]0;title\x07\x1b[2J\x1b[38;5;208mtests\x1b[0m ….........…  日本語 ✅\n'],
  ['stderr', '\x1b[1;31merror\x1b[0m: connection to cache-3 refused, trying cache-4\n'],
  ['stdout', '\x1b[1;32m   Finished\x1b[0m 214 packages in 1m 28s\n'],
];

export class Fake {
  processes = [process('build-7f3a', 'Running'), process('import-orders', 'Succeeded', { created: -400 }), process('migrate-schema', 'Failed', { created: -900 })];
  allowed = { 'create/signal': true, 'create/attach': true, 'create/exec': true, 'patch/': true };
  chunks = demo;
  /** Keeps the output open after its last chunk. */
  isRunning = true;
  gapAfter = -1;
  calls = [];
  /** The terminals so far, the last one last. */
  terminals = [];
  /** What a terminal shows first. */
  screen = '$ ';
  /** Who has the input of the processes. */
  holder = '';
  /** The answer to a terminal that is opened, instead of one. */
  denial = null;
  #upgrades = new WebSocketServer({ noServer: true });
  #watchers = new Set();
  #followers = new Set();
  #sockets = new Set();

  async start(port = 0) {
    this.server = createServer((request, response) => this.#answer(request, response).catch((error) => { response.statusCode = 500; response.end(String(error)); }));
    this.server.on('upgrade', (request, socket, head) => this.#upgrades.handleUpgrade(request, socket, head, (found) => this.#terminal(new URL(request.url, 'http://x').pathname, found)));
    this.server.on('connection', (socket) => { this.#sockets.add(socket); socket.on('close', () => this.#sockets.delete(socket)); });
    await new Promise((resolve) => this.server.listen(port, '127.0.0.1', resolve));
    this.port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.port}`;
    return this;
  }

  /** Open streams. */
  get open() { return this.#followers.size + this.#watchers.size; }

  /** Ends all connections, and takes no new ones. */
  async stop() {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.server.close(resolve));
  }

  /** Writes more output. */
  write(stream, text) {
    this.chunks = [...this.chunks, [stream, text]];
    for (const follower of this.#followers) follower();
  }

  end() {
    this.isRunning = false;
    for (const follower of this.#followers) follower();
  }

  change(process) {
    this.processes = [...this.processes.filter(({ metadata }) => metadata.uid !== process.metadata.uid), process];
    for (const watcher of this.#watchers) watcher({ type: 'MODIFIED', object: process });
  }

  async #answer(request, response) {
    const url = new URL(request.url, 'http://x');
    const path = url.pathname;
    response.setHeader('X-Content-Type-Options', 'nosniff');
    const json = (body, status = 200, kind = 'application/json') => { response.writeHead(status, { 'Content-Type': kind }); response.end(JSON.stringify(body)); };
    const body = ['POST', 'PATCH'].includes(request.method) ? JSON.parse(await text(request)) : null;
    if (body && !path.includes('selfsubject')) this.calls.push({ method: request.method, path, body });
    if (path === '/session.json') return json({ namespace: 'default', cluster: 'https://cluster.example:6443/', user: 'alice', version: '0.1.0' });
    if (path === '/api/v1/namespaces') return json({ items: ['default', 'team-a'].map((name) => ({ metadata: { name } })) });
    if (path.endsWith('/events')) return json({ items: [{ type: 'Normal', reason: 'Started', message: 'The program was launched', lastTimestamp: at(4), metadata: { creationTimestamp: at(4) } }] });
    if (path.endsWith('/selfsubjectaccessreviews')) {
      const { verb, subresource = '' } = body.spec.resourceAttributes;
      return json({ status: { allowed: this.allowed[`${verb}/${subresource}`] ?? false } });
    }
    if (path.startsWith('/apis/remoteprocess.dev/') && request.method === 'GET') return this.#objects(url, response, json);
    if (path.startsWith('/apis/remoteprocess.dev/')) return json({});
    if (/^\/v1\/.*\/(stop|signal)$/.test(path)) return this.#control(response, json);
    if (path.startsWith('/v1/')) return this.#output(url, response);
    const name = path === '/' ? 'index.html' : path.slice(1);
    response.writeHead(200, { 'Content-Type': TYPES[name.split('.').at(-1)] ?? 'text/plain', 'Content-Security-Policy': POLICY });
    response.end(readFileSync(new URL(name, DIST)));
  }

  /** A terminal that shows what is typed. Output waits for the page's confirmation, as that of rproc. */
  #terminal(path, socket) {
    const [, , , name, kind] = path.split('/');
    const waiting = [];
    let sent = 0;
    let isOver = false;
    const say = (told) => {
      isOver ||= ['exit', 'error'].includes(told.type);
      socket.send(JSON.stringify(told));
      if (isOver) socket.close(1000);
    };
    const flush = () => {
      while (waiting.length && sent + waiting[0].length - terminal.shown <= WINDOW) {
        sent += waiting[0].length;
        socket.send(waiting.shift());
      }
    };
    const terminal = {
      name, kind, open: null, input: '', sizes: [], shown: 0, hasEnded: false, isClosed: false, say,
      write: (text) => {
        const bytes = Buffer.from(text);
        for (let begin = 0; begin < bytes.length; begin += 32768) waiting.push(bytes.subarray(begin, begin + 32768));
        flush();
      },
    };
    this.terminals.push(terminal);
    let taken = 0;
    const hear = {
      open: (open) => {
        terminal.open = open;
        if (this.denial) return say(this.denial);
        say({ type: 'live' });
        if (this.holder && !open.takeOver && kind === 'attach') say({ type: 'input', state: 'held', message: `${this.holder} is writing into the process` });
        terminal.write(this.screen);
      },
      resize: ({ rows, columns }) => terminal.sizes.push([rows, columns]),
      taken: ({ bytes }) => { terminal.shown = bytes; flush(); },
      end: () => { terminal.hasEnded = true; },
    };
    socket.on('message', (data, isBinary) => {
      if (!isBinary) return hear[JSON.parse(data).type](JSON.parse(data));
      if (data.length > 65536) socket.close(1009);
      terminal.input += data;
      taken += data.length;
      // A program that is busy for a moment.
      setTimeout(() => { if (!isOver && socket.readyState === 1) say({ type: 'taken', bytes: taken }); }, 1);
    });
    socket.on('close', () => { terminal.isClosed = true; });
    socket.on('error', () => {});
  }

  #control(response, json) {
    if (this.refusal) return json({ status: 403, title: 'Forbidden', code: 'PermissionDenied', ...this.refusal }, 403, 'application/problem+json');
    response.writeHead(204).end();
  }

  #objects(url, response, json) {
    const name = url.searchParams.get('fieldSelector')?.split('=')[1];
    const label = url.searchParams.get('labelSelector')?.split('=');
    const has = ({ metadata }) => (!name || metadata.name === name) && (!label || metadata.labels[label[0]] === label[1]);
    if (!url.searchParams.has('watch')) return json({ metadata: { resourceVersion: '1' }, items: this.processes.filter(has) });
    response.writeHead(200, { 'Content-Type': 'application/json' });
    response.flushHeaders();
    const watcher = (change) => has(change.object) && response.write(JSON.stringify(change) + '\n');
    this.#watchers.add(watcher);
    response.on('close', () => this.#watchers.delete(watcher));
  }

  /** The cursor is the number of the next chunk. */
  #output(url, response) {
    response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
    response.flushHeaders();
    let next = Number(url.searchParams.get('offset') || 0);
    const offsets = { stdout: 0, stderr: 0 };
    for (const [stream, text] of this.chunks.slice(0, next)) offsets[stream] += Buffer.byteLength(text);
    const send = () => {
      for (; next < this.chunks.length && !response.destroyed; next++) {
        const [stream, text] = this.chunks[next];
        const time = new Date(BEGIN + 4000 + next * 250).toISOString();
        const record = { type: 'data', stream, offset: offsets[stream], time, ...(text instanceof Buffer ? { base64: text.toString('base64') } : { text }), cursor: String(next + 1) };
        offsets[stream] += Buffer.byteLength(text);
        response.write(JSON.stringify(record) + '\n');
        if (next === this.gapAfter) {
          response.write(JSON.stringify({ type: 'gap', stream: 'stdout', from: offsets.stdout, to: offsets.stdout + 4096, reason: 'SpoolFull', cursor: String(next + 1) }) + '\n');
        }
      }
      if (!this.isRunning) response.end(JSON.stringify({ type: 'end', running: false, outcome: 'code', exitCode: 0, reason: 'Completed', message: '', sealed: true, cursor: String(next) }) + '\n');
    };
    this.#followers.add(send);
    response.on('close', () => this.#followers.delete(send));
    send();
  }
}

async function text(request) {
  let all = '';
  for await (const part of request) all += part;
  return all;
}
