import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { EXECUTABLE, launch, open } from './browser.mjs';
import { demo, Fake, process as made } from './server.mjs';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const VIEW = '.view';

if (!EXECUTABLE) {
  console.log('LEFT OUT: the tests of the page, because there is no Chromium; on Debian: apt-get install chromium');
  process.exit(0);
}

let browser;
before(async () => { browser = await launch(); });
after(() => browser.close());

/** Runs a test with a server and a page, and checks at the end that nothing has failed in the page. */
async function using(options, body) {
  const fake = await new Fake().start();
  Object.assign(fake, options.fake);
  const page = await open(browser, options.context);
  try {
    await page.goto(`${fake.url}/${options.at ?? ''}`);
    await body(page, fake);
    assert.deepEqual(page.faults, []);
  } finally {
    await page.context().close();
    await fake.stop();
  }
}

const has = (page, text) => page.getByText(text).first().waitFor();
/** Where a chunk of stdout begins. */
const offset = (chunk) => demo.slice(0, chunk).reduce((sum, [, text]) => sum + Buffer.byteLength(text), 0);
const rows = (page) => page.locator('.row .text').allTextContents();

describe('list', () => {
  test('filters by phase, label and name, and is live', () => using({}, async (page, fake) => {
    await has(page, '3 processes in namespace default');
    await page.getByLabel('Name', { exact: true }).fill('import');
    await has(page, '1 of 3 processes');
    await page.getByLabel('Name', { exact: true }).fill('');
    await page.getByLabel('Phase').selectOption('Failed');
    await has(page, '1 of 3 processes');
    assert.match(page.url(), /phase=Failed/);
    fake.change(made('build-7f3a', 'Failed'));
    await has(page, '2 of 3 processes');
    await page.getByLabel('Phase').selectOption('');
    await page.getByLabel('Labels').fill('app=import-orders');
    await page.getByLabel('Labels').press('Enter');
    await has(page, '1 process in namespace default');
    await page.getByRole('link', { name: 'import-orders' }).click();
    await page.getByRole('heading', { level: 1, name: 'import-orders' }).waitFor();
  }));

  test('an address has the filters', () => using({ at: '#/?namespace=&name=migrate' }, async (page) => {
    await has(page, '1 of 3 processes in all namespaces');
    assert.equal(await page.getByLabel('Name', { exact: true }).inputValue(), 'migrate');
  }));
});

