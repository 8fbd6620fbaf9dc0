import { readFileSync } from 'node:fs';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { expect } from 'vitest';
import { withServer } from '../../ts/core/page-document.js';

export const desktop: BrowserContextOptions = { viewport: { width: 1280, height: 720 }, colorScheme: 'dark' };

/** A page, and all that went wrong on it: errors, and requests to anywhere but `own`. */
export interface OpenedPage {
  readonly page: Page;
  readonly problems: string[];
}

/** Opens the viewer at `url` in a context of its own, and waits until it is ready. */
export async function openPage(browser: Browser, url: string, options = desktop): Promise<OpenedPage> {
  const page = await (await browser.newContext(options)).newPage();
  const problems: string[] = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) problems.push(message.text());
  });
  page.on('pageerror', (error) => problems.push(error.message));
  const own = [new URL(url).protocol === 'file:' ? 'file:' : `${new URL(url).origin}/`, 'blob:', 'data:'];
  page.on('request', (request) => {
    if (!own.some((start) => request.url().startsWith(start))) problems.push(`request: ${request.url()}`);
  });
  await page.goto(url);
  await page.waitForSelector('[data-ready]', { state: 'attached' });
  return { page, problems };
}

/** Closes the page, on which nothing may have gone wrong. */
export async function leavePage({ page, problems }: OpenedPage): Promise<void> {
  await page.context().close();
  expect(problems).toEqual([]);
}

/** The page that was built, for a server. */
export function builtPage(): string {
  return withServer(readFileSync(new URL('../../dist/page/viewer.html', import.meta.url), 'utf8'));
}

/** What the page says under the pointer, or of the chosen range, in one line; empty if it says nothing. */
export async function tipOf(page: Page): Promise<string> {
  const tip = page.locator('.recording .tip');
  return (await tip.isVisible()) ? (await tip.innerText()).replaceAll('\n', ' ') : '';
}
