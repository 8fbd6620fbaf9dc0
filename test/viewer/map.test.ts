import { createReadStream, readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import type { Browser, Locator, Page } from 'playwright-core';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startViewServer } from '../../ts/cli/view-server.js';
import { readTrace, toJson } from '../../ts/trace/index.js';
import { missingBrowser, startBrowser } from './browser.js';
import { builtPage, leavePage, type OpenedPage, openPage, tipOf } from './opened-page.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const churn = `${root}/test/data/qemu/churn-pc-qemu10.0.log`;
/** A slot of one page far above the others. */
const far = 2 ** 51 + 0x1000;
const farLog = [
  'kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x80000000 ua=0x7f0000000000 ret=0',
  `kvm_set_user_memory Slot#7 flags=0x2 gpa=0x${far.toString(16)} size=0x1000 ua=0x7f1000003000 ret=0`,
  'kvm_set_user_memory Slot#8 flags=0x0 gpa=0xffffffffff000 size=0x1000 ua=0x7f1000009000 ret=0',
].join('\n');
const tree = [
  'FlatView #0',
  ' AS "I/O", root: io',
  ' Root memory region: io',
  '  0000000000000000-000000000000ffff (prio 0, i/o): io',
  '',
  'FlatView #1',
  ' AS "memory", root: system',
  ' Root memory region: system',
  '  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM',
  '  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem',
  '  00000000000c0000-0000000007ffffff (prio 0, rom): pc.bios @00000000000c0000 KVM',
  '',
  '',
].join('\n');

const missing = missingBrowser();
let browser: Browser;
let opened: OpenedPage | undefined;
let stop: (() => Promise<void>) | undefined;

beforeAll(async () => {
  if (missing === undefined) browser = await startBrowser();
});
afterAll(() => browser?.close());
beforeEach((context) => {
  if (missing !== undefined) context.skip(missing);
  return async () => {
    if (opened !== undefined) await leavePage(opened);
    await stop?.();
    opened = undefined;
    stop = undefined;
  };
});

/** The page with `text` to show, or with nothing. */
async function show(text: string | undefined, options?: Parameters<typeof openPage>[2]): Promise<Page> {
  const trace = text === undefined ? undefined : { name: 'log', live: false, open: () => Readable.from([text]) };
  const server = await startViewServer(builtPage(), trace);
  stop = () => server.close();
  opened = await openPage(browser, server.url, options);
  return opened.page;
}

const map = (page: Page) => page.getByLabel('Map of guest-physical memory');
/** Where a lane's middle is: the lanes share the height between the addresses above and the sizes below. */
const laneY = (height: number, lane: number, lanes: number) => 34 + ((height - 56) * (lane + 0.5)) / lanes;

async function ask(page: Page, address: string): Promise<string> {
  await page.getByRole('searchbox').fill(address);
  await page.keyboard.press('Enter');
  const answer = page.locator('.answer', { hasText: `0x${address.replace(/^0x/, '')}:` });
  await answer.waitFor();
  return await answer.innerText();
}

/** Hovers over what lies above the first slot until it is `wanted`; its pixel from the left of the screen. */
async function find(page: Page, canvas: Locator, lane: number, wanted: string): Promise<number> {
  const box = (await canvas.boundingBox())!;
  for (let x = 600; x < box.width; x += 3) {
    await page.mouse.move(box.x + x, box.y + laneY(box.height, lane, 5));
    if ((await tipOf(page)).includes(wanted)) return box.x + x;
  }
  throw new Error(`${wanted} is nowhere`);
}

