// Headless Chromium of the Linux distribution.
import { existsSync } from 'node:fs';
import { chromium } from 'playwright-core';

export const EXECUTABLE = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) => existsSync(path));

export function launch() {
  // Chromium has no sandbox for root.
  return chromium.launch({ executablePath: EXECUTABLE, args: process.getuid() === 0 ? ['--no-sandbox'] : [] });
}

/** A page that fails on any error of a script and on any violation of the policy. */
export async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: 'en-US', timezoneId: 'UTC', ...options });
  const page = await context.newPage();
  page.faults = [];
  page.on('pageerror', (error) => page.faults.push(String(error)));
  page.on('console', (message) => {
    if (message.type() === 'error' && !/Failed to load resource|ERR_CONNECTION/.test(message.text())) page.faults.push(message.text());
  });
  return page;
}
