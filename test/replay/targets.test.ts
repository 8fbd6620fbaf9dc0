import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { ReplayFigures } from '../../ts/replay/figures.js';
import { readTraceFile } from '../../ts/trace/file.js';
import { Grouper } from '../../ts/trace/index.js';

const folder = 'test/data/qemu';

function replay(log: string, ...options: string[]): ReplayFigures {
  const out = execFileSync(process.execPath, ['dist/cli.js', 'replay', `${folder}/${log}`, '--json', ...options], {
    encoding: 'utf8',
  });
  return JSON.parse(out);
}

/** The translation that the log itself ends with, merged. */
async function translationOf(log: string) {
  const grouper = new Grouper();
  for await (const event of readTraceFile(`${folder}/${log}`)) grouper.push(event);
  const ranges: { as: number; gpa: number; size: number; hostOffset: number; flags: number }[] = [];
  const slots = [...grouper.layouts.values()][0]!.slots();
  for (const { addressSpace: as, gpa, size, hostAddress: hostOffset, flags } of slots) {
    const last = ranges.at(-1);
    if (
      last &&
      last.as === as &&
      last.flags === flags &&
      last.gpa + last.size === gpa &&
      last.hostOffset + last.size === hostOffset
    )
      last.size += size;
    else ranges.push({ as, gpa, size, hostOffset, flags });
  }
  return ranges;
}

const logs = readdirSync(folder).filter((name) => name.endsWith('.log') && !name.includes('strace'));

function replays(log: string) {
  const stable = replay(log, '--split-points', 'none');
  return { exact: replay(log, '--policy', 'exact'), stable, split: replay(log) };
}

describe.each(logs)('replaying %s', (log) => {
  const { exact, stable, split } = replays(log);

  it('makes the very calls that QEMU made, under policy exact', async () => {
    let updates = 0;
    for await (const event of readTraceFile(`${folder}/${log}`)) if (event.kind === 'slot') updates++;
    expect(exact.ioctls).toBe(updates);
  });

  it('ends with the translation that the log ends with, under every policy', async () => {
    const wanted = await translationOf(log);
    for (const { finalLayout } of [exact, stable, split]) expect(finalLayout).toEqual(wanted);
  });
});

describe('policy stable', () => {
  it.each(logs.filter((log) => log.startsWith('churn')))('disturbs far less than exact on %s', (log) => {
    const { exact, stable, split } = replays(log);
    expect(stable.bytesRemapped).toBeLessThanOrEqual(exact.bytesRemapped / 8);
    expect(stable.ioctls).toBeLessThanOrEqual(exact.ioctls * 0.7);
    expect(stable.inhibitsForOverlap).toBeLessThanOrEqual(exact.inhibitsForOverlap * 0.75);
    expect(stable.maxSlots).toBeLessThanOrEqual(exact.maxSlots + 4);
    expect(split.bytesRemapped).toBeLessThanOrEqual(exact.bytesRemapped / 1000);
    expect(split.ioctls).toBeLessThanOrEqual(exact.ioctls * 0.7);
  });

  it.each(logs.filter((log) => log.startsWith('boot')))('remaps next to nothing with split points on %s', (log) => {
    const { exact, split } = replays(log);
    expect(exact.bytesRemapped).toBeGreaterThan(1e9);
    expect(split.bytesRemapped).toBeLessThanOrEqual(2 * 2 ** 20);
  });
});

describe('replay', () => {
  it.each([
    [['replay'], /takes one LOG/],
    [['replay', 'x', '--split-points', '0x123'], /page-aligned addresses parted by commas, not '0x123'/],
    [['replay', 'x', '--policy', 'best'], /--policy takes one of stable, exact, not 'best'/],
    [['replay', 'no-such-file'], /no-such-file/],
  ])('refuses %j with a line that says why', (args, message) => {
    let stderr = '';
    try {
      execFileSync(process.execPath, ['dist/cli.js', ...args], { encoding: 'utf8', stdio: 'pipe' });
    } catch (error) {
      stderr = (error as { stderr: string }).stderr;
    }
    expect(stderr).toMatch(message);
  });
});
