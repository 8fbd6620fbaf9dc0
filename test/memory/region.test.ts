import { describe, expect, test } from 'vitest';
import { AddressSpace, MemoryMap } from '../../ts/memory/address-space.js';
import { isBacked, isRamLike, isWritable } from '../../ts/memory/flat-view.js';
import { MemoryRegion } from '../../ts/memory/region.js';

const all = 1n << 64n;

function world() {
  const map = new MemoryMap();
  const root = MemoryRegion.container(map, 'system', all);
  const space = new AddressSpace(map, 'memory', root);
  /** The view as `first-last region+offset`, in hexadecimal. */
  const shown = () =>
    space.view.ranges.map(({ gpa, size, region, offset }) => {
      const last = BigInt(gpa) + BigInt(size) - 1n;
      return `${gpa.toString(16)}-${last.toString(16)} ${region.name}+${offset.toString(16)}`;
    });
  return { map, root, space, shown };
}

describe('overlaps', () => {
  test('show the higher priority, then what was added or moved last', () => {
    const { map, root, shown } = world();
    const [a, b, c] = ['a', 'b', 'c'].map((name) => MemoryRegion.ram(map, name, 0x1000)) as [
      MemoryRegion,
      MemoryRegion,
      MemoryRegion,
    ];
    root.add(a, 0);
    root.add(b, 0x800);
    expect(shown()).toEqual(['0-7ff a+0', '800-17ff b+0']);
    a.setAddress(0x400);
    expect(shown()).toEqual(['400-13ff a+0', '1400-17ff b+c00']);
    root.add(c, 0, { priority: -5 });
    expect(shown()).toEqual(['0-3ff c+0', '400-13ff a+0', '1400-17ff b+c00']);
  });

  test('are decided inside each container by itself', () => {
    const { map, root, shown } = world();
    const low = MemoryRegion.container(map, 'low', 0x1000);
    low.add(MemoryRegion.ram(map, 'a', 0x1000), 0, { priority: 1000 });
    root.add(low, 0, { priority: -1 });
    root.add(MemoryRegion.ram(map, 'b', 0x800), 0);
    expect(shown()).toEqual(['0-7ff b+0', '800-fff a+800']);
  });

  test('let a region with content show through the gaps of its children, up to its own bounds', () => {
    const { map, root, shown } = world();
    const device = MemoryRegion.mmio(map, 'device', 0x1000);
    device.add(MemoryRegion.ram(map, 'inner', 0x1000), 0x800);
    device.add(MemoryRegion.ram(map, 'outside', 0x1000), 0x1000);
    root.add(device, 0x10000);
    expect(shown()).toEqual(['10000-107ff device+0', '10800-10fff inner+0']);
    device.setEnabled(false);
    expect(shown()).toEqual([]);
  });
});

describe('aliases', () => {
  test('show a range of their target, also through other aliases, clipped to both', () => {
    const { map, root, shown } = world();
    const ram = MemoryRegion.ram(map, 'ram', 0x4000);
    const first = MemoryRegion.alias(map, 'first', ram, 0x1000, 0x8000);
    root.add(MemoryRegion.alias(map, 'second', first, 0x800, 0x2000), 0x10000);
    root.add(MemoryRegion.alias(map, 'past the end', first, 0x2c00, 0x2000), 0x20000);
    expect(shown()).toEqual(['10000-11fff ram+1800', '20000-203ff ram+3c00']);
    ram.setEnabled(false);
    expect(shown()).toEqual([]);
  });

  test('follow every change of what they show, and their own offset', () => {
    const { map, root, shown } = world();
    const pci = MemoryRegion.container(map, 'pci', all);
    const bar = MemoryRegion.ram(map, 'bar', 0x1000);
    pci.add(bar, 0xa0000);
    const alias = MemoryRegion.alias(map, 'window', pci, 0xa0000, 0x10000);
    root.add(alias, 0x100000);
    bar.setAddress(0xa2000);
    expect(shown()).toEqual(['102000-102fff bar+0']);
    alias.setTargetOffset(0xa2800);
    expect(shown()).toEqual(['100000-1007ff bar+800']);
    alias.setSize(0x400);
    expect(shown()).toEqual(['100000-1003ff bar+800']);
    root.remove(alias);
    bar.setAddress(0);
    expect(shown()).toEqual([]);
  });

  test('make what they show read-only and non-volatile if they are', () => {
    const { map, root, space } = world();
    const ram = MemoryRegion.ram(map, 'ram', 0x2000);
    root.add(MemoryRegion.alias(map, 'pam', ram, 0, 0x1000, { readonly: true, nonvolatile: true }), 0);
    root.add(ram, 0x10000);
    const [through, direct] = space.view.ranges;
    expect([through?.readonly, through?.nonvolatile, isWritable(through!)]).toEqual([true, true, false]);
    expect([direct?.readonly, direct?.nonvolatile, isWritable(direct!)]).toEqual([false, false, true]);
    root.setReadonly(true);
    expect(space.view.ranges.every(({ readonly }) => readonly)).toBe(true);
  });
});

