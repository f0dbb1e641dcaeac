// Takes the pictures of the README.
import { mkdirSync } from 'node:fs';
import { launch, open } from './browser.mjs';
import { at, Fake, process as made } from './server.mjs';

const IMAGES = new URL('../../docs/images/', import.meta.url).pathname;
mkdirSync(IMAGES, { recursive: true });

const fake = await new Fake().start();
fake.processes.push(
  made('train-small', 'Paused', { created: -60, message: 'paused by alice (the license server is down)' }),
  made('nightly-report', 'Pending', { created: -20, message: '0/3 nodes are available: 3 Insufficient memory' }),
  made('reindex', 'Stopping', { created: -200, message: 'stopped by bob through rproc (wrong index)' }),
);
const browser = await launch();
const now = new Date(at(92));

async function picture(name, path, context, prepare = async () => {}) {
  const page = await open(browser, { reducedMotion: 'reduce', ...context });
  await page.clock.setFixedTime(now);
  await page.goto(`${fake.url}/${path}`);
  await prepare(page);
  await page.waitForTimeout(300);
  await page.screenshot({ path: `${IMAGES}${name}.png` });
  await page.context().close();
}

const output = async (page) => {
  await page.getByText('Finished').first().waitFor();
  await page.getByRole('button', { name: 'Times' }).click();
};
const size = { width: 1200, height: 800 };
await picture('ui-list', '', { colorScheme: 'light', viewport: { width: 1200, height: 520 } }, (page) => page.getByText('6 processes').waitFor());
await picture('ui-process', '#/default/build-7f3a', { colorScheme: 'dark', viewport: size }, output);
await picture('ui-phone', '#/default/build-7f3a', { colorScheme: 'light', viewport: { width: 390, height: 800 }, deviceScaleFactor: 2 }, async (page) => {
  await page.getByText('Finished').first().waitFor();
});
fake.screen = [
  '\x1b[1;32mbuild\x1b[0m:\x1b[1;34m/src\x1b[0m$ git log --oneline -3',
  '\x1b[33m9f2c1e7\x1b[0m queue: Bound the number of waiting jobs',
  '\x1b[33m41d00b5\x1b[0m cache: Retry with the next server',
  '\x1b[33mc7a9e02\x1b[0m docs: Explain the limits',
  '\x1b[1;32mbuild\x1b[0m:\x1b[1;34m/src\x1b[0m$ ps -o pid,pcpu,args',
  '    PID %CPU COMMAND', '      1  0.0 /.rproc/entrypoint -- make -j8 all', '      7  0.4 make -j8 all', '     52 98.7 rustc --crate-name queue',
  '\x1b[1;32mbuild\x1b[0m:\x1b[1;34m/src\x1b[0m$ ',
].join('\r\n');
await picture('ui-terminal', '#/default/build-7f3a', { colorScheme: 'dark', viewport: { width: 1200, height: 640 } }, async (page) => {
  await page.getByRole('button', { name: 'Run a command …' }).click();
  await page.getByLabel('Command', { exact: true }).fill('bash');
  await page.getByRole('button', { name: 'Run', exact: true }).click();
  await page.locator('.xterm-rows').getByText('rustc').waitFor();
});
await browser.close();
await fake.stop();
