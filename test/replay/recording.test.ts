import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Player } from '../../ts/replay/player.js';
import { type Recording, recordingOf } from '../../ts/replay/recording.js';
import { freeAddress, stableRanges } from '../../ts/replay/stable-ranges.js';
import { readTraceFile } from '../../ts/trace/file.js';
import { groupTransactions } from '../../ts/trace/index.js';
import { withMachine } from '../kvm/backends.js';

const folder = 'test/data/qemu';
const logs = readdirSync(folder).filter((name) => name.endsWith('.log') && !name.includes('strace'));
const page = 0x1000;

const read = (name: string): Promise<Recording> => recordingOf(groupTransactions(readTraceFile(`${folder}/${name}`)));

/** The slots that the log's lines leave, by a reader of its own: one regular expression, no grouping. */
function lastLayout(name: string): string[] {
  const slots = new Map<string, string>();
  const line = /(?:AddrSpace#(\d+) )?Slot#(\d+) flags=0x(\w+) gpa=0x(\w+) size=0x(\w+) ua=0x(\w+).*ret=0$/gm;
  for (const [, space, slot, flags, gpa, size, ua] of readFileSync(`${folder}/${name}`, 'utf8').matchAll(line)) {
    const key = `${space ?? '0'}:${slot}`;
    if (size === '0') slots.delete(key);
    else slots.set(key, [gpa, size, flags, ua].join());
  }
  return [...slots.values()].sort();
}

describe.each(logs)('a recording of %s', (name) => {
  it('ends with the slots that its log ends with', async () => {
    const recording = await read(name);
    const layout = new Set<string>();
    const text = (range: Recording['steps'][number]['adds'][number]) =>
      [range.gpa, range.size, range.flags, recording.memories[range.memory]!.hostAddress + range.offset]
        .map((value) => value.toString(16))
        .join();
    for (const { deletes, adds } of recording.steps) {
      for (const range of deletes) expect(layout.delete(text(range))).toBe(true);
      for (const range of adds) layout.add(text(range));
    }
    expect([...layout].sort()).toEqual(lastLayout(name));
  });

  it('plays on a machine, and back to its start: the slots are those of each step', async () => {
    const recording = await read(name);
    await withMachine(
      { backend: 'simulated', policy: 'exact', simulated: { memoryBytes: 2 ** 33, backed: false } },
      (machine) => {
        const player = new Player(machine, recording);
        const layout = new Set<string>();
        const text = ({ gpa, size, flags }: { gpa: number; size: number; flags: number }) => [gpa, size, flags].join();
        const slots = () => machine.slots().map(text).sort();
        for (const { deletes, adds } of recording.steps) {
          player.step();
          for (const range of deletes) layout.delete(text(range));
          for (const range of adds) layout.add(text(range));
          expect(slots()).toEqual([...layout].sort());
        }
        player.step();
        expect(slots()).toEqual(recording.steps[0]!.adds.map(text).sort());
        expect(player.position).toBe(1);
      },
    );
  });

  it('calls those ranges stable which every step leaves alone, page by page', async () => {
    const recording = await read(name);
    const layout = new Set<Recording['steps'][number]['adds'][number]>();
    let stable: Map<number, string> | undefined;
    // The first 2 MiB and a look at every megabyte above tell enough, in little time.
    const sampled = [...Array(512).keys()]
      .map((index) => index * page)
      .concat([...Array(4094).keys()].map((index) => (index + 2) * 0x100000));
    for (const { deletes, adds } of recording.steps) {
      for (const range of deletes) layout.delete(range);
      for (const range of adds) layout.add(range);
      const now = new Map<number, string>();
      for (const range of layout) {
        for (const gpa of sampled) {
          if (gpa >= range.gpa && gpa < range.gpa + range.size)
            now.set(gpa, [range.memory, range.offset + gpa - range.gpa, range.flags].join());
        }
      }
      stable = stable === undefined ? now : new Map([...stable].filter(([gpa, where]) => now.get(gpa) === where));
    }
    const found = new Map<number, string>();
    for (const range of stableRanges(recording)) {
      for (const gpa of sampled) {
        if (gpa >= range.gpa && gpa < range.gpa + range.size)
          found.set(gpa, [range.memory, range.offset + gpa - range.gpa, range.flags].join());
      }
    }
    expect([...found].sort((a, b) => a[0] - b[0])).toEqual([...stable!].sort((a, b) => a[0] - b[0]));
    expect(found.size).toBeGreaterThan(100);
  });
});

describe('a place for a guest', () => {
  it('is one that no step uses, or none', async () => {
    const recording = await read('churn-pc-qemu10.0.log');
    expect(freeAddress(recording, 0x1000, [0x1000, 0x70000000])).toBe(0x70000000);
    expect(freeAddress(recording, 0x1000, [0x1000])).toBeUndefined();
  });
});
