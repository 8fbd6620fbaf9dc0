import { execFileSync } from 'node:child_process';
import { createReadStream, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { basename, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startViewServer, type ViewServer } from '../../ts/cli/view-server.js';
import { createArena } from '../../ts/core/node.js';
import { readTrace } from '../../ts/trace/index.js';
import { History } from '../../ts/viewer/history.js';
import { Timeline } from '../../ts/viewer/timeline.js';
import { missingBrowser, startBrowser } from './browser.js';
import { builtPage, desktop, leavePage, openPage } from './opened-page.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const log = join(root, 'test/data/qemu/churn-pc-qemu10.0.log');
const artefacts = join(root, 'test/artefacts');
const exported = join(artefacts, 'export.html');
const phone: BrowserContextOptions = {
  viewport: { width: 390, height: 844 },
  colorScheme: 'light',
  deviceScaleFactor: 2,
  hasTouch: true,
};

const missing = missingBrowser();
let browser: Browser;
let server: ViewServer;
let timeline: Timeline;

beforeAll(async () => {
  if (missing !== undefined) return;
  mkdirSync(artefacts, { recursive: true });
  rmSync(exported, { force: true });
  execFileSync(process.execPath, ['dist/cli.js', 'view', '--export', exported, log], { cwd: root });
  server = await startViewServer(builtPage(), { name: basename(log), live: false, open: () => createReadStream(log) });
  timeline = new Timeline();
  for await (const batch of readTrace(createReadStream(log)).batches()) timeline.push(batch);
  browser = await startBrowser();
});

afterAll(async () => {
  await browser?.close();
  await server?.close();
});

beforeEach((context) => {
  if (missing !== undefined) context.skip(missing);
});

const open = (url: string, options = desktop) => openPage(browser, url, options);
const leave = leavePage;
const slider = (page: Page) => page.getByRole('slider', { name: 'Transaction' });
const place = (page: Page) => page.locator('.transport .place').innerText();
const sentence = (page: Page) => page.locator('.recording .sentence').innerText();

describe('a recording on the page', () => {
  test('opens at its first hole, and scrubs to every transaction', async () => {
    const view = await open(server.url);
    const { page } = view;
    const firstHole = timeline.holes.transaction.at(0);
    expect(await place(page)).toContain(`${firstHole + 1} of ${timeline.length}`);
    expect(await sentence(page)).toContain('had no memory');
    for (const transaction of [0, 100, timeline.length - 1]) {
      await slider(page).fill(`${transaction}`);
      expect(await place(page)).toContain(`${transaction + 1} of ${timeline.length}`);
      expect(await place(page)).toContain(` ${timeline.figures(transaction).slots} slot`);
    }
    await page.getByRole('button', { name: 'Previous hole' }).click();
    expect(await sentence(page)).toContain('had no memory');
    await page.getByRole('button', { name: 'Play' }).click();
    await page.waitForFunction((length) => {
      const input = document.querySelector('#viewer')!.shadowRoot!.querySelector<HTMLInputElement>('.strip input')!;
      return Number(input.value) === length - 1;
    }, timeline.length);
    await leave(view);
  });

  test('answers who backs an address as the library does, in the layout of the moment', async () => {
    const view = await open(server.url);
    const { page } = view;
    const history = new History(timeline);
    const { ranges } = timeline;
    const arena = createArena(1 << 20);
    const { wasm } = arena;
    const capacity = 1024;
    const table = arena.allocate(wasm.table_size(capacity));
    const range = arena.allocate(arena.layout.range.bytes);
    const blank = { host: 0, offset: 0, flags: 0, region: 0, since: 0, addressSpace: 0, guestMemfd: -1 };
    for (const transaction of [1, 60, 243]) {
      await slider(page).fill(`${transaction}`);
      wasm.table_init(table, capacity);
      for (const row of history.alive(0, transaction)) {
        const slot = { ...blank, id: ranges.id.at(row), gpa: ranges.gpa.at(row), size: ranges.size.at(row) };
        arena.writeRange(range, slot);
        expect(wasm.insert(table, range)).toBeGreaterThanOrEqual(0);
      }
      for (const text of [
        'c0000',
        '0xC0000',
        '0xfd000000',
        'fffc0000',
        '9ffff',
        'e0000',
        '1fffffff',
        '0',
        '10000000000',
      ]) {
        await page.getByRole('searchbox').fill(text);
        await page.getByRole('button', { name: 'Who backs it?' }).click();
        const answer = page.locator('.answer');
        const gpa = Number.parseInt(text.replace(/^0x/i, ''), 16);
        await page.waitForFunction(
          (start) =>
            document.querySelector('#viewer')!.shadowRoot!.querySelector('.answer')!.textContent!.startsWith(start),
          `0x${gpa.toString(16)}:`,
        );
        const id = wasm.find(table, gpa);
        if (id < 0) expect(await answer.innerText()).toContain('nobody backs it');
        else expect(await answer.innerText()).toContain(`: slot ${id} (`);
      }
    }
    await page.getByRole('searchbox').fill('what?');
    await page.keyboard.press('Enter');
    await page.getByText("'what?' is no address").waitFor();
    await leave(view);
  });

  test('zooms by wheel and drag, tells what lies under the pointer, and shows a finding', async () => {
    const view = await open(server.url);
    const { page } = view;
    const canvas = page.getByLabel('Map of guest-physical memory');
    const box = (await canvas.boundingBox())!;
    const pixels = () => canvas.evaluate((element) => (element as HTMLCanvasElement).toDataURL());
    const whole = await pixels();
    await page.mouse.move(box.x + 300, box.y + 120);
    await page.locator('.recording .tip').getByText(/0x/).first().waitFor();
    await page.mouse.wheel(0, -600);
    await expect.poll(pixels).not.toBe(whole);
    const zoomed = await pixels();
    await page.mouse.move(box.x + 500, box.y + 120);
    await page.mouse.down();
    await page.mouse.move(box.x + 350, box.y + 130, { steps: 4 });
    await page.mouse.up();
    await expect.poll(pixels).not.toBe(zoomed);
    await page.getByRole('button', { name: 'Show all' }).click();
    await page.mouse.move(box.x + 300, box.y + 90);
    await page.mouse.click(box.x + 300, box.y + 100);
    const tip = await page.locator('.recording .tip').innerText();
    expect(tip).toMatch(/GPA\s+0x[0-9a-f]+ – 0x[0-9a-f]+/);
    expect(tip).toMatch(/Size/);
    const finding = page.locator('.findings button').first();
    const text = await finding.innerText();
    await finding.click();
    const transaction = /transaction (\d+)/.exec(text)![1]!;
    expect(await place(page)).toContain(`${transaction} of`);
    await leave(view);
  });

  test('is a table too: what is mapped, and what the transaction did to it', async () => {
    const view = await open(server.url);
    const { page } = view;
    await page.getByRole('tab', { name: 'Table' }).click();
    const history = new History(timeline);
    const transaction = timeline.holes.transaction.at(0);
    const rows = page.locator('.table tbody tr');
    const figures = timeline.figures(transaction);
    expect(await rows.count()).toBe(history.alive(0, transaction).length + figures.deletes);
    expect(await page.locator('.table tr.deleted').count()).toBe(figures.deletes);
    expect(await page.locator('.table tr.created').count()).toBe(figures.creates);
    await leave(view);
  });

  test('is used by keyboard alone', async () => {
    const view = await open(server.url);
    const { page } = view;
    const focused = () =>
      page.evaluate(() => {
        const active = document.querySelector('#viewer')!.shadowRoot!.activeElement;
        return active?.getAttribute('aria-label') ?? active?.textContent ?? '';
      });
    const tabTo = async (name: string): Promise<void> => {
      for (let presses = 0; presses < 40; presses++) {
        if ((await focused()) === name) return;
        await page.keyboard.press('Tab');
      }
      throw new Error(`no ${name} within reach of Tab`);
    };
    await tabTo('Map of guest-physical memory');
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('ArrowDown');
    const status = page.locator('.map .unseen[aria-live]').first();
    expect(await status.innerText()).toMatch(/^Slots before\. GPA 0x0/);
    for (const key of ['n', 'p', '+', '+', 'ArrowRight', 'ArrowLeft', '-', 'z', '0']) await page.keyboard.press(key);
    await tabTo('Next transaction');
    const before = await place(page);
    await page.keyboard.press('Enter');
    expect(await place(page)).not.toBe(before);
    await tabTo('Transaction');
    await page.keyboard.press('End');
    expect(await place(page)).toContain(`${timeline.length} of ${timeline.length}`);
    await tabTo('Findings');
    await page.keyboard.press('ArrowRight');
    await page.locator('.table tbody tr').first().waitFor();
    const outline = await page.evaluate(() => {
      const active = document.querySelector('#viewer')!.shadowRoot!.activeElement!;
      return getComputedStyle(active).outlineStyle;
    });
    expect(outline).toBe('solid');
    await leave(view);
  });
});

describe('an export', () => {
  test('opens from disk without a network, and shows the same', async () => {
    const view = await open(pathToFileURL(exported).href);
    const { page } = view;
    expect(await place(page)).toContain(`of ${timeline.length}`);
    expect(await page.evaluate(() => globalThis.crossOriginIsolated)).toBe(false);
    await page.getByRole('searchbox').fill('fffc0000');
    await page.keyboard.press('Enter');
    await page.getByText('0xfffc0000: slot').waitFor();
    const reached = await page.evaluate(
      (url) =>
        fetch(url)
          .then(() => 'reached')
          .catch(() => 'refused'),
      server.url,
    );
    expect(reached).toBe('refused');
    view.problems.splice(
      0,
      view.problems.length,
      ...view.problems.filter((text) => !/Content Security Policy|connect-src/.test(text)),
    );
    view.problems.splice(0, view.problems.length, ...view.problems.filter((text) => !text.startsWith('request:')));
    await leave(view);
  });

  test('can be made on the page, of what was dropped or served, and opens as the other does', async () => {
    const view = await open(server.url);
    const download = view.page.waitForEvent('download');
    await view.page.getByRole('button', { name: 'Export' }).click();
    const path = join(artefacts, 'export-from-page.html');
    await (await download).saveAs(path);
    await leave(view);
    const policy = /content="([^"]*connect-src[^"]*)"/;
    expect(policy.exec(readFileSync(path, 'utf8'))![1]).toBe(policy.exec(readFileSync(exported, 'utf8'))![1]);
    const again = await open(pathToFileURL(path).href);
    expect(await place(again.page)).toContain(`of ${timeline.length}`);
    await leave(again);
  });
});

describe('the simulation', () => {
  /** Numbers of a row of the figures: naive, atomic. */
  const figures = async (page: Page, name: string): Promise<number[]> => {
    const row = page.locator('.figures tr', { hasText: name });
    return (await row.locator('td').allInnerTexts()).map((text) => Number(text.replaceAll(',', '')));
  };
  const enough = 12;

  const runs = async (page: Page, mode: 'threads' | 'stepper'): Promise<void> => {
    await page.getByRole('tab', { name: 'Try it' }).click();
    await page.waitForSelector(`[data-running="${mode}"]`);
    // One press shows the problem, and offers to take the change back.
    await page.getByRole('button', { name: 'Split' }).click();
    await page.getByRole('button', { name: 'Merge' }).waitFor();
    await expect.poll(async () => (await figures(page, 'Wrong values'))[0], { timeout: 20_000 }).toBeGreaterThan(0);
    await page.locator('.simulation .sentence', { hasText: 'had no memory' }).waitFor();
    await page.getByRole('radio', { name: 'Atomic' }).check();
    await page.getByRole('button', { name: 'Storm' }).click();
    await expect.poll(async () => (await figures(page, 'Windows'))[1], { timeout: 60_000 }).toBeGreaterThan(enough);
    await page.getByRole('button', { name: 'Storm' }).click();
    const reads = (await figures(page, 'Reads'))[1]!;
    await expect.poll(async () => (await figures(page, 'Reads'))[1], { timeout: 20_000 }).toBeGreaterThan(reads);
    const [naive, atomic] = await figures(page, 'Wrong values');
    expect(naive).toBeGreaterThan(0);
    expect(atomic).toBe(0);
  };

  test('shows wrong values with naive updates and none with atomic ones, in threads', async () => {
    const view = await open(server.url);
    expect(await view.page.evaluate(() => globalThis.crossOriginIsolated)).toBe(true);
    await runs(view.page, 'threads');
    await view.page.screenshot({ path: join(artefacts, 'simulation-threads.png') });
    await view.page.getByRole('button', { name: 'Play the recording' }).click();
    await view.page.getByText(/Transaction \d+ of 244/).waitFor();
    await view.page.getByRole('button', { name: 'Storm' }).click();
    await expect
      .poll(async () => (await figures(view.page, 'Wrong values'))[0], { timeout: 60_000 })
      .toBeGreaterThan(0);
    await leave(view);
  });

  test('does the same without shared memory, opened from a file, and says so', async () => {
    const view = await open(pathToFileURL(exported).href);
    await runs(view.page, 'stepper');
    await view.page.getByText('This page isn’t cross-origin isolated').waitFor();
    await leave(view);
  });
});

describe('everybody', () => {
  const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

  interface Violation {
    readonly id: string;
    readonly impact: string;
    readonly nodes: readonly { readonly html: string; readonly failureSummary: string }[];
  }

  const looks: [string, BrowserContextOptions][] = [
    ['1280x720-dark', desktop],
    ['1280x720-light', { ...desktop, colorScheme: 'light' }],
    ['phone', phone],
    ['phone-dark', { ...phone, colorScheme: 'dark' }],
  ];

  test.for(looks)('can use the page: axe finds nothing serious, nothing is cut off (%s)', async ([name, options]) => {
    const view = await open(server.url, options);
    const { page } = view;
    const check = async (what: string): Promise<void> => {
      await page.waitForTimeout(100);
      const whole = await page.evaluate(() => document.querySelector('#viewer')!.scrollHeight);
      // What scrolls is the viewer, not the document: a screenshot of all of it takes a screen of that height.
      if (name.startsWith('phone')) await page.setViewportSize({ width: 390, height: Math.max(844, whole) });
      await page.screenshot({ path: join(artefacts, `${what}-${name}.png`) });
      await page.setViewportSize(options.viewport!);
      const wide = await page.evaluate(() => document.querySelector('#viewer')!.scrollWidth - innerWidth);
      expect(wide, `${what} is wider than the screen`).toBeLessThanOrEqual(0);
      await page.evaluate(axe);
      const violations = (await page.evaluate('axe.run().then(({ violations }) => violations)')) as Violation[];
      const serious = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
      expect(
        serious.map(({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => html + failureSummary)]),
      ).toEqual([]);
    };
    await check('recording');
    await page.getByRole('tab', { name: 'Table' }).click();
    await check('table');
    await page.getByRole('tab', { name: 'Legend' }).click();
    await check('legend');
    await page.getByRole('tab', { name: 'Try it' }).click();
    await page.waitForSelector('[data-running]');
    await page.getByRole('button', { name: 'Split' }).click();
    await page.locator('.simulation .sentence', { hasText: 'had no memory' }).waitFor();
    await check('simulation');
    await leave(view);
  });

  test('would be told by axe of a slider without a name (the control)', async () => {
    const { page } = await open(server.url);
    await slider(page).evaluate((input) => input.removeAttribute('aria-label'));
    await page.evaluate(axe);
    const violations = (await page.evaluate('axe.run().then(({ violations }) => violations)')) as Violation[];
    expect(violations.map(({ id }) => id)).toContain('label');
    await page.context().close();
  });

  test('gets a first page that says what to do, and an error that says what is wrong', async () => {
    const empty = await startViewServer(builtPage(), undefined);
    const page = await (await browser.newContext(desktop)).newPage();
    await page.goto(empty.url);
    await page.getByText('In between, a running vCPU finds a hole').waitFor();
    await page.screenshot({ path: join(artefacts, 'first-page.png') });
    const file = {
      name: 'bad.log',
      mimeType: 'text/plain',
      buffer: Buffer.from('kvm_set_user_memory Slot#0 flags=zz\n'),
    };
    await page.locator('input[type=file]').setInputFiles(file);
    await page
      .getByRole('alert')
      .getByText(/bad.log: line 1 can't be read/)
      .waitFor();
    await page.evaluate(
      (text) => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([text], 'dropped.log'));
        document.body.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true }));
      },
      readFileSync(log, 'utf8'),
    );
    await page.getByText(`dropped.log · qemu · ${timeline.length} transactions`).waitFor();
    expect(await page.getByRole('alert').count()).toBe(0);
    await page.context().close();
    await empty.close();
  });
});