describe('ranges', () => {
  test('join across aliases when they continue each other, unless marked unmergeable', () => {
    const { map, root, shown } = world();
    const ram = MemoryRegion.ram(map, 'ram', 0x4000);
    const [low, high] = [
      MemoryRegion.alias(map, 'low', ram, 0, 0x1000),
      MemoryRegion.alias(map, 'high', ram, 0x1000, 0x1000),
    ];
    root.add(low, 0);
    root.add(high, 0x1000);
    expect(shown()).toEqual(['0-1fff ram+0']);
    ram.setUnmergeable(true);
    expect(shown()).toEqual(['0-fff ram+0', '1000-1fff ram+1000']);
    ram.setUnmergeable(false);
    high.setReadonly(true);
    expect(shown()).toEqual(['0-fff ram+0', '1000-1fff ram+1000']);
    high.setReadonly(false);
    high.setTargetOffset(0x2000);
    expect(shown()).toEqual(['0-fff ram+0', '1000-1fff ram+2000']);
  });

  test('stay whole for an unmergeable region that is covered for a while', () => {
    const { map, root, shown } = world();
    root.add(MemoryRegion.ram(map, 'ram', 0x3000, { unmergeable: true }), 0);
    const cover = MemoryRegion.mmio(map, 'cover', 0x1000);
    root.add(cover, 0x2000, { priority: 1 });
    expect(shown()).toEqual(['0-1fff ram+0', '2000-2fff cover+0']);
    cover.setEnabled(false);
    expect(shown()).toEqual(['0-2fff ram+0']);
  });

  test('tell which kinds are memory, backed, and writable', () => {
    const { map, root, space } = world();
    const memory = { size: 0x1000 };
    const flash = MemoryRegion.romDevice(map, 'flash', 0x1000, { memory });
    const kinds = [
      MemoryRegion.ram(map, 'ram', 0x1000, { memory }),
      MemoryRegion.ramDevice(map, 'ram device', 0x1000, { memory }),
      MemoryRegion.rom(map, 'rom', 0x1000, { memory }),
      flash,
      MemoryRegion.mmio(map, 'mmio', 0x1000),
      MemoryRegion.reservation(map, 'reservation', 0x1000),
      MemoryRegion.ram(map, 'bare ram', 0x1000),
    ];
    for (const [index, region] of kinds.entries()) root.add(region, index * 0x2000);
    const names = (holds: typeof isRamLike) => space.view.ranges.filter(holds).map(({ region }) => region.name);
    expect(names(isRamLike)).toEqual(['ram', 'ram device', 'rom', 'flash', 'bare ram']);
    expect(names(isBacked)).toEqual(['ram', 'ram device', 'rom', 'flash']);
    expect(names(isWritable)).toEqual(['ram', 'ram device', 'bare ram']);
    flash.setRomMode(false);
    expect(names(isRamLike)).toEqual(['ram', 'ram device', 'rom', 'bare ram']);
    expect(space.view.find(0x6000)).toMatchObject({ region: flash, romMode: false });
  });

  test('are found by any address in them, and none is in a hole', () => {
    const { map, root, space } = world();
    root.add(MemoryRegion.ram(map, 'ram', 0x1000), 0x1000);
    root.add(MemoryRegion.mmio(map, 'last', 1), (1n << 64n) - 1n);
    expect(
      [0, 0xfff, 0x1000, 0x1fff, 0x2000, (1n << 64n) - 1n].map((gpa) => space.view.find(gpa)?.region.name),
    ).toEqual([...[undefined, undefined, 'ram', 'ram', undefined, 'last']]);
  });
});