describe('output', () => {
  test('colors, streams, overwritten lines and hostile text', () => using({ at: '#/default/build-7f3a' }, async (page) => {
    await has(page, 'Finished');
    await page.locator(VIEW).evaluate((view) => { view.scrollTop = 0; });
    await has(page, 'Resolving 214 packages');
    assert.equal(await page.locator('.row .f4.bold').first().textContent(), '==>');
    await page.getByRole('link', { name: 'From the beginning' }).waitFor();
    await page.locator(VIEW).press('End');
    await has(page, '<img src=x');
    const text = (await rows(page)).join('\n');
    assert.match(text, /^progress 100%$/m);
    assert.match(text, /is text \ufffd and/);
    assert.match(text, /^tests/m);
    assert.equal(await page.locator('.row img').count(), 0);
    assert.equal(await page.locator('.row.stderr').count() > 0, true);
    assert.match(await page.title(), /^build-7f3a/);
  }));

  test('follows, and counts new lines when scrolled up', () => using({ at: '#/default/build-7f3a' }, async (page, fake) => {
    await has(page, 'Finished');
    fake.write('stdout', 'while following\n');
    await has(page, 'while following');
    await page.locator(VIEW).evaluate((view) => { view.scrollTop = 0; });
    await has(page, 'Resolving 214 packages');
    for (let index = 0; index < 5; index++) fake.write('stdout', `later ${index}\n`);
    const more = page.getByRole('button', { name: '5 new lines' });
    await more.waitFor();
    assert.equal((await rows(page)).includes('later 4'), false);
    await more.click();
    await has(page, 'later 4');
    await more.waitFor({ state: 'hidden' });
    fake.end();
    await has(page, 'End of the output: exit code 0');
    await page.locator('.status', { hasText: 'Ended' }).waitFor();
  }));

  test('text that is selected stays selected while lines arrive', () => using({ at: '#/default/build-7f3a' }, async (page, fake) => {
    await has(page, 'Finished');
    const selected = () => page.evaluate(() => String(getSelection()));
    await page.locator('.row', { hasText: 'Finished' }).locator('.text').selectText();
    const before = await selected();
    assert.match(before, /Finished/);
    fake.write('stdout', 'after the selection\n');
    await page.locator('.row', { hasText: 'after the selection' }).waitFor({ state: 'attached' });
    assert.equal(await selected(), before);
    await page.evaluate(() => getSelection().removeAllRanges());
    fake.write('stdout', 'and on\n');
    await page.waitForFunction(() => { const view = document.querySelector('.view'); return view.scrollTop + view.clientHeight >= view.scrollHeight - 1; });
  }));

  test('the keyboard searches and makes a link', () => using({ at: '#/default/build-7f3a' }, async (page) => {
    await has(page, 'Finished');
    await page.locator(VIEW).focus();
    await page.keyboard.press('/');
    await page.keyboard.type('module-05');
    await page.keyboard.press('Enter');
    await page.locator('mark.current').first().waitFor();
    await page.keyboard.press('Escape');
    await page.keyboard.press('l');
    await page.locator('.row.target', { hasText: 'module-05' }).waitFor();
    assert.match(page.url(), /from=\d+&at=stdout/);
  }));

  test('a link shows its line, and the search finds others', () => using({ at: `#/default/build-7f3a?attempt=1&from=20&at=stdout:${offset(25) + 3}` }, async (page) => {
    const target = page.locator('.row.target');
    await target.waitFor();
    assert.match(await target.textContent(), /module-24/);
    await page.getByLabel('Search in the output').fill('MODULE-30');
    await has(page, '1 found');
    await page.keyboard.press('Enter');
    await page.locator('mark.current', { hasText: 'module-30' }).first().waitFor();
    await page.locator('.row', { hasText: 'module-31' }).locator('.gutter').click();
    const address = page.url();
    assert.match(address, /at=stdout%3A\d+/);
    await page.goto('about:blank');
    await page.goto(address);
    await page.locator('.row.target', { hasText: 'module-31' }).waitFor();
  }));

  test('gaps and bytes that are no text are shown', () => using({
    at: '#/default/build-7f3a',
    fake: { gapAfter: 1, chunks: [['stdout', 'a\n'], ['stdout', 'b\n'], ['stdout', Buffer.from([0xe2, 0x82])], ['stdout', Buffer.from([0xac, 0x20, 0xff, 0x0a])], ['stdout', '\x00\x1b\x07end\n']] },
  }, async (page) => {
    await has(page, '4,096 bytes of stdout from offset 4 are missing (SpoolFull)');
    const text = await rows(page);
    assert.ok(text.includes('€ \ufffd'), text.join('|'));
    assert.ok(text.includes('␀␛␇end'), text.join('|'));
  }));

  test('a relay that dies and comes back: nothing is lost or doubled', () => using({ at: '#/default/build-7f3a', fake: { chunks: [['stdout', 'one\n'], ['stdout', 'two\n']] } }, async (page, fake) => {
    await has(page, 'two');
    await fake.stop();
    await page.locator('.status', { hasText: 'Reconnecting' }).waitFor();
    fake.chunks = [...fake.chunks, ['stdout', 'three\n']];
    fake.isRunning = false;
    await fake.start(fake.port);
    await has(page, 'End of the output');
    assert.deepEqual((await rows(page)).slice(0, 3), ['one', 'two', 'three']);
    await page.locator('p.problem').waitFor({ state: 'hidden' });
  }));

  test('a window in the background gives up its connections, and catches up', () => using({}, async (page, fake) => {
    await page.clock.install();
    await page.goto(`${fake.url}/#/default/build-7f3a`);
    await has(page, 'Finished');
    assert.equal(fake.open, 2);
    const turn = (state) => page.evaluate((state) => {
      Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }, state);
    await turn('hidden');
    await page.clock.fastForward(25_000);
    while (fake.open > 0) await new Promise((resolve) => setTimeout(resolve, 10));
    fake.write('stdout', 'in the background\n');
    await turn('visible');
    await has(page, 'in the background');
    assert.equal((await rows(page)).filter((text) => text.includes('Finished')).length, 1);
    await page.locator('.status', { hasText: 'Live' }).waitFor();
  }));

  test('a million lines scroll without jank', { timeout: 110_000 }, () => using({ at: '#/default/build-7f3a?from=', fake: { isRunning: false, chunks: Array.from({ length: 500 }, (_, index) => ['stdout', Array.from({ length: 2000 }, (_, line) => `line ${index * 2000 + line} of a long output with some text in it\n`).join('')]) } }, async (page) => {
    await page.evaluate(() => {
      globalThis.longest = 0;
      new PerformanceObserver((list) => { for (const entry of list.getEntries()) globalThis.longest = Math.max(globalThis.longest, entry.duration); }).observe({ entryTypes: ['longtask'] });
    });
    await page.getByText('End of the output').first().waitFor({ timeout: 90_000 });
    const read = await page.evaluate(() => globalThis.longest);
    await page.evaluate(() => { globalThis.longest = 0; });
    assert.ok((await rows(page)).some((text) => text.startsWith('line 999999 ')));
    for (const part of [0.5, 0.25, 0.75, 0]) {
      await page.locator(VIEW).evaluate((view, part) => { view.scrollTop = view.scrollHeight * part; }, part);
      await page.waitForFunction((part) => {
        const first = /line (\d+)/.exec(document.querySelector('.row .text')?.textContent ?? '');
        return first && Math.abs(Number(first[1]) - part * 1e6) < 2000;
      }, part);
    }
    assert.ok(await page.locator('.row').count() < 120);
    const scrolled = await page.evaluate(() => globalThis.longest);
    console.log(`longest task: ${read} ms while reading, ${scrolled} ms while scrolling`);
  }));
});

