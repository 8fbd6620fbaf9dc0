import { readdirSync, readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { formatTextRange, readViews } from '../../ts/memory/flat-text.js';
import { flatten, viewsOf } from '../../ts/memory/flatten.js';
import { compare } from './compare.js';

const folder = new URL('../data/qemu/', import.meta.url);

interface Recording {
  readonly snapshots: readonly { readonly step: number; readonly tree: string; readonly flat: string }[];
}

interface Machines {
  readonly snapshots: readonly {
    readonly machine: string;
    readonly tree: string;
    readonly treeWithDisabled: string;
    readonly flat: string;
  }[];
}

function read<T>(file: string): T {
  return JSON.parse(gunzipSync(readFileSync(new URL(file, folder))).toString());
}

const files = readdirSync(folder).filter((file) => file.endsWith('.snaps.json.gz'));

describe('recorded states of a real QEMU', () => {
  test('are 900', () => {
    expect(files.reduce((sum, file) => sum + read<Recording>(file).snapshots.length, 0)).toBe(900);
  });

  test.each(files)('%s: the tree comes to the flat view of the same moment', (file) => {
    for (const { step, tree, flat } of read<Recording>(file).snapshots) {
      const spaces = compare(tree, flat);
      expect(spaces.find(({ name }) => name === 'memory')?.fromFlat.length).toBeGreaterThan(4);
      for (const { name, fromTree, fromFlat } of spaces) expect(fromTree, `step ${step}, ${name}`).toEqual(fromFlat);
    }
  });

  test('differ from the flat view once one digit of an alias is changed', () => {
    const { tree, flat } = read<Recording>(files[0]!).snapshots[0]!;
    const changed = tree.replaceAll(
      '@pc.bios 0000000000020000-000000000003ffff',
      '@pc.bios 0000000000010000-000000000002ffff',
    );
    expect(changed).not.toBe(tree);
    const memory = compare(changed, flat).find(({ name }) => name === 'memory')!;
    expect(memory.fromTree).not.toEqual(memory.fromFlat);
  });
});

/** Each map as lines: its root, then its ranges, sorted so that the order of equally named spaces doesn't matter. */
function mapsByName(views: ReturnType<typeof readViews>): string[] {
  const lines = views.flatMap(({ addressSpaces, root, ranges }) => {
    const text = ranges.map((range) => formatTextRange({ ...range, kvm: false })).join('\n');
    return addressSpaces.map((space) => `${space.name}, ${space.root}, ${root}\n${text}`);
  });
  return lines.sort();
}

describe('machines of many kinds', () => {
  const { snapshots } = read<Machines>('machines-qemu7.2.json.gz');

  // PAM ranges of these are in their reset state, so no alias is read-only and the text loses nothing.
  test.each(snapshots)('$machine: every address space is printed as QEMU prints it, i/o included', ({ tree, flat }) => {
    expect(mapsByName(viewsOf(flatten(tree)))).toEqual(mapsByName(readViews(flat)));
  });

  test('mostly have disabled regions to show', () => {
    const withDisabled = snapshots.filter(({ treeWithDisabled }) => treeWithDisabled.includes('[disabled]'));
    expect(withDisabled.length).toBeGreaterThan(5);
  });

  test.each(snapshots)('$machine: so it is from a tree that shows disabled regions', ({ treeWithDisabled, flat }) => {
    expect(mapsByName(viewsOf(flatten(treeWithDisabled)))).toEqual(mapsByName(readViews(flat)));
  });

  test.each(snapshots)('$machine: the tree cut off within a line is refused, or says all the same', ({ tree }) => {
    const key = (text: string) =>
      JSON.stringify(flatten(text).map(({ key, ranges }) => [key, ranges.map(formatTextRange)]));
    const whole = key(tree);
    const cuts = Array.from({ length: 60 }, (_, index) => Math.floor(((index + 0.5) * tree.length) / 60));
    let refused = 0;
    for (const cut of cuts.filter((at) => !'\r\n'.includes(tree[at]!) && tree[at - 1] !== '\n')) {
      try {
        expect(key(tree.slice(0, cut))).toBe(whole);
      } catch (error) {
        expect((error as Error).message).toMatch(/^line \d+: /);
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(40);
  });
});
