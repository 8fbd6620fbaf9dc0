import { describe, expect, test } from 'vitest';
import { Gate, gateLineBytes } from '../../ts/kvm/gate.js';
import { Inhibitor } from '../../ts/kvm/inhibitor.js';
import {
  assertLayout,
  CallRecorder,
  describeMoment,
  errno,
  exploreInterleavings,
  Faults,
  type GuestStep,
  type RegionRequest,
  replayInterleaving,
  type SimulatedKvm,
  simulatedKvm,
  type World,
} from '../../ts/testing/index.js';

const mebibyte = 2 ** 20;
/** Little of everything: some tests make thousands of these. */
const small = { slots: 16, memoryBytes: 2 * mebibyte, dirtyLogBytes: 4096 };

interface Small extends SimulatedKvm {
  readonly ram: RegionRequest & { readonly gpa: number; readonly size: number };
}

/** A KVM with two MiB of memory in slot 0, at GPA 0. */
function smallKvm(): Small {
  const kvm = simulatedKvm(small);
  const ram = { slot: 0, flags: 0, gpa: 0, size: 2 * mebibyte, host: kvm.backend.allocate(2 * mebibyte).hostAddress };
  expect(kvm.kernel.setUserMemoryRegion(ram)).toBe(0);
  return { ...kvm, ram };
}

describe('assertLayout', () => {
  test('takes slots in any order, and compares what is asked for', () => {
    const { kernel, ram } = smallKvm();
    kernel.setUserMemoryRegion({ ...ram, slot: 3, gpa: 4 * mebibyte, flags: 2 });
    assertLayout(kernel.layout(), [
      { gpa: 4 * mebibyte, size: 2 * mebibyte, id: 3, flags: 2 },
      { gpa: 0, size: 2 * mebibyte },
    ]);
  });

  test('shows what is missing, what is too much, and what differs', () => {
    const { kernel, ram } = smallKvm();
    kernel.setUserMemoryRegion({ ...ram, slot: 1, gpa: 4 * mebibyte, flags: 3 });
    const check = (): void =>
      assertLayout(kernel.layout(), [
        { gpa: 0, size: mebibyte },
        { gpa: 4 * mebibyte, size: 2 * mebibyte, flags: 2, id: 1 },
      ]);
    expect(check).toThrow(
      [
        'the memory slots differ from the expected ones (- missing, + not expected, ~ different):',
        '- [0x0, 0x100000) (1 MiB)',
        '+ [0x0, 0x200000) (2 MiB) slot 0 host 0x700000000000',
        '~ [0x400000, 0x600000) (2 MiB) slot 1 log-dirty+read-only host 0x700000000000: flags is 0x3, not 0x2',
      ].join('\n'),
    );
  });

  test('tells address spaces apart', () => {
    const slot = { gpa: 0, size: mebibyte };
    expect(() => assertLayout([{ ...slot, addressSpace: 1 }], [slot])).toThrow('address space 1');
  });
});

describe('a recorder of calls', () => {
  test('says what each call did', () => {
    const { kernel, ram } = smallKvm();
    const recorder = new CallRecorder();
    kernel.addHooks(recorder);
    kernel.setUserMemoryRegion(ram);
    kernel.setUserMemoryRegion({ ...ram, flags: 1 });
    kernel.setUserMemoryRegion({ ...ram, flags: 1, gpa: mebibyte });
    kernel.setUserMemoryRegion({ ...ram, slot: 1, gpa: 2 * mebibyte });
    kernel.setUserMemoryRegion({ ...ram, size: 0 });
    kernel.setUserMemoryRegion2({ ...ram, size: 0 });
    kernel.setUserMemoryRegion(null);
    kernel.setUserMemoryRegion({ ...ram, flags: 2 });
    expect(recorder.lines).toEqual([
      'set slot 0 [0x0, 0x200000) (2 MiB): ok',
      'flags slot 0 [0x0, 0x200000) (2 MiB) log-dirty: ok',
      'move slot 0 [0x100000, 0x300000) (2 MiB) log-dirty: ok',
      'set slot 1 [0x200000, 0x400000) (2 MiB): EEXIST',
      'delete slot 0 (GPA 0x0): ok',
      'delete slot 0 (GPA 0x0): EINVAL',
      'KVM_SET_USER_MEMORY_REGION with an unreadable argument: EFAULT',
      'create slot 0 [0x0, 0x200000) (2 MiB) read-only: ok',
    ]);
    expect(recorder.calls.map(({ number }) => number)).toEqual([2, 3, 4, 5, 6, 7, 8, 9]);
    recorder.clear();
    expect(recorder.lines).toEqual([]);
  });
});