describe('the map', () => {
  test('has what is drawn where the pointer finds it, up to the right edge', async () => {
    const page = await show(farLog);
    const canvas = map(page);
    const box = (await canvas.boundingBox())!;
    const y = laneY(box.height, 4, 5);
    /** Colours along a line through the lane of host memory, a CSS pixel each, as the screen shows them. */
    const colours = await canvas.evaluate((element, line) => {
      const drawn = element as HTMLCanvasElement;
      const shown = drawn.getBoundingClientRect();
      const [across, down] = [drawn.width / shown.width, drawn.height / shown.height];
      const row = drawn.getContext('2d')!.getImageData(0, Math.floor(line * down), drawn.width, 1).data;
      return Array.from({ length: Math.floor(shown.width) }, (_, x) => {
        const at = 4 * Math.floor((x + 0.5) * across);
        return row.slice(at, at + 3).join();
      });
    }, y - 14);
    const slot = await find(page, canvas, 4, 'Slot 8');
    const colour = colours[Math.round(slot - box.x) + 6]!;
    const edge = colours.indexOf(colour);
    // Another 3 pixels, by which find() steps, and one of slack.
    expect(Math.abs(edge - (slot - box.x))).toBeLessThanOrEqual(4);
    expect(edge).toBeGreaterThan(box.width / 2);
  });

  test.for(['wheel', 'keys', 'pinch'] as const)(
    'shows one page at 2^51 alone, and its address exactly, by %s',
    async (how) => {
      const page = await show(farLog, { viewport: { width: 1280, height: 720 }, hasTouch: how === 'pinch' });
      const canvas = map(page);
      const box = (await canvas.boundingBox())!;
      const lane = 3;
      const y = box.y + laneY(box.height, lane, 5);
      const x = (await find(page, canvas, lane, `0x${far.toString(16)}`)) + 40;
      await page.mouse.move(x, y);
      if (how === 'wheel') for (let turn = 0; turn < 20; turn++) await page.mouse.wheel(0, -500);
      else if (how === 'keys') {
        await canvas.focus();
        for (const key of ['ArrowDown', 'ArrowDown', 'ArrowDown', 'ArrowDown', 'n']) await page.keyboard.press(key);
        for (let turn = 0; turn < 20; turn++) await page.keyboard.press('+');
      } else await pinch(page, x, y, 4);
      const extent = `GPA 0x${far.toString(16)} – 0x${(far + 0xfff).toString(16)} Size 4 KiB (0x1000) Slot 7`;
      // The page is as wide as the map: nothing else is within hundreds of pixels.
      let moves = 0;
      for (const at of [x - 250, x + 150]) {
        // Moved until it is told: a wheel's turns come after the call that made them.
        await expect
          .poll(async () => {
            await page.mouse.move(at, y + (++moves % 2));
            return await tipOf(page);
          })
          .toContain(extent);
      }
      await page.screenshot({ path: `${root}/test/artefacts/one-page-${how}.png` });
      await page.getByRole('button', { name: 'Show all' }).click();
      await page.mouse.move(box.x + 200, y);
      await expect.poll(() => tipOf(page)).toContain('GPA 0x0 – 0x7fffffff');
    },
  );

  test('says of an empty place what never was there', async () => {
    const page = await show(farLog);
    await find(page, map(page), 2, `Never used 0x80000000 – 0x${(far - 1).toString(16)}`);
  });
});

describe('an answer', () => {
  test('stays true while time goes on', async () => {
    const page = await show(readFileSync(churn, 'utf8'));
    const slider = page.getByRole('slider', { name: 'Transaction' });
    await slider.fill('0');
    expect(await ask(page, 'fffc0000')).toContain('nobody backs it');
    await page.getByRole('button', { name: 'Next transaction' }).click();
    await page.locator('.answer', { hasText: '0xfffc0000: slot 3' }).waitFor();
    await page.getByRole('button', { name: 'Previous transaction' }).click();
    await page.locator('.answer', { hasText: 'nobody backs it' }).waitFor();
  });
});

/** Two fingers around (`x`, `y`), moved apart until they are `factor` times as far from each other, several times. */
async function pinch(page: Page, x: number, y: number, factor: number): Promise<void> {
  const session = await page.context().newCDPSession(page);
  const fingers = (apart: number) => [
    { x: x - apart, y, id: 0 },
    { x: x + apart, y, id: 1 },
  ];
  for (let turn = 0; turn < 10; turn++) {
    await session.send('Input.dispatchTouchEvent', { type: 'touchStart', touchPoints: fingers(30) });
    for (let step = 1; step <= 6; step++) {
      const touchPoints = fingers(30 * factor ** (step / 6));
      await session.send('Input.dispatchTouchEvent', { type: 'touchMove', touchPoints });
    }
    await session.send('Input.dispatchTouchEvent', { type: 'touchEnd', touchPoints: [] });
  }
}

describe('a file that is dropped', () => {
  const drop = (page: Page, name: string, text: string) =>
    page.evaluate(
      ([fileName, content]) => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([content!], fileName!));
        document.body.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true }));
      },
      [name, text],
    );

  test('may be `info mtree -f`: regions, flat view and slots, and no change where nothing was before', async () => {
    const page = await show(undefined);
    await drop(page, 'tree.txt', tree);
    await page.getByText('tree.txt · mtree · 1 transaction').waitFor();
    expect(await page.locator('.recording .sentence').innerText()).toContain('first snapshot shows: 4 ranges');
    // One moment: nothing to move through.
    expect(await page.getByRole('slider', { name: 'Transaction' }).count()).toBe(0);
    expect(await ask(page, 'c0000')).toContain('pc.bios + 0xc0000 (0xc0000 – 0x7ffffff); a KVM slot backs it');
    expect(await ask(page, '0xa0010')).toContain('vga-lowmem + 0x10 (0xa0000 – 0xbffff); no slot: an access is MMIO');
    await page.getByRole('tab', { name: 'Table' }).click();
    expect(await page.locator('.table tr.created').count()).toBe(0);
    expect(await page.locator('.table tr.kept').count()).toBe(3);
  });

  test('may be JSON of this library, and shows what the log shows it was made from', async () => {
    const lines: string[] = [];
    for await (const event of readTrace(createReadStream(churn))) lines.push(toJson(event));
    const page = await show(undefined);
    await drop(page, 'events.json', `${lines.join('\n')}\n`);
    await page.getByText('events.json · json · 244 transactions').waitFor();
    expect(await page.locator('.transport .place').innerText()).toMatch(/^2 of 244 · 435 µs · 4 slots/);
  });
});