describe('control', () => {
  test('stop sends the reason', () => using({ at: '#/default/build-7f3a' }, async (page, fake) => {
    await page.getByRole('button', { name: 'Stop …' }).click();
    await page.getByLabel('Reason (shown').fill('not needed');
    await page.getByRole('button', { name: 'Stop', exact: true }).click();
    await page.locator('dialog').waitFor({ state: 'detached' });
    assert.deepEqual(fake.calls, [{ method: 'POST', path: '/v1/namespaces/default/processes/build-7f3a/stop', body: { message: 'not needed' } }]);
  }));

  test('pause changes the object', () => using({ at: '#/default/build-7f3a' }, async (page, fake) => {
    await page.getByRole('button', { name: 'Pause …' }).click();
    await page.getByRole('button', { name: 'Pause', exact: true }).click();
    await page.locator('dialog').waitFor({ state: 'detached' });
    assert.deepEqual(fake.calls[0]?.body, { metadata: { uid: 'uid-build-7f3a', annotations: { 'remoteprocess.dev/reason': null } }, spec: { desiredState: 'Paused' } });
    fake.change(made('build-7f3a', 'Paused'));
    await page.getByRole('button', { name: 'Resume' }).waitFor();
  }));

  test('a refusal names the missing rule', () => using({
    at: '#/default/build-7f3a',
    fake: { refusal: { detail: 'user "alice" may not create remoteprocesses/signal', missingRule: { kind: 'Role', namespace: 'default', apiGroups: ['remoteprocess.dev'], resources: ['remoteprocesses/signal'], verbs: ['create'] } } },
  }, async (page) => {
    await page.getByRole('button', { name: 'Signal …' }).click();
    await page.getByRole('combobox', { name: 'Signal' }).selectOption('HUP');
    await page.getByRole('button', { name: 'Signal', exact: true }).click();
    await has(page, 'resources: ["remoteprocesses/signal"]');
  }));

  test('a viewer sees why the buttons are off', () => using({ at: '#/default/build-7f3a', fake: { allowed: {} } }, async (page, fake) => {
    await has(page, 'You may only look');
    const stop = page.getByRole('button', { name: 'Stop …' });
    assert.equal(await stop.getAttribute('aria-disabled'), 'true');
    await stop.click({ force: true });
    assert.equal(await page.locator('dialog').count(), 0);
    assert.deepEqual(fake.calls, []);
  }));
});

