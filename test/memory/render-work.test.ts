import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Address, add, address, subtract } from '../../ts/memory/address.js';
import { AddressSpace, MemoryMap } from '../../ts/memory/address-space.js';
import { MemoryRegion } from '../../ts/memory/region.js';

/** A machine with `count` BARs in shuffled order below a PCI container, and as many regions elsewhere. */
function machine(count: number) {
  const map = new MemoryMap();
  const root = MemoryRegion.container(map, 'system', 1n << 64n);
  const pci = MemoryRegion.container(map, 'pci', 1n << 64n);
  const elsewhere = MemoryRegion.container(map, 'elsewhere', 2 ** 40);
  const bars: MemoryRegion[] = [];
  map.transaction(() => {
    root.add(MemoryRegion.ram(map, 'ram', 2 ** 30), 0);
    root.add(pci, 0, { priority: -1 });
    root.add(elsewhere, 2 ** 41);
    for (let index = 0; index < count; index++) {
      const bar = MemoryRegion.mmio(map, `bar ${index}`, 0x1800);
      pci.add(bar, 2 ** 31 + ((index * 7919) % count) * 0x1000, { priority: index % 3 });
      bars.push(bar);
      elsewhere.add(MemoryRegion.ram(map, `ram ${index}`, 0x1000), index * 0x2000);
    }
  });
  return { map, root, bars };
}

function workOf(map: MemoryMap, edit: () => void): { regionVisits: number; comparisons: number } {
  const before = map.renderWork;
  edit();
  const after = map.renderWork;
  return {
    regionVisits: after.regionVisits - before.regionVisits,
    comparisons: after.comparisons - before.comparisons,
  };
}

describe('what rendering costs', () => {
  test('grows less than fifteenfold for ten times as many regions', () => {
    const [small, large] = [1000, 10_000].map((count) => {
      const { map, root } = machine(count);
      return workOf(map, () => new AddressSpace(map, 'memory', root));
    });
    expect(small!.regionVisits).toBeGreaterThan(2000);
    expect(large!.regionVisits / small!.regionVisits).toBeLessThan(15);
    expect(large!.comparisons / small!.comparisons).toBeLessThan(15);
  });

  test('is a few visits for one move among any number of regions, and no look at other subtrees', () => {
    const moves = [1000, 10_000].map((count) => {
      const { map, root, bars } = machine(count);
      new AddressSpace(map, 'memory', root);
      return workOf(map, () => bars[count / 2]!.setAddress(2 ** 31 + 0x800));
    });
    for (const { regionVisits } of moves) expect(regionVisits).toBeLessThan(30);
    expect(moves[1]!.comparisons / moves[0]!.comparisons).toBeLessThan(15);
    // Twice a look at each sibling would be 20,000; the elsewhere regions, as many again, must not appear.
    expect(moves[1]!.comparisons).toBeLessThan(10_000 * 5);
  });

  test('is nothing for an edit that shows nowhere', () => {
    const { map, root, bars } = machine(100);
    new AddressSpace(map, 'memory', root);
    const detached = MemoryRegion.container(map, 'detached', 0x1000);
    const hidden = MemoryRegion.ram(map, 'hidden', 0x1000);
    bars[0]!.setEnabled(false);
    const work = workOf(map, () => {
      detached.add(hidden, 0);
      hidden.setLogging(true);
      bars[0]!.setAddress(0x900000);
      expect(() =>
        map.transaction(() => {
          bars[1]!.setAddress(0x900000);
          throw new Error('undone');
        }),
      ).toThrow('undone');
      hidden.setLogging(false);
    });
    expect(work).toEqual({ regionVisits: 0, comparisons: 0 });
  });
});

describe('memory', () => {
  test("of an alias taken out of the map doesn't last as long as what it showed", () => {
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    const { map, root, bars } = machine(10);
    new AddressSpace(map, 'memory', root);
    const make = (taken: boolean) => {
      const alias = MemoryRegion.alias(map, 'alias', bars[0]!, 0, 0x1000);
      const around = MemoryRegion.alias(map, 'around', alias, 0, 0x1000);
      root.add(around, 2 ** 42, { priority: 1 });
      if (taken) root.remove(around);
      return new WeakRef(alias);
    };
    const [kept, lost] = [make(false), make(true)];
    // A reference made or read in this turn keeps its target until the next.
    return new Promise<void>((resolve) => setTimeout(resolve, 1)).then(() => {
      collect();
      expect([kept.deref() === undefined, lost.deref() === undefined]).toEqual([false, true]);
    });
  });
});

describe('addresses', () => {
  const exact = fc.bigInt({ min: -(1n << 65n), max: 1n << 65n });
  const near = fc.bigInt({ min: (1n << 53n) - 4n, max: (1n << 53n) + 4n });
  const any = fc.oneof(
    exact,
    near,
    near.map((value) => -value),
    fc.bigInt({ min: -5n, max: 5n }),
  );

  test('have one form a value, and sums and differences are exact', () => {
    const check = (result: Address, expected: bigint) => {
      expect(BigInt(result)).toBe(expected);
      expect(typeof result).toBe(
        Number.isSafeInteger(Number(expected)) && BigInt(Number(expected)) === expected ? 'number' : 'bigint',
      );
    };
    fc.assert(
      fc.property(any, any, (a, b) => {
        check(add(address(a), address(b)), a + b);
        check(subtract(address(a), address(b)), a - b);
      }),
      { numRuns: 2000 },
    );
  });
});