describe('sizes up to 2^64', () => {
  test('are exact at the very end, and past 2^53 next to small addresses', () => {
    const { map, root, shown } = world();
    const inner = MemoryRegion.container(map, 'inner', all);
    root.add(inner, (1n << 64n) - 0x1000n);
    inner.add(MemoryRegion.mmio(map, 'io', all), 0x800);
    const odd = 2n ** 53n + 1n;
    root.add(MemoryRegion.mmio(map, 'odd', odd), odd);
    root.add(MemoryRegion.mmio(map, 'small', 1), 0);
    expect(shown()).toEqual([
      '0-0 small+0',
      `20000000000001-40000000000001 odd+0`,
      'fffffffffffff800-ffffffffffffffff io+0',
    ]);
  });

  test('shift through an alias with an offset above 2^53', () => {
    const { map, root, shown } = world();
    const target = MemoryRegion.mmio(map, 'target', all);
    root.add(MemoryRegion.alias(map, 'top', target, (1n << 64n) - 3n, 3), 5);
    expect(shown()).toEqual(['5-7 target+fffffffffffffffd']);
  });

  test('are for all but host memory, which must end below 2^53', () => {
    const { map, root, space } = world();
    const ram = MemoryRegion.ram(map, 'ram', 0x1000, { memory: { size: 0x1000 } });
    expect(() => root.add(ram, 2n ** 53n - 0x800n)).toThrow(
      expect.objectContaining({
        code: 'INVALID',
        message: expect.stringMatching(/'ram' can't show at \[0x1ffffffffff800, /),
      }),
    );
    expect([ram.parent, space.view.ranges]).toEqual([undefined, []]);
    root.add(ram, 2 ** 53 - 0x2000);
    expect(space.view.ranges.filter(isBacked).map(({ gpa }) => gpa)).toEqual([2 ** 53 - 0x2000]);
    root.add(MemoryRegion.ram(map, 'described only', 0x1000), 2n ** 60n);
    expect(space.view.ranges.length).toBe(2);
  });
});

describe('a root inside a container', () => {
  test('is shown at its address there, as QEMU shows hot-plugged memory', () => {
    const { map, root } = world();
    const hotplug = MemoryRegion.container(map, 'hotplug', 0x10000);
    const space = new AddressSpace(map, 'hotplug', hotplug);
    hotplug.add(MemoryRegion.ram(map, 'dimm', 0x1000), 0x1000);
    expect(space.view.ranges[0]?.gpa).toBe(0x1000);
    root.add(hotplug, 0x100000);
    expect(space.view.ranges[0]?.gpa).toBe(0x101000);
    root.remove(hotplug);
    expect(space.view.ranges[0]?.gpa).toBe(0x1000);
  });
});

describe('mistakes are refused at the edit, naming the values, and change nothing:', () => {
  const { map, root, space } = world();
  const [ram, other, container] = [
    MemoryRegion.ram(map, 'ram', 0x1000, { memory: { size: 0x2000 }, memoryOffset: 0x800 }),
    MemoryRegion.mmio(map, 'other', 0x1000),
    MemoryRegion.container(map, 'box', 0x10000),
  ];
  const alias = MemoryRegion.alias(map, 'alias', container, 0, 0x1000);
  root.add(container, 0x4000);
  container.add(ram, 0x100);
  const foreign = new MemoryMap();
  const stray = MemoryRegion.ram(foreign, 'stray', 0x1000);
  const view = space.view;
  test.each<[string, () => unknown, RegExp]>([
    ['size 0', () => MemoryRegion.ram(map, 'r', 0), /size of 'r' must be .* 0x1 to 0x10000000000000000, not 0x0/],
    ['a size past 2^64', () => MemoryRegion.container(map, 'r', all + 1n), /not 0x10000000000000001/],
    ['a fraction', () => MemoryRegion.ram(map, 'r', 1.5), /not 1.5/],
    ['an inexact number', () => MemoryRegion.container(map, 'r', 2 ** 60), /inexact: pass a bigint/],
    ['a negative offset', () => root.add(other, -1), /offset of 'other' in 'system' .* not -0x1/],
    ['an offset of 2^64', () => root.add(other, all), /not 0x10000000000000000/],
    ['a negative move', () => ram.setAddress(-5), /offset of 'ram' .* not -0x5/],
    [
      'a priority that is no integer',
      () => root.add(other, 0, { priority: 0.5 }),
      /priority of 'other' must be an integer, not 0.5/,
    ],
    ['adding twice', () => root.add(ram, 0), /'ram' can't be added to 'system': it is at 0x100 in 'box'/],
    ['adding to an alias', () => alias.add(other, 0), /'alias' is an alias/],
    ['adding to itself', () => root.add(root, 0), /'system' > 'system'/],
    ['removing from elsewhere', () => root.remove(ram), /'ram' can't be removed from 'system': it is in 'box'/],
    ['removing what is nowhere', () => root.remove(other), /it is in no container/],
    ['moving what is nowhere', () => other.setAddress(1), /'other' can't move/],
    ['memory that is too small', () => ram.setSize(0x1801), /\[0x800, 0x2001\) .*has only 0x2000 bytes/],
    ['too small from the start', () => MemoryRegion.rom(map, 'r', 2, { memory: { size: 1 } }), /\[0x0, 0x2\)/],
    ['writable ROM', () => MemoryRegion.rom(map, 'r', 1).setReadonly(false), /'r' is ROM/],
    ['ROM mode of RAM', () => ram.setRomMode(true), /'ram' \(ram\) has no ROM mode/],
    ['a log of MMIO', () => other.setLogging(true), /'other' \(mmio\) has no dirty log/],
    ['the target offset of RAM', () => ram.setTargetOffset(1), /'ram' \(ram\) has no target/],
    ['a region of another map', () => root.add(stray, 0), /'stray' and 'system' belong to different maps/],
    ['a target of another map', () => MemoryRegion.alias(map, 'a', stray, 0, 1), /different maps/],
    ['a root of another map', () => new AddressSpace(map, 'm', stray), /'stray' belongs to another map/],
  ])('%s', (_, edit, message) => {
    expect(edit).toThrow(expect.objectContaining({ code: 'INVALID', message: expect.stringMatching(message) }));
    expect(space.view).toBe(view);
    expect([ram.address, ram.size, ram.parent, other.parent]).toEqual([0x100, 0x1000, container, undefined]);
  });

  test('a region inside itself through aliases, with the chain named', () => {
    const { map, root } = world();
    const pci = MemoryRegion.container(map, 'pci', 0x1000);
    const window = MemoryRegion.alias(map, 'window', pci, 0, 0x1000);
    const again = MemoryRegion.alias(map, 'again', window, 0, 0x1000);
    const bridge = MemoryRegion.container(map, 'bridge', 0x1000);
    bridge.add(again, 0);
    expect(() => pci.add(bridge, 0)).toThrow(/'bridge' > alias 'again' > alias 'window' > 'pci' > 'bridge'/);
    expect(() => pci.add(window, 0)).toThrow(/alias 'window' > 'pci' > alias 'window'/);
    root.add(bridge, 0);
    expect(() => pci.add(root, 0)).toThrow(/'system' > 'bridge' > alias 'again' > alias 'window' > 'pci' > 'system'/);
    bridge.remove(again);
    root.remove(bridge);
    pci.add(bridge, 0x100);
    expect(bridge.parent).toBe(pci);
  });
});

describe('transactions', () => {
  test('show nothing before the outermost ends, whichever form they have', () => {
    const { map, root, shown } = world();
    map.begin();
    root.add(MemoryRegion.ram(map, 'a', 0x1000), 0);
    const result = map.transaction(() => {
      root.add(MemoryRegion.ram(map, 'b', 0x1000), 0x1000);
      map.begin();
      map.commit();
      return 7;
    });
    expect([result, shown()]).toEqual([7, []]);
    map.commit();
    expect(shown()).toEqual(['0-fff a+0', '1000-1fff b+0']);
  });

  test('that throw inside another are undone alone', () => {
    const { map, root, shown } = world();
    const a = MemoryRegion.ram(map, 'a', 0x1000);
    map.transaction(() => {
      root.add(a, 0);
      expect(() =>
        map.transaction(() => {
          a.setAddress(0x5000);
          map.begin();
          root.remove(a);
          throw new Error('inner');
        }),
      ).toThrow('inner');
      expect(a.address).toBe(0);
      root.add(MemoryRegion.ram(map, 'b', 0x1000), 0x1000);
    });
    expect(shown()).toEqual(['0-fff a+0', '1000-1fff b+0']);
  });

  test('put back the order among equals', () => {
    const { map, root, shown } = world();
    const [a, b] = [MemoryRegion.ram(map, 'a', 0x1000), MemoryRegion.ram(map, 'b', 0x1000)];
    root.add(a, 0);
    root.add(b, 0);
    expect(() =>
      map.transaction(() => {
        a.setAddress(0x4000);
        root.remove(b);
        throw new Error('no');
      }),
    ).toThrow('no');
    root.setEnabled(false);
    root.setEnabled(true);
    expect(shown()).toEqual(['0-fff b+0']);
  });

  test('take a new address space with them when they are undone', () => {
    const { map, root } = world();
    let lost: AddressSpace | undefined;
    expect(() =>
      map.transaction(() => {
        lost = new AddressSpace(map, 'lost', root);
        throw new Error('no');
      }),
    ).toThrow('no');
    expect(map.addressSpaces.map(({ name }) => name)).toEqual(['memory']);
    expect(() => map.addListener({}, [lost!])).toThrow(expect.objectContaining({ code: 'INVALID' }));
    expect(new AddressSpace(map, 'next', root).index).toBe(1);
  });

  test('must be balanced and synchronous', async () => {
    const { map, root, shown } = world();
    const a = MemoryRegion.ram(map, 'a', 0x1000);
    expect(() => map.commit()).toThrow(expect.objectContaining({ code: 'STATE' }));
    expect(() => map.transaction(() => map.commit())).toThrow(expect.objectContaining({ code: 'STATE' }));
    expect(() =>
      map.transaction(() => {
        root.add(a, 0);
        map.begin();
      }),
    ).toThrow(/1 begin\(\) that had no commit/);
    expect(() => map.transaction(async () => root.add(a, 0))).toThrow(/must not return a promise/);
    expect([a.parent, shown()]).toEqual([undefined, []]);
    root.add(a, 0);
    expect(shown()).toEqual(['0-fff a+0']);
  });
});
