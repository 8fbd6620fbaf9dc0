import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { command } from '../../ts/cli/analyze.js';
import { parse } from '../../ts/cli/command.js';
import { calls, logs, recordings, replay, text } from './reference.js';

const folder = mkdtempSync(join(tmpdir(), 'memslots-'));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

async function run(...args: string[]): Promise<{ status: number; output: string }> {
  const write = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
  try {
    const { values, operands } = parse(command, args);
    const status = await command.run(values, operands);
    return { status, output: write.mock.calls.map(([chunk]) => String(chunk)).join('') };
  } finally {
    write.mockRestore();
  }
}

const recording = (name: string) => new URL(name, recordings).pathname;

describe('memslots analyze', () => {
  it('--json prints one object with the figures of a plain replay', async () => {
    for (const name of logs) {
      const { status, output } = await run('--json', recording(name));
      const expected = replay(calls(text(name)));
      const found = JSON.parse(output);
      expect(status).toBe(0);
      expect(found).toMatchObject({
        format: name.includes('strace') ? 'strace' : 'qemu',
        vms: 1,
        updates: calls(text(name)).length,
        transactions: expected.transactions,
        failures: 0,
        maxSlots: expected.maxSlots,
        engine: { policy: 'stable' },
      });
      // The planner never needs more calls than QEMU made, nor windows where nothing overlaps.
      expect(found.engine.ioctls).toBeLessThanOrEqual(found.updates);
      expect(found.engine.ioctls).toBeGreaterThan(0);
      const byPlace = (a: { transaction: number; gpa: number }, b: typeof a) =>
        a.transaction - b.transaction || a.gpa - b.gpa;
      expect(found.holes.sort(byPlace)).toEqual(expected.holes.sort(byPlace));
      expect(Object.keys(found.holes[0]).sort()).toEqual(['as', 'gpa', 'micros', 'reshape', 'size', 'transaction']);
    }
  });

  it('reads gzip, and says the same', async () => {
    const path = file('log.gz', gzipSync(text('boot-pc-qemu7.2.log')));
    expect(await run('--json', path)).toEqual(await run('--json', recording('boot-pc-qemu7.2.log')));
  });

  it('as text, begins with the totals and lists findings worst first', async () => {
    const { output } = await run(recording('boot-pc-qemu10.0.log'));
    expect(output).toContain(
      '1 VM, 39 slot calls in 9 transactions: 0 failed, 0 changed nothing; at most 9 slots in use\n',
    );
    expect(output).toContain(
      'Findings, worst first\n  error   at 1.933 s: 767 MiB at 0x100000 unmapped for 847 µs while being re-mapped to the same memory; a vCPU touching it would have seen an MMIO exit\n',
    );
  });

  it('--limit shortens the lists and says what is left out', async () => {
    const { output } = await run('--limit', '2', recording('boot-pc-qemu10.0.log'));
    expect(output).toContain('… and 7 more');
    const json = JSON.parse((await run('--json', '--limit', '2', recording('boot-pc-qemu10.0.log'))).output);
    expect([json.holes.length, json.totalHoles, json.timeline.length, json.transactions]).toEqual([2, 24, 2, 9]);
  });

  it('--perfetto writes a trace that is complete, or none', async () => {
    const path = join(folder, 'out.json');
    await run('--json', '--perfetto', path, recording('churn-pc-qemu7.2.log'));
    expect(JSON.parse(readFileSync(path, 'utf8')).traceEvents.length).toBeGreaterThan(362);
    rmSync(path);
    const torn = file('torn.log', text('boot-pc-qemu7.2.log').slice(0, 1000));
    await expect(run('--perfetto', path, torn)).rejects.toThrow(/line \d+ can't be read/);
    expect([existsSync(path), existsSync(`${path}.partial`)]).toEqual([false, false]);
    await expect(run('--perfetto', join(folder, 'none', 'out.json'), torn)).rejects.toThrow(/can't be written: ENOENT/);
  });

  it('a torn log is an error with its line, or a counted skip', async () => {
    const torn = file('torn.log', text('boot-pc-qemu7.2.log').slice(0, 1000));
    const lines = text('boot-pc-qemu7.2.log').slice(0, 1000).split('\n').length;
    await expect(run(torn)).rejects.toThrow(new RegExp(`^line ${lines} can't be read`));
    expect(JSON.parse((await run('--lenient', '--json', torn)).output).counts).toMatchObject({ lines, malformed: 1 });
  });

  it('a file that holds nothing known, or is missing, is named', async () => {
    await expect(run(file('words.txt', 'some\nwords\n'))).rejects.toThrow(
      /none of the 2 lines of .*words\.txt is of a kind known here/,
    );
    await expect(run(file('empty.txt', ''))).rejects.toThrow(/none of the 0 lines/);
    await expect(run(join(folder, 'missing'))).rejects.toThrow(/can't be read: ENOENT/);
    await expect(run()).rejects.toThrow('analyze takes one LOG');
  });
});
