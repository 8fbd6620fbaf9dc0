import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { buildCli, runCli } from '../built-cli.js';

const log = 'test/data/qemu/boot-pc-qemu10.0.log';
const cli = await buildCli();

async function replay(...args: string[]) {
  const { status, stdout, stderr } = await runCli(cli, ['replay', ...args]);
  return { status, stdout, stderr };
}

describe('memslots replay', () => {
  it('says the same for people as with --json, the layout that it ends with included', async () => {
    const [text, json] = [await replay(log), await replay('--json', log)];
    expect([text.status, text.stderr, json.status, json.stderr]).toEqual([0, '', 0, '']);
    const figures = JSON.parse(json.stdout);
    expect(text.stdout).toContain(`ioctls              ${figures.ioctls} (${figures.creates} creates, `);
    expect(text.stdout).toMatch(new RegExp(`^inhibit windows +${figures.inhibits} \\(`, 'm'));
    const layout = text.stdout.split('final layout\n')[1]!.trim().split('\n');
    expect(layout).toHaveLength(figures.finalLayout.length);
    expect(figures.finalLayout.length).toBeGreaterThan(3);
    const readonly = figures.finalLayout.filter(({ flags }: { flags: number }) => flags & 2);
    expect(layout.filter((line) => line.includes(' read-only'))).toHaveLength(readonly.length);
  });

  it('cuts slots where it is told to, and nowhere with none', async () => {
    const figures = async (points: string) => {
      const { stdout } = await replay('--json', '--split-points', points, log);
      return JSON.parse(stdout) as { bytesRemapped: number; maxSlots: number };
    };
    const [none, some, pc] = [await figures('none'), await figures('0x4000000,134217728'), await figures('pc')];
    // Two more slots, and what lies beyond the cuts stays where it is.
    expect(some.maxSlots).toBe(none.maxSlots + 2);
    expect(some.bytesRemapped).toBeLessThan(none.bytesRemapped / 10);
    expect(pc.bytesRemapped).toBeLessThan(some.bytesRemapped / 10);
  });

  it.each(['0x800', 'here', '4096,', '-4096'])('refuses %j as split points', async (points) => {
    const { status, stdout, stderr } = await replay(`--split-points=${points}`, log);
    expect([status, stdout]).toEqual([2, '']);
    expect(stderr).toContain('--split-points takes pc, none, or page-aligned addresses');
  });

  it('reads the standard input', async () => {
    const { status, stdout } = await runCli(cli, ['replay', '--json', '-'], readFileSync(log, 'utf8'));
    expect([status, stdout]).toEqual([0, (await replay('--json', log)).stdout]);
  });
});
