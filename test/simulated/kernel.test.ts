import { describe, expect, test } from 'vitest';
import { errno } from '../../ts/core/core.js';
import { createArena } from '../../ts/core/node.js';
import { SimulatedBackend, type SimulatedOptions } from '../../ts/kvm/simulated.js';
import { DirtyBitmaps } from '../../ts/kvm/simulated-dirty.js';
import { FileTable } from '../../ts/kvm/simulated-files.js';
import type { SimulatedKernel } from '../../ts/kvm/simulated-kernel.js';
import type { RegionRequest } from '../../ts/kvm/simulated-request.js';
import { randomFrom } from '../../ts/testing/random.js';

const page = 4096;
const mebibyte = 2 ** 20;
const { EINVAL, EEXIST, EFAULT, ENOENT, ENOMEM, EBADF, EIO, ENOTTY } = errno;

function backendOf(options: SimulatedOptions = {}): SimulatedBackend {
  return new SimulatedBackend(createArena(24 * mebibyte), { callMicroseconds: 0, backed: false, ...options });
}

function kernelOf(options: SimulatedOptions = {}): SimulatedKernel {
  return backendOf(options).kernel;
}

/** A request for sixteen pages at GPA 0, changed as said. */
function region(change: Partial<RegionRequest> = {}): RegionRequest {
  return { slot: 0, flags: 0, gpa: 0, size: 16 * page, host: 0x7000_0000_0000, ...change };
}

/** What a new kernel of this kind says to one request. */
function answer(options: SimulatedOptions, change: Partial<RegionRequest>): number {
  return kernelOf(options).setUserMemoryRegion(region(change));
}

describe('what a call swaps', () => {
  test('once for a create or flags, twice for a delete or move, not at all for nothing or an error', () => {
    const kernel = kernelOf();
    const swaps = (change: Partial<RegionRequest>): [number, number] => {
      const before = kernel.generation();
      return [kernel.setUserMemoryRegion(region(change)), kernel.generation() - before];
    };
    expect(swaps({})).toEqual([0, 1]);
    expect(swaps({})).toEqual([0, 0]);
    expect(swaps({ flags: 1 })).toEqual([0, 1]);
    expect(swaps({ gpa: 8 * page })).toEqual([0, 2]);
    expect(swaps({ slot: 1, gpa: 8 * page })).toEqual([-EEXIST, 0]);
    expect(swaps({ size: page })).toEqual([-EINVAL, 0]);
    expect(swaps({ size: 0 })).toEqual([0, 2]);
    expect(swaps({ size: 0 })).toEqual([-EINVAL, 0]);
  });

  test('a move that the architecture refuses brings the old slot back', () => {
    const kernel = kernelOf();
    kernel.setUserMemoryRegion(region({ flags: 1 }));
    const before = kernel.layout();
    expect(kernel.setUserMemoryRegion(region({ gpa: 2 ** 52 }))).toBe(-EINVAL);
    expect(kernel.layout()).toEqual(before);
    expect(kernel.getDirtyLog(0, new Uint8Array(8))).toBe(0);
  });
});

