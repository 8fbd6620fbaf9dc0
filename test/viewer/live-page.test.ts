import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type { Browser, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { followPrograms, followQemu } from '../../ts/cli/view-live.js';
import { startViewServer } from '../../ts/cli/view-server.js';
import { Machine, MemoryRegion, shareMachine } from '../../ts/index.js';
import { LiveQemu, whyNoQemu } from '../qemu/live-qemu.js';
import { missingBrowser, startBrowser } from './browser.js';
import { builtPage, leavePage, openPage } from './opened-page.js';

const artefacts = fileURLToPath(new URL('../artefacts', import.meta.url));
const missing = missingBrowser();
const mebibyte = 1 << 20;
let browser: Browser;
let folder: string;

beforeAll(async () => {
  if (missing === undefined) browser = await startBrowser();
  mkdirSync(artefacts, { recursive: true });
});
afterAll(() => browser?.close());
beforeEach((context) => {
  if (missing !== undefined) context.skip(missing);
  folder = mkdtempSync(join(tmpdir(), 'memslots-live-'));
  vi.stubEnv('XDG_RUNTIME_DIR', folder);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

const place = (page: Page) => page.locator('.transport .place').innerText();
const sentence = (page: Page) => page.locator('.recording .sentence').innerText();

/** Exports what the page shows, opens that from disk, and does `check` there. */
async function exported(page: Page, name: string, check: (page: Page) => Promise<void>): Promise<void> {
  const download = page.waitForEvent('download');
  await page.getByRole('button', { name: 'Export' }).click();
  const path = join(artefacts, name);
  await (await download).saveAs(path);
  expect(readFileSync(path, 'utf8')).toContain("connect-src 'none'");
  const view = await openPage(browser, pathToFileURL(path).href);
  await check(view.page);
  await leavePage(view);
}

test('a program is followed as it runs, and what was seen of it can be exported', async () => {
  const source = await followPrograms(() => {});
  const server = await startViewServer(builtPage(), source.trace);
  const machine = await Machine.create({ backend: 'simulated', policy: 'exact', simulated: { memoryBytes: 1 << 25 } });
  try {
    const view = await openPage(browser, server.url);
    const { page } = view;
    await page.getByText('a program: waiting for the first event').waitFor();
    expect(await page.getByRole('button', { name: 'Export' }).isDisabled()).toBe(true);
    const ram = MemoryRegion.ram(machine.map, 'ram', mebibyte, { memory: machine.allocate(8 * mebibyte) });
    machine.transaction(() => machine.system.add(ram, 0x100000));
    await shareMachine(machine);
    machine.transaction(() => ram.setSize(2 * mebibyte));
    await expect.poll(() => place(page)).toContain('2 of 2');
    expect(await sentence(page)).toMatch(/1 MiB at 0x100000 had no memory .*all vCPUs were held.*none could see it/);
    machine.updates = 'naive';
    machine.transaction(() => ram.setSize(3 * mebibyte));
    await expect.poll(() => place(page)).toContain('3 of 3');
    expect(await sentence(page)).toMatch(/2 MiB at 0x100000 had no memory .*reads garbage or dies/);
    // Whoever is in the list of findings stays there when more comes.
    await page.getByRole('button', { name: /^✖ .* transaction 3$/ }).focus();
    machine.transaction(() => ram.setSize(4 * mebibyte));
    await expect.poll(() => place(page)).toContain('4 of 4');
    const focused = await page.evaluate(
      () => document.querySelector('#viewer')!.shadowRoot!.activeElement?.textContent ?? 'nothing',
    );
    expect(focused).toContain('transaction 3');
    await page.screenshot({ path: join(artefacts, 'live-program.png') });
    await exported(page, 'live-program.html', async (copy) => {
      expect(await copy.locator('.about').innerText()).toContain('json · 4 transactions');
      // An export is whole: it can be looked at from its beginning, and has the findings of its end.
      await copy.getByRole('slider', { name: 'Transaction' }).fill('1');
      expect(await sentence(copy)).toContain('none could see it');
      await copy.getByText(/2 MiB at 0x100000 unmapped/).waitFor();
    });
    await leavePage(view);
  } finally {
    await machine.close();
    await server.close();
    source.close();
  }
});

test('a QEMU is followed by its QMP socket, and what was seen of it can be exported', async (context) => {
  const why = whyNoQemu();
  if (why !== undefined) context.skip(why);
  const qemu = await LiveQemu.start(['-machine', 'pc', '-m', '256']);
  qemu.qmp.close();
  const source = await followQemu(qemu.qmpPath, () => {});
  const server = await startViewServer(builtPage(), source.trace);
  try {
    const view = await openPage(browser, server.url);
    const { page } = view;
    await page.getByText('What the first snapshot shows').waitFor();
    await page.getByRole('searchbox').fill('c0000');
    await page.keyboard.press('Enter');
    await page.getByText('0xc0000: pc.rom + 0x0').waitFor();
    // The chipset's register that decides who answers there: RAM now, for reads and writes.
    await qemu.configure(0, 0x5a, 0x33, 'b');
    await page.getByText(/0xc0000: pc.ram \+ 0xc0000/).waitFor();
    expect(await place(page)).toContain('2 of 2');
    await page.screenshot({ path: join(artefacts, 'live-qemu.png') });
    await exported(page, 'live-qemu.html', async (copy) => {
      expect(await copy.locator('.about').innerText()).toContain('2 transactions');
      expect(await sentence(copy)).toContain('What the first snapshot shows');
    });
    await leavePage(view);
  } finally {
    source.close();
    await server.close();
    await qemu.stop();
  }
});
