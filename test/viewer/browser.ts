import { accessSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';

const executable = '/usr/bin/chromium';

/** Why there is no browser to test in, undefined if there is one. */
export function missingBrowser(): string | undefined {
  try {
    accessSync(executable);
    return undefined;
  } catch {
    return `there is no ${executable} (Debian's package chromium)`;
  }
}

/** Starts Chromium, without anything that would reach for the network. */
export async function startBrowser(): Promise<Browser> {
  const quiet = ['--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-quic'];
  return await chromium.launch({
    executablePath: executable,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', ...quiet],
  });
}