describe('architectures', () => {
  test("x86 has one address space, two with SMM, and they don't collide", () => {
    expect(answer({ profile: 'x86' }, { slot: 0x10000 })).toBe(-EINVAL);
    const kernel = kernelOf({ profile: 'x86-smm' });
    expect(kernel.setUserMemoryRegion(region())).toBe(0);
    expect(kernel.setUserMemoryRegion(region({ slot: 0x10000, flags: 1 }))).toBe(0);
    expect(kernel.setUserMemoryRegion(region({ slot: 0x10001 }))).toBe(-EEXIST);
    expect(kernel.setUserMemoryRegion(region({ slot: 0x20000 }))).toBe(-EINVAL);
    expect(kernel.setUserMemoryRegion(region({ size: 0 }))).toBe(0);
    expect(kernel.layout(0)).toEqual([]);
    expect(kernel.layout(1).map(({ addressSpace, id, flags }) => [addressSpace, id, flags])).toEqual([[1, 0, 1]]);
    expect([kernel.generation(0), kernel.generation(1)]).toEqual([3, 1]);
    expect([kernel.getDirtyLog(0x10000, new Uint8Array(8)), kernel.getDirtyLog(0, new Uint8Array(8))]).toEqual([
      0,
      -ENOENT,
    ]);
  });

  test.each([
    ['x86', 2 ** 52 - 16 * page, 2 ** 52 - 15 * page, EINVAL],
    ['arm64', 2 ** 40 - 16 * page, 2 ** 40 - 15 * page, EFAULT],
    ['riscv', 2 ** 50 - 17 * page, 2 ** 50 - 16 * page, EFAULT],
  ] as const)('%s refuses what lies above its last address', (profile, last, beyond, refusal) => {
    expect(answer({ profile }, { gpa: last })).toBe(0);
    expect(answer({ profile }, { gpa: beyond })).toBe(-refusal);
  });

  test('s390 wants whole MiBs, and has no read-only slots and no manual logs', () => {
    const profile = 's390';
    expect(answer({ profile }, { size: mebibyte })).toBe(0);
    expect(answer({ profile }, { size: 16 * page })).toBe(-EINVAL);
    expect(answer({ profile }, { size: mebibyte, gpa: page })).toBe(-EINVAL);
    expect(answer({ profile }, { size: mebibyte, host: 0x7000_0000_1000 })).toBe(-EINVAL);
    expect(answer({ profile }, { size: mebibyte, flags: 2 })).toBe(-EINVAL);
    const backend = backendOf({ profile });
    expect(backend.kernel.clearDirtyLog(0, 0, 0, null)).toBe(-ENOTTY);
    expect(backend.kernel.enableManualDirtyLog(1)).toBe(-EINVAL);
    expect(backend.kernel.createGuestMemfd(page)).toBe(-ENOTTY);
    expect(backend.allocate(page).hostAddress % mebibyte).toBe(0);
    expect(backend.allocate(page).hostAddress % mebibyte).toBe(0);
  });

  test.each([
    ['x86', 32_764],
    ['arm64', 32_767],
    ['riscv', 32_767],
    ['s390', 32_767],
  ] as const)('%s has slot ids below %i', (profile, slots) => {
    const size = mebibyte;
    expect(backendOf({ profile }).capabilities.slots).toBe(slots);
    expect(answer({ profile }, { slot: slots - 1, size })).toBe(0);
    expect(answer({ profile }, { slot: slots, size })).toBe(-EINVAL);
  });

  test('a host can have fewer slots and narrower addresses', () => {
    expect(answer({ slots: 509 }, { slot: 508 })).toBe(0);
    expect(answer({ slots: 509 }, { slot: 509 })).toBe(-EINVAL);
    expect(answer({ physicalAddressBits: 39 }, { gpa: 2 ** 39 })).toBe(-EINVAL);
    expect(answer({ hostLimit: 2 ** 56 - page }, { host: 2 ** 50 })).toBe(0);
    expect(() => backendOf({ slots: 40_000 })).toThrow('32764');
    expect(() => backendOf({ profile: 'mips' as 'x86' })).toThrow('a profile is one of');
  });
});