describe('faults', () => {
  test('make exactly the chosen call fail, with nothing done', () => {
    const { kernel, ram } = smallKvm();
    const faults = new Faults();
    const remove = kernel.addHooks(faults);
    const again = (): number => kernel.setUserMemoryRegion({ ...ram, flags: kernel.layout()[0]!.flags ^ 1 });
    faults.fail(2, errno.ENOMEM);
    const generation = kernel.generation();
    expect([again(), again(), again()]).toEqual([0, -errno.ENOMEM, 0]);
    expect(kernel.generation()).toBe(generation + 2);
    faults.fail(1, errno.EEXIST);
    faults.clear();
    expect(again()).toBe(0);
    faults.fail(1, errno.EEXIST);
    remove();
    expect(again()).toBe(0);
  });

  test('delay the chosen call', () => {
    const { kernel, ram } = smallKvm();
    kernel.addHooks(new Faults().delay(2, 20_000));
    const took = (): number => {
      const start = performance.now();
      kernel.setUserMemoryRegion(ram);
      return performance.now() - start;
    };
    const [first, second] = [took(), took()];
    expect(second).toBeGreaterThanOrEqual(20);
    expect(first).toBeLessThan(second);
  });

  test('refuse what is no errno and no call', () => {
    expect(() => new Faults().fail(1, -12)).toThrow('positive');
    expect(() => new Faults().fail(0, 12)).toThrow('counted from 1');
  });
});

/** Shrinks slot 0 as every VMM must: the old slot goes, then the new one comes. */
function shrink({ kernel, ram }: Small): void {
  kernel.setUserMemoryRegion({ ...ram, size: 0 });
  kernel.setUserMemoryRegion({ ...ram, size: mebibyte });
}

const factorial = (n: number): number => (n < 2 ? 1 : n * factorial(n - 1));
const read = (gpa: number): GuestStep => ({ kind: 'check', gpa, size: 4, expected: 0 });