test('another page shows a trace with one call', async () => {
  const files: Record<string, [string, string | Buffer]> = {
    '/': [
      'text/html',
      '<!doctype html><title>x</title><link rel="icon" href="data:,"><div id="slots" style="height: 500px"></div><script type="module" src="/own.js"></script>',
    ],
    '/own.js': [
      'text/javascript',
      `import { mount, readTrace } from '/viewer.js';
       const { body } = await fetch('/log');
       const viewer = mount(document.querySelector('#slots'), readTrace(body), { name: 'a log' });
       await viewer.ready;
       globalThis.viewer = viewer;`,
    ],
    '/viewer.js': ['text/javascript', readFileSync(join(root, 'dist/page/viewer.js'))],
    '/log': ['text/plain', readFileSync(log)],
  };
  const host = createServer((request, response) => {
    const [type, body] = files[request.url ?? ''] ?? ['text/plain', ''];
    response.setHeader('content-type', type);
    response.end(body);
  });
  await new Promise<void>((resolve) => host.listen(0, '127.0.0.1', resolve));
  const page = await (await browser.newContext(desktop)).newPage();
  const problems: string[] = [];
  page.on('pageerror', (error) => problems.push(error.message));
  await page.goto(`http://127.0.0.1:${(host.address() as AddressInfo).port}/`);
  await page.waitForSelector('#slots[data-ready]');
  expect(await place(page)).toContain(`of ${timeline.length}`);
  // In an element of a phone's width it is laid out as on a phone, whatever the screen's width is.
  const below = () =>
    page.evaluate(() => {
      const part = (name: string) => document.querySelector('#slots')!.shadowRoot!.querySelector(name)!;
      return part('.side').getBoundingClientRect().top >= part('.stage').getBoundingClientRect().bottom;
    });
  expect(await below()).toBe(false);
  await page.locator('#slots').evaluate((slots) => slots.setAttribute('style', 'height: 500px; width: 400px'));
  expect(await below()).toBe(true);
  expect(await page.evaluate('viewer.close(), document.querySelector("#slots").shadowRoot.childElementCount')).toBe(0);
  expect(problems).toEqual([]);
  await page.context().close();
  host.close();
});