describe('the first failing check', () => {
  // Each request breaks the rule it is named after, and one that the kernel looks at later.
  const order: [string, RegionRequest | null, number][] = [
    ['an unreadable argument', null, EFAULT],
    ['a guest_memfd flag in the older call', region({ flags: 4, slot: 0xffff, size: 1 }), EINVAL],
    ['an id too high', region({ slot: 0xffff, size: page + 1 }), EINVAL],
    ['overlap', region({ slot: 1, gpa: page, flags: 1 }), EEXIST],
    ['overlap and an address too high', region({ slot: 1, gpa: 15 * page, size: (2 ** 31 - 1) * page }), EEXIST],
  ];
  test.each(order)('%s', (_name, request, expected) => {
    const kernel = kernelOf({ physicalAddressBits: 40 });
    kernel.setUserMemoryRegion(region());
    expect(kernel.setUserMemoryRegion(request)).toBe(-expected);
    expect(kernel.layout()).toHaveLength(1);
  });

  test('overlap comes before the guest_memfd, and that before the address', () => {
    const kernel = kernelOf({ physicalAddressBits: 40 });
    kernel.setUserMemoryRegion(region());
    const shared = region({ slot: 1, flags: 4, guestMemfd: -1 });
    expect(kernel.setUserMemoryRegion2(shared)).toBe(-EEXIST);
    expect(kernel.setUserMemoryRegion2({ ...shared, gpa: 2 ** 40 })).toBe(-EBADF);
    const guestMemfd = kernel.createGuestMemfd(16 * page);
    expect(kernel.setUserMemoryRegion2({ ...shared, gpa: 2 ** 40, guestMemfd })).toBe(-EINVAL);
    // The refused slot has let go of the file.
    expect(kernel.setUserMemoryRegion2({ ...shared, gpa: 2 ** 30, guestMemfd })).toBe(0);
  });

  test('a dead machine answers EIO to everything', () => {
    const kernel = kernelOf();
    kernel.kill();
    const answers = [
      kernel.setUserMemoryRegion(null),
      kernel.setUserMemoryRegion(region()),
      kernel.getDirtyLog(0, null),
      kernel.clearDirtyLog(0, 0, 0, null),
      kernel.enableManualDirtyLog(1),
      kernel.createGuestMemfd(page),
    ];
    expect(answers).toEqual(Array(6).fill(-EIO));
  });

  test('what no C program could say is an error of the caller', () => {
    const kernel = kernelOf();
    expect(() => kernel.setUserMemoryRegion(region({ gpa: -1 }))).toThrow('the GPA must be an integer');
    expect(() => kernel.setUserMemoryRegion(region({ size: 1n << 64n }))).toThrow('the size must be an integer');
    expect(() => kernel.setUserMemoryRegion(region({ slot: 2 ** 32 }))).toThrow('the slot must be an integer');
    expect(() => kernel.setUserMemoryRegion(region({ flags: 0.5 }))).toThrow('the flags must be an integer');
    expect(kernel.setUserMemoryRegion(region())).toBe(0);
  });
});

describe('hooks', () => {
  test('that throw in the middle of a call leave the kernel as if they had not', () => {
    const kernel = kernelOf();
    const remove = kernel.addHooks({
      published: () => {
        throw new Error('not now');
      },
    });
    expect(() => kernel.setUserMemoryRegion(region())).toThrow('not now');
    expect(kernel.layout()).toHaveLength(1);
    expect(() => kernel.setUserMemoryRegion(region({ size: 0 }))).toThrow('not now');
    remove();
    expect(kernel.layout()).toEqual([]);
    expect(kernel.setUserMemoryRegion(region())).toBe(0);
  });

  test('can not make calls', () => {
    const kernel = kernelOf();
    kernel.addHooks({ published: () => void kernel.setUserMemoryRegion(region({ slot: 1 })) });
    expect(() => kernel.setUserMemoryRegion(region())).toThrow("can't be called from inside another call");
    expect(kernel.layout()).toHaveLength(1);
  });
});

