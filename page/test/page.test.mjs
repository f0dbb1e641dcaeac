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
      }));
    }
  }
});
