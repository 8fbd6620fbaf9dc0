import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readViews } from '../ts/memory/flat-text.js';
import { buildCli, runCli } from './built-cli.js';

const { snapshots } = JSON.parse(
  gunzipSync(readFileSync(new URL('data/qemu/machines-qemu7.2.json.gz', import.meta.url))).toString(),
) as { snapshots: { machine: string; tree: string; flat: string }[] };
const machine = snapshots.find(({ machine }) => machine === 'microvm, PCI')!;
const other = snapshots.find(({ machine }) => machine === 'pc, SMM')!;

const directory = mkdtempSync(join(tmpdir(), 'memslots-flatten-'));
const file = join(directory, 'tree.txt');
let cli = '';

beforeAll(async () => {
  cli = await buildCli();
  writeFileSync(file, machine.tree);
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe('memslots flatten', () => {
  test('prints what QEMU prints, less the KVM marks', async () => {
    const { status, stdout, stderr } = await runCli(cli, ['flatten', file]);
    expect([status, stderr]).toEqual([0, '']);
    const blocks = (text: string) => text.trimEnd().split(/\r?\n\r?\n/);
    // QEMU numbers the views, and orders the spaces of one, as its hash tables have them.
    const canonical = (block: string) =>
      block
        .replace(/^FlatView #\d+/, '')
        .replaceAll(' KVM', '')
        .split(/\r?\n/)
        .sort()
        .join('\n');
    expect(blocks(stdout).map(canonical).sort()).toEqual(blocks(machine.flat.trimStart()).map(canonical).sort());
    expect(stdout.endsWith('\n\n')).toBe(true);
  });

  test('prints JSON by address space, from standard input too', async () => {
    const fromFile = await runCli(cli, ['flatten', '--json', file]);
    const fromInput = await runCli(cli, ['flatten', '-', '--json'], machine.tree);
    expect(fromInput).toEqual(fromFile);
    const { addressSpaces } = JSON.parse(fromFile.stdout) as { addressSpaces: Record<string, unknown[]> };
    const flat = readViews(machine.flat).find(({ addressSpaces }) =>
      addressSpaces.some(({ name }) => name === 'memory'),
    )!;
    expect(addressSpaces.memory).toEqual(
      flat.ranges.map(({ gpa, size, kind, region, offset }) => ({
        gpa,
        size,
        kind,
        region,
        offset,
        readonly: kind === 'rom',
      })),
    );
  });

  test('prints inexact numbers as decimal strings', async () => {
    const tree = 'address-space: m\n  0000000000000000-ffffffffffffffff (prio 0, rom): x\n';
    const { stdout } = await runCli(cli, ['flatten', '--json', '-'], tree);
    const range = { gpa: 0, size: '18446744073709551616', kind: 'rom', region: 'x', offset: 0, readonly: true };
    expect(JSON.parse(stdout)).toEqual({ addressSpaces: { m: [range] } });
  });

  test('--diff prints what goes and what comes, and says so if nothing does', async () => {
    const moved = machine.tree.replaceAll('00000000fec10000-00000000fec10fff', '00000000fec20000-00000000fec20fff');
    expect(moved).not.toBe(machine.tree);
    const text = await runCli(cli, ['flatten', file, '--diff', '-'], moved);
    for (const name of ['memory', 'cpu-memory-0']) expect(text.stdout).toContain(`address-space: ${name}\n`);
    expect(text.stdout).toContain(
      '- 00000000fec10000-00000000fec10fff (prio 0, i/o): ioapic\n+ 00000000fec20000-00000000fec20fff (prio 0, i/o): ioapic\n',
    );
    const json = JSON.parse((await runCli(cli, ['flatten', file, '--json', '--diff', '-'], moved)).stdout);
    expect(json.addressSpaces.memory).toEqual({
      removed: [{ gpa: 0xfec10000, size: 0x1000, kind: 'i/o', region: 'ioapic', offset: 0, readonly: false }],
      added: [{ gpa: 0xfec20000, size: 0x1000, kind: 'i/o', region: 'ioapic', offset: 0, readonly: false }],
    });
    expect((await runCli(cli, ['flatten', file, '--diff', file])).stdout).toBe('The maps are the same.\n');
    const machines = await runCli(cli, ['flatten', file, '--json', '--diff', '-'], other.tree);
    expect(Object.keys(JSON.parse(machines.stdout).addressSpaces)).toContain('cpu-smm-0');
  });

  test.each([
    [
      'malformed text',
      ['flatten', '-'],
      'address-space: m\n  nonsense\n',
      1,
      "memslots: standard input, line 2: not a region of a memory tree, or only part of one: '  nonsense'\n",
    ],
    ['a file that is not there', ['flatten', '/nonexistent'], '', 1, "memslots: can't read /nonexistent: ENOENT"],
    ['no file', ['flatten'], '', 2, 'memslots: flatten takes one FILE\n'],
    ['standard input twice', ['flatten', '-', '--diff', '-'], '', 2, "memslots: only one of FILE and FILE2 can be '-'"],
  ])('refuses %s', async (_, args, input, status, message) => {
    const ended = await runCli(cli, args, input);
    expect([ended.status, ended.stdout]).toEqual([status, '']);
    expect(ended.stderr).toContain(message);
  });
});