describe('all interleavings of a commit', () => {
  const world =
    (guests: World['guests'], commit: (kvm: Small) => void, also: Partial<World> = {}) =>
    (): World => {
      const kvm = smallKvm();
      return { ...kvm, guests, commit: () => commit(kvm), ...also };
    };

  test('show each moment at which a vCPU would see a hole, once', () => {
    // Below the cut, above it, and nowhere: only the first is mapped before and after.
    const guests = [[read(0x1000), read(mebibyte), read(2 * mebibyte)]];
    const { interleavings, moments } = exploreInterleavings(world(guests, shrink));
    expect(moments.map(describeMoment)).toEqual([
      'after call 2 (delete slot 0 (GPA 0x0)) a read of vCPU 0 at 0x1000 exits with MMIO',
    ]);
    // Three steps over four points: start, invalid, deleted, created. Those into the invalid slot come back later.
    expect(interleavings).toBeGreaterThan(10);
  });

  test('tell an instruction fetch, which is deadly, from data', () => {
    const guests = [[{ kind: 'fetch', gpa: 0x1000 }], [{ kind: 'write', gpa: 0x1ffe, size: 4, value: 7 }]] as const;
    const { moments } = exploreInterleavings(world(guests, shrink));
    // An access that crosses pages has an exit for each.
    expect(moments.map(({ vcpu, gpa, exit }) => [vcpu, gpa, exit])).toEqual([
      [0, 0x1000, 'internal-error'],
      [1, 0x1ffe, 'mmio'],
      [1, 0x2000, 'mmio'],
    ]);
  });

  test('show no hole where nothing that stays mapped goes away', () => {
    // The second read may come before its slot does, and the write after its slot has gone.
    const guests = [
      [read(0x1000), read(4 * mebibyte)],
      [{ kind: 'write', gpa: 8 * mebibyte, size: 8, value: 1 }],
    ] as const;
    const { moments, interleavings } = exploreInterleavings(
      world(guests, ({ kernel, ram }) => {
        kernel.setUserMemoryRegion({ ...ram, flags: 1 });
        kernel.setUserMemoryRegion({ ...ram, slot: 1, gpa: 8 * mebibyte });
        kernel.setUserMemoryRegion({ ...ram, slot: 2, gpa: 4 * mebibyte });
        kernel.setUserMemoryRegion({ ...ram, slot: 1, size: 0 });
      }),
    );
    expect(moments).toEqual([]);
    expect(interleavings).toBeGreaterThan(20);
  });

  test('can be played again from a schedule, and drawn from a seed', () => {
    const guests = [[read(0x1000), read(0x2000)], [read(0x3000)]];
    const make = world(guests, shrink);
    const { moments, interleavings } = exploreInterleavings(make);
    expect(new Set(moments.map(({ gpa }) => gpa))).toEqual(new Set([0x1000, 0x2000, 0x3000]));
    for (const moment of moments) {
      expect(replayInterleaving(make, moment.schedule).map(describeMoment)).toContain(describeMoment(moment));
    }
    const drawn = (seed: number) => exploreInterleavings(make, { seed, limit: 20 });
    expect(drawn(1)).toEqual(drawn(1));
    expect(drawn(1).interleavings).toBe(20);
    expect(drawn(1).moments).not.toEqual(drawn(2).moments);
    expect(() => exploreInterleavings(make, { limit: interleavings - 1 })).toThrow('more than');
    expect(exploreInterleavings(make, { limit: interleavings }).moments).toEqual(moments);
  });

  test('count every order of the steps of two vCPUs around two calls that change flags', () => {
    const guests = [[read(0), read(0)], [read(0)]];
    const { interleavings } = exploreInterleavings(
      world(guests, ({ kernel, ram }) => {
        kernel.setUserMemoryRegion({ ...ram, flags: 1 });
        kernel.setUserMemoryRegion(ram);
      }),
    );
    // Words of two calls, a of vCPU 0's steps and b of vCPU 1's; those left over come after the commit.
    const words = (a: number, b: number): number => factorial(2 + a + b) / (2 * factorial(a) * factorial(b));
    const all = [0, 1, 2].flatMap((a) => [0, 1].map((b) => words(a, b))).reduce((sum, count) => sum + count);
    expect(interleavings).toBe(all);
  });

  test('show no hole inside a window that keeps vCPUs out', () => {
    const guests = [[read(0x1000), read(0x2000)], [{ kind: 'fetch', gpa: 0x1000 }]] as const;
    const make = (updates: 'atomic' | 'naive') => (): World => {
      const kvm = smallKvm();
      const inhibitor = new Inhibitor(kvm.arena);
      const gates = guests.map((_, index) => {
        const line = kvm.arena.allocate(gateLineBytes);
        inhibitor.add(index, line, { kick: () => kvm.backend.kick(index) });
        inhibitor.resume(index);
        return new Gate(kvm.arena, inhibitor.control, line);
      });
      return {
        ...kvm,
        guests,
        commit: () => (updates === 'atomic' ? void inhibitor.window(() => shrink(kvm)) : shrink(kvm)),
        mayRun: (vcpu) => gates[vcpu]!.startRun(),
      };
    };
    expect(exploreInterleavings(make('atomic')).moments).toEqual([]);
    expect(exploreInterleavings(make('naive')).moments).toHaveLength(3);
  });
});