describe('dirty logs', () => {
  const bits = (kernel: SimulatedKernel, slot = 0): number[] => {
    const bitmap = new Uint8Array(8);
    expect(kernel.getDirtyLog(slot, bitmap)).toBe(0);
    return [...bitmap];
  };
  const dirty16 = [0xff, 0xff, 0, 0, 0, 0, 0, 0];

  test("start clean, or all dirty where that was asked for, and no bit stands for a page there isn't", () => {
    const kernel = kernelOf();
    kernel.setUserMemoryRegion(region({ flags: 1 }));
    expect(bits(kernel)).toEqual(Array(8).fill(0));
    expect(kernel.enableManualDirtyLog(3)).toBe(0);
    kernel.setUserMemoryRegion(region({ flags: 1, slot: 1, gpa: mebibyte }));
    expect(bits(kernel, 1)).toEqual(dirty16);
  });

  test('are cleared by reading, unless clearing is manual', () => {
    const kernel = kernelOf();
    kernel.enableManualDirtyLog(3);
    kernel.setUserMemoryRegion(region({ flags: 1 }));
    expect(bits(kernel)).toEqual(dirty16);
    expect(bits(kernel)).toEqual(dirty16);
    expect(kernel.clearDirtyLog(0, 0, 16, Uint8Array.of(0x0f, 0x01, 0, 0, 0, 0, 0, 0))).toBe(0);
    expect(bits(kernel)).toEqual([0xf0, 0xfe, 0, 0, 0, 0, 0, 0]);
    kernel.enableManualDirtyLog(0);
    expect(bits(kernel)).toEqual([0xf0, 0xfe, 0, 0, 0, 0, 0, 0]);
    expect(bits(kernel)).toEqual(Array(8).fill(0));
  });

  test('survive a move, and not logging being turned off and on', () => {
    const kernel = kernelOf();
    kernel.enableManualDirtyLog(3);
    kernel.setUserMemoryRegion(region({ flags: 1 }));
    kernel.clearDirtyLog(0, 0, 16, new Uint8Array(8).fill(0x55));
    kernel.setUserMemoryRegion(region({ flags: 1, gpa: mebibyte }));
    expect(bits(kernel)).toEqual([0xaa, 0xaa, 0, 0, 0, 0, 0, 0]);
    kernel.enableManualDirtyLog(1);
    kernel.setUserMemoryRegion(region({ gpa: mebibyte }));
    expect(kernel.getDirtyLog(0, new Uint8Array(8))).toBe(-ENOENT);
    kernel.setUserMemoryRegion(region({ gpa: mebibyte, flags: 1 }));
    expect(bits(kernel)).toEqual(Array(8).fill(0));
  });

  test("that don't fit are ENOMEM, and nothing has changed", () => {
    const kernel = kernelOf({ dirtyLogBytes: 16 });
    expect(kernel.setUserMemoryRegion(region({ flags: 1, size: 128 * page }))).toBe(0);
    const second = region({ slot: 1, gpa: mebibyte });
    expect(kernel.setUserMemoryRegion({ ...second, flags: 1 })).toBe(-ENOMEM);
    expect(kernel.setUserMemoryRegion(second)).toBe(0);
    expect(kernel.setUserMemoryRegion({ ...second, flags: 1 })).toBe(-ENOMEM);
    expect(kernel.setUserMemoryRegion({ ...second, flags: 1, gpa: 2 * mebibyte })).toBe(-ENOMEM);
    expect(kernel.layout().map(({ gpa, flags }) => [gpa, flags])).toEqual([
      [0, 1],
      [mebibyte, 0],
    ]);
    expect(kernel.setUserMemoryRegion(region({ flags: 0, size: 128 * page }))).toBe(0);
    expect(kernel.setUserMemoryRegion({ ...second, flags: 1 })).toBe(0);
  });

  test("need room in the caller's bitmap", () => {
    const kernel = kernelOf();
    kernel.setUserMemoryRegion(region({ flags: 1, size: 65 * page }));
    expect(() => kernel.getDirtyLog(0, new Uint8Array(8))).toThrow('takes 16 bytes');
  });

  test('are given out and taken back without overlap or loss', () => {
    const random = randomFrom(5);
    const words = 64;
    const bitmaps = new DirtyBitmaps(words * 8);
    const held: { at: number; pages: number }[] = [];
    /** Which words are in use, from the list of what is held alone. */
    const used = (): boolean[] => {
      const map: boolean[] = Array(words).fill(false);
      for (const { at, pages } of held) {
        for (let word = at; word < at + Math.ceil(pages / 64); word++) {
          expect(map[word]).toBe(false);
          map[word] = true;
        }
      }
      return map;
    };
    let refused = 0;
    for (let i = 0; i < 3000; i++) {
      const pages = 1 + Math.floor(random() * 700);
      if (random() < 0.5) {
        const at = bitmaps.allocate(pages, false);
        const gap = 'f'.repeat(Math.ceil(pages / 64));
        const fits = used()
          .map((taken) => (taken ? 't' : 'f'))
          .join('')
          .includes(gap);
        expect(at !== undefined).toBe(fits);
        if (at === undefined) refused++;
        else held.push({ at, pages });
      } else if (held.length > 0) {
        const [gone] = held.splice(Math.floor(random() * held.length), 1);
        bitmaps.free(gone!.at, gone!.pages);
      }
      used();
    }
    expect(refused).toBeGreaterThan(10);
    for (const { at, pages } of held.splice(0)) bitmaps.free(at, pages);
    expect(bitmaps.allocate(words * 64, false)).toBe(0);
  });
});