describe('terminal', () => {
  const SCREEN = '.xterm-rows';
  const shell = (more) => made('build-7f3a', 'Running', { spec: { stdin: true, tty: true, ...more } });
  const ATTACHABLE = { at: '#/default/build-7f3a', fake: { processes: [shell()] } };

  async function until(is, what) {
    const limit = Date.now() + 20_000;
    while (!is()) {
      assert.ok(Date.now() < limit, `in time: ${what ?? is}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** Runs a command, and returns its terminal at the server. */
  async function run(page, fake, command) {
    const before = fake.terminals.length;
    await page.getByRole('button', { name: 'Run a command …' }).click();
    await page.getByLabel('Command', { exact: true }).fill(command);
    await page.getByRole('button', { name: 'Run', exact: true }).click();
    await page.getByRole('region', { name: `in build-7f3a` }).getByText('Connected').first().waitFor();
    await until(() => fake.terminals.length > before);
    return fake.terminals.at(-1);
  }

  async function attach(page, fake) {
    await page.getByRole('button', { name: 'Attach', exact: true }).click();
    await page.getByRole('region', { name: 'Attached to' }).waitFor();
    await until(() => fake.terminals.at(-1)?.open);
    return fake.terminals.at(-1);
  }

  test('a command is typed into, shows colors, and ends with its code', () => using({ at: '#/default/build-7f3a' }, async (page, fake) => {
    const terminal = await run(page, fake, 'bash -l');
    assert.equal(terminal.kind, 'exec');
    assert.deepEqual(terminal.open.command, ['bash', '-l']);
    assert.equal(terminal.open.uid, 'uid-build-7f3a');
    assert.ok(terminal.open.size.columns > 80 && terminal.open.size.rows > 10, JSON.stringify(terminal.open));
    await page.keyboard.type('ls é');
    await page.keyboard.press('Enter');
    await page.keyboard.press('Control+C');
    await page.keyboard.press('Tab');
    await until(() => terminal.input === 'ls é\r\x03\t', 'the keys');
    terminal.write('\r\n\x1b[38;2;200;60;60mtrue\x1b[0m \x1b[1;32mgreen\x1b[0m \x1b[48;5;208mback\x1b[0m\r\n');
    await page.locator(SCREEN).getByText('true', { exact: true }).waitFor();
    const color = (text) => page.locator(SCREEN).getByText(text, { exact: true }).evaluate((span) => getComputedStyle(span).color);
    assert.notEqual(await color('true'), await color('green'));
    const [screen, inner] = await Promise.all(['.screen', '.xterm'].map((found) => page.locator(found).boundingBox()));
    assert.ok(inner.y - screen.y < 10 && inner.y + inner.height <= screen.y + screen.height, JSON.stringify([screen, inner]));
    // Style sheets of xterm.js apply in spite of the policy.
    assert.equal(await page.locator(`${SCREEN} span`).first().evaluate((span) => getComputedStyle(span).display), 'inline-block');
    terminal.say({ type: 'exit', code: 3, message: 'the command exited with code 3' });
    await has(page, 'Ended: exit code 3');
    await page.locator(SCREEN).getByText('[the command exited with code 3]').waitFor();
    await page.getByRole('button', { name: 'Run again' }).click();
    await until(() => fake.terminals.length === 2 && fake.terminals[1].open);
    assert.deepEqual(fake.terminals[1].open.command, ['bash', '-l']);
    await page.getByRole('button', { name: 'Close' }).click();
    await until(() => fake.terminals[1].isClosed);
    assert.equal(await page.locator('.terminal-view').count(), 0);
    assert.equal(await page.evaluate(() => document.adoptedStyleSheets.length), 0, 'its styles are gone, too');
  }));

  test('a command with pipes is run by a shell', () => using({ at: '#/default/build-7f3a' }, async (page, fake) => {
    const terminal = await run(page, fake, 'ps | head -3');
    assert.deepEqual(terminal.open.command, ['sh', '-c', 'ps | head -3']);
  }));

  test('the keyboard leaves the terminal, and the size follows the window', () => using(ATTACHABLE, async (page, fake) => {
    const terminal = await attach(page, fake);
    assert.equal(terminal.kind, 'attach');
    const focused = () => page.evaluate(() => document.activeElement.textContent || document.activeElement.className);
    await page.waitForFunction(() => document.activeElement.classList.contains('xterm-helper-textarea'));
    await page.keyboard.press('Control+Shift+Enter');
    assert.equal(await focused(), 'Close');
    assert.equal(terminal.input, '');
    await page.setViewportSize({ width: 700, height: 900 });
    await until(() => terminal.sizes.length > 0, 'a resize');
    assert.ok(terminal.sizes.at(-1)[1] < terminal.open.size.columns);
    await page.keyboard.press('Enter');
    await page.locator('.terminal-view').waitFor({ state: 'detached' });
    await until(() => terminal.isClosed);
  }));

  test('input that another client has is taken over when you say so', () => using({ ...ATTACHABLE, fake: { ...ATTACHABLE.fake, holder: 'bob' } }, async (page, fake) => {
    const first = await attach(page, fake);
    await has(page, 'bob is writing into the process');
    await page.locator('.screen').click();
    await page.keyboard.type('for nobody');
    await page.getByRole('button', { name: 'Take over the input' }).click();
    await until(() => fake.terminals.length === 2 && fake.terminals[1].open);
    assert.equal(first.input, '');
    assert.equal(fake.terminals[1].open.takeOver, true);
    await page.locator('.question').waitFor({ state: 'hidden' });
    await page.waitForFunction(() => document.activeElement.classList.contains('xterm-helper-textarea'));
    await page.keyboard.type('mine');
    await until(() => fake.terminals[1].input === 'mine', 'the keys');
    fake.terminals[1].say({ type: 'input', state: 'held', message: 'carol has taken over the input of the process' });
    await has(page, 'carol has taken over');
    await page.getByRole('button', { name: 'Only watch' }).click();
    await page.locator('.question').waitFor({ state: 'hidden' });
  }));

  test('a connection that breaks comes back, and nothing is typed twice', () => using(ATTACHABLE, async (page, fake) => {
    const first = await attach(page, fake);
    await page.waitForFunction(() => document.activeElement.classList.contains('xterm-helper-textarea'));
    first.say({ type: 'cut', message: 'the relay ended the stream' });
    await has(page, 'Reconnecting: the relay ended the stream');
    first.say({ type: 'live' });
    await page.locator('.terminal-view .status', { hasText: 'Connected' }).waitFor();
    await page.keyboard.type('once');
    await until(() => first.input === 'once');
    await fake.stop();
    await page.locator('.terminal-view .status', { hasText: 'Does it still run?' }).waitFor();
    await page.keyboard.type('dropped');
    await fake.start(fake.port);
    await page.locator('.terminal-view .status', { hasText: 'Connected' }).waitFor();
    await page.keyboard.type('again');
    const last = fake.terminals.at(-1);
    await until(() => last.input === 'again', 'the keys');
    assert.equal(last.open.takeOver, false);
    last.say({ type: 'exit', signal: 'SIGTERM', message: 'build-7f3a was ended by SIGTERM' });
    fake.change(made('build-7f3a', 'Failed'));
    await has(page, 'Ended by SIGTERM');
    await page.getByRole('button', { name: 'Attach' }).first().waitFor({ state: 'detached' });
    await page.keyboard.press('Enter');
    await page.locator('.terminal-view').waitFor({ state: 'detached' });
    assert.equal(await page.evaluate(() => document.activeElement.tagName), 'H1');
  }));

  test('a tab that is closed detaches', () => using(ATTACHABLE, async (page, fake) => {
    const terminal = await attach(page, fake);
    await page.locator(SCREEN).getByText('$').first().waitFor();
    await page.close();
    await until(() => terminal.isClosed);
    assert.equal(terminal.hasEnded, false);
    assert.equal(terminal.input, '');
  }));

  test('a program cannot leave its screen', () => using(ATTACHABLE, async (page, fake) => {
    const terminal = await attach(page, fake);
    const title = await page.title();
    terminal.write('\x1b]0;a title\x07\x1b]52;c;c2VjcmV0\x07<b>bold</b>\x1b[21t\x1b]52;c;?\x07\r\nbehind');
    await page.locator(SCREEN).getByText('<b>bold</b>').waitFor();
    await page.locator(SCREEN).getByText('behind').waitFor();
    assert.equal(await page.title(), title);
    assert.equal(terminal.input, '', 'neither the title nor the clipboard is told');
    const asked = new Promise((resolve) => page.once('dialog', (dialog) => dialog.dismiss().then(() => resolve(dialog.message()))));
    terminal.write('\r\n\x1b]8;;http://evil.example/\x07a link\x1b]8;;\x07');
    await page.locator(SCREEN).getByText('a link').click({ force: true });
    assert.match(await asked, /navigate to http:\/\/evil\.example\//);
    assert.equal(page.context().pages().length, 1);
  }));

  test('the buttons for phones send what the program asked for', () => using({ ...ATTACHABLE, context: { viewport: { width: 390, height: 800 } } }, async (page, fake) => {
    const terminal = await attach(page, fake);
    await page.getByRole('button', { name: 'Control C' }).click();
    await page.getByRole('button', { name: 'Up', exact: true }).click();
    terminal.write('\x1b[?1happlication mode');
    await page.locator(SCREEN).getByText('application mode').waitFor();
    await page.getByRole('button', { name: 'Up', exact: true }).click();
    await until(() => terminal.input === '\x03\x1b[A\x1bOA', 'the keys');
  }));

  test('two megabytes of output and one of input pass the windows', () => using(ATTACHABLE, async (page, fake) => {
    const terminal = await attach(page, fake);
    terminal.write(`${'some output of a program\r\n'.repeat(80_000)}the last line`);
    await page.locator(SCREEN).getByText('the last line').waitFor();
    assert.ok(terminal.shown > 1_700_000, `${terminal.shown}`);
    const pasted = '0123456789abcdef'.repeat(65_536);
    await page.evaluate((text) => {
      const clipboardData = new DataTransfer();
      clipboardData.setData('text/plain', text);
      document.querySelector('.xterm-helper-textarea').dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }));
    }, pasted);
    await until(() => terminal.input.length === pasted.length, 'the paste');
    assert.ok(terminal.input === pasted);
  }));

  test('a process that reads a pipe gets lines', () => using({ at: '#/default/build-7f3a', fake: { processes: [shell({ tty: false })] } }, async (page, fake) => {
    const terminal = await attach(page, fake);
    assert.equal(terminal.open.size, undefined);
    await page.getByLabel('Line to send').fill('a line');
    await page.keyboard.press('Enter');
    await until(() => terminal.input === 'a line\n');
    await page.getByRole('button', { name: 'End of input' }).click();
    await until(() => terminal.hasEnded);
  }));

  test('who may not is told the missing rule', () => using({ ...ATTACHABLE, fake: { ...ATTACHABLE.fake, allowed: { 'create/signal': true, 'patch/': true, 'create/exec': true }, denial: { type: 'error', code: 'PermissionDenied', message: 'alice may not create remoteprocesses/exec.\nThe missing rule:\n  resources: [remoteprocesses/exec]' } } }, async (page, fake) => {
    await has(page, 'Some buttons are off. Missing in namespace default: create remoteprocesses/attach.');
    const button = page.getByRole('button', { name: 'Attach', exact: true });
    assert.equal(await button.getAttribute('aria-disabled'), 'true');
    await button.click({ force: true });
    assert.equal(fake.terminals.length, 0);
    await page.getByRole('button', { name: 'Run a command …' }).click();
    await page.getByRole('button', { name: 'Run', exact: true }).click();
    await has(page, 'resources: [remoteprocesses/exec]');
    await has(page, 'Not allowed');
  }));
});

describe('axe finds nothing', () => {
  for (const colorScheme of ['light', 'dark']) {
    for (const width of [1280, 390]) {
      test(`${colorScheme}, ${width} pixels wide`, () => using({ context: { colorScheme, viewport: { width, height: 800 }, bypassCSP: true } }, async (page, fake) => {
        const check = async (what) => {
          await page.evaluate(AXE);
          const { violations } = await page.evaluate(() => globalThis.axe.run());
          const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).slice(0, 3).join(' ')}`);
          assert.deepEqual(found, [], what);
        };
        await has(page, '3 processes');
        await check('list');
        const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wider <= 0, `the list is ${wider} pixels too wide`);
        await page.goto(`${fake.url}/#/default/build-7f3a`);
        await has(page, 'Finished');
        await page.getByLabel('Search in the output').fill('module');
        await has(page, 'found');
        await check('process');
        const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(over <= 0, `the process is ${over} pixels too wide`);
        await page.getByRole('button', { name: 'Stop …' }).click();
        await check('dialog');
        await page.keyboard.press('Escape');
        await page.getByRole('button', { name: 'Run a command …' }).click();
        await check('command');
        await page.getByRole('button', { name: 'Run', exact: true }).click();
        await page.locator('.xterm-rows').getByText('$').first().waitFor();
        fake.terminals[0].write('\x1b[31mred \x1b[33myellow \x1b[90mgray \x1b[7minverse\x1b[0m\r\n');
        await page.locator('.xterm-rows').getByText('yellow').first().waitFor();
        fake.terminals[0].say({ type: 'input', state: 'held', message: 'bob has the input' });
        await has(page, 'bob has the input');
        await check('terminal');
        const out = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(out <= 0, `the terminal is ${out} pixels too wide`);
        await page.getByRole('button', { name: 'Screen reader' }).click();
        await check('terminal for screen readers');
      }));
    }
  }
});
