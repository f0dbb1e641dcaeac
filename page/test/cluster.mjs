// The terminal of the page at a real process. tests/e2e/tests/beside/page.rs makes the process, a shell with its input at a
// terminal, and serves the page to two users: node cluster.mjs LINK_OF_AN_EDITOR LINK_OF_A_VIEWER NAMESPACE NAME
import assert from 'node:assert/strict';
import { launch, open } from './browser.mjs';

const [editorLink, viewerLink, namespace, name] = process.argv.slice(2);
const SCREEN = '.xterm-rows > div';
/** How long anything may take, in milliseconds: pods of other tests start on the same machine. */
const PATIENCE = 30_000;

/** Waits until the screen of the terminal matches, and returns the match. */
async function shows(page, pattern) {
  const find = ([selector, source]) => {
    const lines = [...document.querySelectorAll(selector)].map((line) => line.textContent.replaceAll('\u00a0', ' ').trimEnd());
    return lines.join('\n').match(new RegExp(source, 'm'));
  };
  const shown = await page.waitForFunction(find, [SCREEN, pattern.source]).catch(async (error) => {
    const lines = await page.locator(SCREEN).allTextContents();
    throw new Error(`the screen never shows ${pattern}:\n${lines.join('\n')}`, { cause: error });
  });
  return shown.jsonValue();
}

async function line(page, text) {
  await page.keyboard.type(text);
  await page.keyboard.press('Enter');
}

/** Opens the page by its link, and the process in it. */
async function visit(browser, link) {
  const page = await open(browser);
  page.setDefaultTimeout(PATIENCE);
  await page.goto(link);
  await page.locator('a.logo').waitFor();
  await page.goto(`${new URL(link).origin}/#/${namespace}/${name}`);
  await page.getByRole('heading', { level: 1, name }).waitFor();
  return page;
}

async function attach(page) {
  await page.getByRole('button', { name: 'Attach', exact: true }).click();
  await page.getByRole('region', { name: `Attached to ${name}` }).getByText('Connected').waitFor();
  await page.waitForFunction(() => document.activeElement.classList.contains('xterm-helper-textarea'));
}

async function leave(page) {
  await page.keyboard.press('Control+Shift+Enter');
  await page.keyboard.press('Enter');
  await page.locator('.terminal-view').waitFor({ state: 'detached' });
}

/** The columns of the terminal as its program sees them. */
async function columns(page) {
  await line(page, 'clear; stty size');
  const [, found] = await shows(page, /^\d+ (\d+)$/);
  return Number(found);
}

/** The process itself: keys, colors, sizes; it stays when the user leaves, and ends with the code that they type. */
async function attached(page) {
  await attach(page);
  // The typed line does not match, only what the shell makes of it.
  await line(page, 'kept=é$((40 + 2)); echo "sum=$kept"');
  await shows(page, /^sum=é42$/);
  await line(page, 'printf "\\033[31m%s\\033[0m\\n" r"e"d');
  await shows(page, /^red$/);
  const color = (text) => page.locator('.xterm-rows span').getByText(text, { exact: true }).first().evaluate((span) => getComputedStyle(span).color);
  assert.notEqual(await color('red'), await page.locator('.xterm-rows').evaluate((rows) => getComputedStyle(rows).color));
  const wide = await columns(page);
  assert.ok(wide > 80, `${wide}`);
  await page.setViewportSize({ width: 700, height: 900 });
  const limit = Date.now() + PATIENCE;
  let narrow = wide;
  while (narrow >= wide) {
    assert.ok(Date.now() < limit, `the terminal keeps its ${wide} columns`);
    narrow = await columns(page);
  }
  await page.setViewportSize({ width: 1280, height: 900 });
  // Until the shell has started the command, Ctrl-C is a key of its editor.
  await line(page, 'clear; echo sle""eping; sleep 600');
  await shows(page, /^sleeping$/);
  await page.keyboard.press('Control+C');
  await line(page, 'clear; echo after=$((1 + 1))');
  await shows(page, /^after=2$/);
  await leave(page);
}

/** Another command in the container of the process. */
async function run(page) {
  await page.getByRole('button', { name: 'Run a command …' }).click();
  await page.getByLabel('Command', { exact: true }).fill('sh');
  await page.getByRole('button', { name: 'Run', exact: true }).click();
  const region = page.getByRole('region', { name: `sh in ${name}` });
  await region.getByText('Connected').waitFor();
  await line(page, 'echo "other=${kept-none} at=$(tty)"; stty size');
  await shows(page, /^other=none at=\/dev\/pts\/\d+$/);
  await shows(page, /^\d+ \d+$/);
  await line(page, 'exit 7');
  await region.getByText('Ended: exit code 7').waitFor();
  await region.getByRole('button', { name: 'Close' }).click();
  await page.locator('.terminal-view').waitFor({ state: 'detached' });
}

/** Someone who may look, and no more: the page says so, and the relay refuses those who do not ask the page. */
async function refused(page) {
  const rule = page.getByText('You may only look.');
  await rule.waitFor();
  const text = await rule.textContent();
  for (const right of ['create remoteprocesses/attach', 'create remoteprocesses/exec']) assert.ok(text.includes(right), text);
  const button = page.getByRole('button', { name: 'Run a command …' });
  assert.equal(await button.getAttribute('aria-disabled'), 'true');
  for (const [kind, more] of [['exec', { command: ['true'] }], ['attach', { takeOver: true }]]) {
    const messages = await page.evaluate(([path, first]) => new Promise((resolve) => {
      const heard = [];
      const socket = new WebSocket(`ws://${location.host}${path}`, 'v1.terminal.remoteprocess.dev');
      socket.onopen = () => socket.send(JSON.stringify(first));
      socket.onmessage = ({ data }) => {
        if (typeof data !== 'string') return;
        heard.push(JSON.parse(data));
        if (['refused', 'held', 'closed'].includes(heard.at(-1).state)) socket.close();
      };
      socket.onclose = () => resolve(heard);
    }), [`/terminal/${namespace}/${name}/${kind}`, { type: 'open', size: { rows: 24, columns: 80 }, ...more }]);
    const refusal = messages.find(({ code, state }) => code === 'PermissionDenied' || state === 'refused');
    assert.ok(refusal?.message.includes(`remoteprocesses/${kind}`), `${kind}: ${JSON.stringify(messages)}`);
  }
}

const browser = await launch();
try {
  const [editor, viewer] = await Promise.all([visit(browser, editorLink), visit(browser, viewerLink)]);
  await attached(editor);
  await run(editor);
  await refused(viewer);
  // The same shell as before, in spite of everything.
  await attach(editor);
  await line(editor, 'clear; echo "again=$kept"');
  await shows(editor, /^again=é42$/);
  await line(editor, 'exit 5');
  await editor.getByRole('region', { name: `Attached to ${name}` }).getByText('Ended: exit code 5').waitFor();
  assert.deepEqual([...editor.faults, ...viewer.faults], []);
} finally {
  await browser.close();
}