describe('guest_memfds', () => {
  test('can be bound once at each place, until the slot goes, through any descriptor', () => {
    const files = new FileTable();
    const kernel = kernelOf({ files });
    const fd = kernel.createGuestMemfd(32 * page);
    const shared = region({ flags: 4, guestMemfd: fd });
    const other = { ...shared, slot: 1, gpa: mebibyte, guestMemfdOffset: 8 * page };
    const again = files.duplicate(fd);
    expect(kernel.setUserMemoryRegion2(shared)).toBe(0);
    expect(kernel.setUserMemoryRegion2({ ...other, guestMemfd: again })).toBe(-EINVAL);
    files.close(fd);
    // The slot lives on; re-creating it through the closed descriptor does not work.
    expect(kernel.setUserMemoryRegion2({ ...shared, size: 0 })).toBe(0);
    expect(kernel.setUserMemoryRegion2(shared)).toBe(-EBADF);
    expect(kernel.setUserMemoryRegion2({ ...other, guestMemfd: again })).toBe(0);
  });

  test('of another machine are refused', () => {
    const files = new FileTable();
    const [kernel, other] = [kernelOf({ files }), kernelOf({ files })];
    const guestMemfd = other.createGuestMemfd(mebibyte);
    expect(kernel.setUserMemoryRegion2(region({ flags: 4, guestMemfd }))).toBe(-EINVAL);
    expect(other.setUserMemoryRegion2(region({ flags: 4, guestMemfd }))).toBe(0);
  });
});

describe('host memory', () => {
  const gibibyte = 2 ** 30;

  test('can be larger than a chunk, and is shared by all views of it', () => {
    const backend = backendOf({ backed: true, memoryBytes: 3 * gibibyte });
    const [first, second] = [backend.allocate(mebibyte), backend.allocate(2 * gibibyte)];
    expect(second.hostAddress).toBe(first.hostAddress + mebibyte);
    second.bytes(gibibyte + 5, 3).set([1, 2, 3]);
    expect([...second.bytes(gibibyte + 6, 1)]).toEqual([2]);
    expect(() => second.bytes(gibibyte - 2 * mebibyte, 2 * mebibyte)).toThrow("aren't within one 1 GiB chunk");
    expect(() => second.bytes(2 * gibibyte - 1, 2)).toThrow('outside memory of 2 GiB');
    expect(() => backend.allocate(gibibyte)).toThrow("1 GiB of simulated memory can't be had: 2.0 GiB of 3 GiB");
    expect(() => backend.allocate(100)).toThrow('multiple of 0x1000');
  });

  test('can be reserved without being there', () => {
    const backend = backendOf({ backed: false, memoryBytes: 2 ** 44 });
    const memory = backend.allocate(2 ** 43);
    expect(memory.hostAddress + memory.size).toBeLessThan(2 ** 47 - page);
    expect(() => memory.bytes(0, 1)).toThrow('reserved without backing');
  });
});
