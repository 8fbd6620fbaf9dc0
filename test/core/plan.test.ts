import { fc, test } from '@fast-check/vitest';
import { describe, expect, it } from 'vitest';
import type { MemoryRange } from '../../ts/core/arena.js';
import { Planner, type PlannerOptions, type Policy } from '../../ts/kvm/planner.js';
import { openCore, rangeOf } from './core.js';

const page = 0x1000;
const pages = 24;
const backed = 0x10000;
const logDirty = 1;
const readonly = 2;
const loggingOnly = 0x20000;

/** A section of the random maps below, in pages. */
interface Section {
  readonly as: number;
  readonly at: number;
  readonly pages: number;
  readonly host: number;
  readonly flags: number;
}

const key = ({ as, at, pages: length, host, flags }: Section) => [as, at, length, host, flags & readonly].join();

const section = fc.record({
  as: fc.constantFrom(0, 0, 0, 1),
  at: fc.nat(pages - 1),
  pages: fc.integer({ min: 1, max: 12 }),
  // Often the same memory at its own place, so that translations stay while sections change.
  host: fc.oneof(
    { weight: 4, arbitrary: fc.constant(100) },
    { weight: 1, arbitrary: fc.integer({ min: 200, max: 210 }) },
  ),
  readonly: fc.boolean(),
  logged: fc.boolean(),
});

/** Disjoint sections: each new one displaces what it overlaps, cut to pieces. */
function layOut(
  raw: readonly { as: number; at: number; pages: number; host: number; readonly: boolean; logged: boolean }[],
): Section[] {
  let sections: Section[] = [];
  for (const { as, at, pages: length, host, readonly: isReadonly, logged } of raw) {
    const end = Math.min(at + length, pages);
    sections = sections.flatMap((old) => {
      const oldEnd = old.at + old.pages;
      if (old.as !== as || old.at >= end || oldEnd <= at) return [old];
      const left = { ...old, pages: at - old.at };
      const right = { ...old, at: end, pages: oldEnd - end };
      return [left, right].filter((piece) => piece.pages > 0);
    });
    sections.push({ as, at, pages: end - at, host, flags: (isReadonly ? readonly : 0) | (logged ? logDirty : 0) });
  }
  return sections.sort((a, b) => a.as - b.as || a.at - b.at);
}

/** Page by page: where it leads and with which flags; undefined for a hole. */
function translations(
  ranges: Iterable<{ as: number; at: number; pages: number; host: number; flags: number }>,
): Map<string, string> {
  const result = new Map<string, string>();
  for (const { as, at, pages: length, host, flags } of ranges) {
    for (let index = at; index < at + length; index++) result.set(`${as}:${index}`, `${host + index}/${flags}`);
  }
  return result;
}

const asRange = ({ as, at, pages: length, host, flags }: Section): MemoryRange =>
  rangeOf({ gpa: at * page, size: length * page, host: (host + at) * page, flags: flags | backed, addressSpace: as });

const asSection = (slot: MemoryRange): Section & { id: number } => ({
  as: slot.addressSpace,
  at: slot.gpa / page,
  pages: slot.size / page,
  host: (slot.host - slot.gpa) / page,
  flags: slot.flags,
  id: slot.id,
});

/** What KVM would have after each call; fails the test where KVM would refuse one. */
class Kernel {
  readonly slots = new Map<string, Section>();

  apply(planner: Planner, count: number, each: () => void): void {
    for (let index = 0; index < count; index++) {
      const { kind, slot } = planner.operation(index);
      const wanted = asSection(slot);
      const id = `${wanted.as}:${slot.id}`;
      const old = this.slots.get(id);
      if (kind === 'create') {
        expect(old, 'a create takes a free id').toBeUndefined();
        for (const other of this.slots.values()) {
          const apart =
            other.as !== wanted.as || other.at >= wanted.at + wanted.pages || other.at + other.pages <= wanted.at;
          expect(apart, 'a create overlaps nothing').toBe(true);
        }
        this.slots.set(id, wanted);
      } else {
        expect(old, 'a delete or change of flags finds its slot').toBeDefined();
        expect([old!.at, old!.pages, old!.host]).toEqual([wanted.at, wanted.pages, wanted.host]);
        if (kind === 'delete') this.slots.delete(id);
        else {
          expect((old!.flags ^ wanted.flags) & readonly, 'only logging changes in place').toBe(0);
          this.slots.set(id, wanted);
        }
      }
      each();
    }
  }
}

function makePlanner(options: Partial<PlannerOptions> & { policy: Policy }): Planner {
  const { arena, core } = openCore(1 << 22);
  return new Planner(arena, core, { slots: 64, sections: 256, ...options });
}

/** Captures the difference of two maps as the memory map tells it: deletes, then adds and changes of logging. */
function capture(planner: Planner, before: readonly Section[], after: readonly Section[]): void {
  const old = new Map(before.map((one) => [key(one), one]));
  const now = new Map(after.map((one) => [key(one), one]));
  planner.begin();
  for (const one of before) if (!now.has(key(one))) planner.delete(asRange(one));
  for (const one of after) {
    const same = old.get(key(one));
    if (same === undefined) planner.add(asRange(one));
    else if (same.flags !== one.flags) planner.add({ ...asRange(one), flags: asRange(one).flags | loggingOnly });
  }
}

const maps = fc.array(fc.array(section, { maxLength: 8 }).map(layOut), { minLength: 1, maxLength: 6 });

describe.each(['exact', 'stable'] as const)('a plan under policy %s', (policy) => {
  test.prop([maps, fc.boolean(), fc.subarray([3, 8, 15])], { numRuns: 300 })(
    'leads to the new translation by calls that KVM accepts one by one, and stops vCPUs exactly when it has to',
    (sequence, discardDirty, splits) => {
      const planner = makePlanner({ policy, discardDirty, splitPoints: splits.map((at) => at * page) });
      const kernel = new Kernel();
      let before: Section[] = [];
      for (const after of sequence) {
        const wasMapped = translations(before);
        const toBeMapped = translations(after);
        capture(planner, before, after);
        const plan = planner.plan();
        const operations = Array.from({ length: plan.operations }, (_, index) => planner.operation(index));
        const lost = new Set<string>();
        kernel.apply(planner, plan.operations, () => {
          const now = translations(kernel.slots.values());
          for (const at of wasMapped.keys()) if (toBeMapped.has(at) && !now.has(at)) lost.add(at);
        });
        planner.applied(planner.operations, plan.operations);

        expect(translations(kernel.slots.values())).toEqual(toBeMapped);
        const listed = [0, 1].flatMap((as) => planner.list(as).map(asSection));
        expect(new Map(listed.map((slot) => [`${slot.as}:${slot.id}`, { ...slot, id: 0 }]))).toEqual(
          new Map([...kernel.slots].map(([id, slot]) => [id, { ...slot, id: 0 }])),
        );

        expect(plan.overlap).toBe(lost.size > 0);
        const harvests = operations.filter(({ kind, slot, oldFlags }) =>
          kind === 'delete' ? slot.flags & logDirty : kind === 'flags' && oldFlags & ~slot.flags & logDirty,
        );
        expect(plan.harvests).toBe(discardDirty ? 0 : harvests.length);
        expect(plan.inhibit).toBe(plan.overlap || plan.harvests > 0);
        expect([plan.creates, plan.deletes, plan.flagChanges]).toEqual(
          ['create', 'delete', 'flags'].map((kind) => operations.filter((one) => one.kind === kind).length),
        );

        const deleted = operations.filter(({ kind }) => kind === 'delete').map(({ slot }) => asSection(slot));
        expect(plan.bytesTornDown).toBe(deleted.reduce((sum, slot) => sum + slot.pages * page, 0));
        const tornDown = translations(deleted);
        const remapped = [...tornDown].filter(([at, where]) => toBeMapped.get(at) === where);
        expect(plan.bytesRemapped).toBe(remapped.length * page);
        if (policy === 'exact') {
          const slots = listed.sort((a, b) => a.as - b.as || a.at - b.at).map((slot) => ({ ...slot, id: 0 }));
          expect(slots).toEqual(after.map((one) => ({ ...one, id: 0 })));
        } else {
          // Least disturbance: whatever goes has a page that changes, or pages of which only some are to be logged.
          for (const slot of deleted) {
            const own = [...translations([slot])];
            const changed = own.some(
              ([at, where]) =>
                toBeMapped.get(at)?.replace(/\d+$/, '') !== where.replace(/\d+$/, '') ||
                (Number(where.at(-1)) ^ Number(toBeMapped.get(at)!.at(-1))) & readonly,
            );
            const logging = new Set(own.map(([at]) => Number(toBeMapped.get(at)?.at(-1)) & logDirty));
            expect(changed || logging.size > 1).toBe(true);
          }
        }
        before = after;
      }
    },
  );
});

describe('a plan', () => {
  const whole: Section = { as: 0, at: 0, pages: 16, host: 100, flags: 0 };

  it('keeps a slot whose sections were split and merged around it, and creates nothing', () => {
    const planner = makePlanner({ policy: 'stable' });
    capture(planner, [], [whole]);
    planner.applied(planner.operations, planner.plan().operations);
    const halves = [
      { ...whole, pages: 8 },
      { ...whole, at: 8, pages: 8 },
    ];
    capture(planner, [whole], halves);
    expect(planner.plan()).toMatchObject({ operations: 0, inhibit: false, kept: 1 });
    capture(planner, halves, [whole]);
    expect(planner.plan()).toMatchObject({ operations: 0, inhibit: false });
  });

  it('cuts new slots at split points, and then tears down only the piece that changes', () => {
    const planner = makePlanner({ policy: 'stable', splitPoints: [4 * page, 6 * page] });
    capture(planner, [], [whole]);
    expect(planner.plan().creates).toBe(3);
    planner.applied(planner.operations, 3);
    const reshaped = layOut([
      { as: 0, at: 0, pages: 16, host: 100, readonly: false, logged: false },
      { as: 0, at: 4, pages: 2, host: 200, readonly: true, logged: false },
    ]);
    capture(planner, [whole], reshaped);
    expect(planner.plan()).toMatchObject({
      deletes: 1,
      creates: 1,
      bytesTornDown: 2 * page,
      bytesRemapped: 0,
      inhibit: true,
    });
  });

  it('never stops a vCPU for adds, for deletes of slots that nobody logs, or for turning logging on', () => {
    const planner = makePlanner({ policy: 'stable' });
    const steps: [Section[], Section[]][] = [
      [[], [whole]],
      [[whole], [{ ...whole, flags: logDirty }]],
    ];
    for (const [before, after] of steps) {
      capture(planner, before, after);
      const plan = planner.plan();
      expect(plan).toMatchObject({ inhibit: false, operations: 1 });
      planner.applied(planner.operations, plan.operations);
    }
    capture(planner, [{ ...whole, flags: logDirty }], [whole]);
    expect(planner.plan()).toMatchObject({ inhibit: true, overlap: false, harvests: 1, flagChanges: 1 });
    planner.applied(planner.operations, 1);
    capture(planner, [whole], []);
    expect(planner.plan()).toMatchObject({ inhibit: false, deletes: 1 });
  });

  it('maps whole pages only: starts are rounded up, ends down, and what is left of less than a page is nothing', () => {
    const planner = makePlanner({ policy: 'stable' });
    planner.begin();
    planner.add(rangeOf({ gpa: 0x1800, size: 0x2000, host: 0x7000_0800, flags: backed }));
    planner.add(rangeOf({ gpa: 0x9100, size: 0x800, host: 0x7100_0000, flags: backed }));
    expect(planner.plan().operations).toBe(1);
    expect(planner.operation(0).slot).toMatchObject({ gpa: 0x2000, size: 0x1000, host: 0x7000_1000 });
  });

  it('makes several slots of a section that is larger than KVM takes', () => {
    const largestSlot = (2 ** 31 - 1) * page;
    const planner = makePlanner({ policy: 'exact', largestSlot });
    planner.begin();
    planner.add(rangeOf({ gpa: 0, size: 2 ** 44, host: 2 ** 45, flags: backed }));
    const { operations } = planner.plan();
    const slots = Array.from({ length: operations }, (_, index) => planner.operation(index).slot);
    expect(slots.map(({ size }) => size)).toEqual([largestSlot, largestSlot, 2 * page]);
    expect(slots.map(({ host, gpa }) => host - gpa)).toEqual([2 ** 45, 2 ** 45, 2 ** 45]);
  });

  it('ignores sections that no memory backs', () => {
    const planner = makePlanner({ policy: 'exact' });
    planner.begin();
    planner.add(rangeOf({ gpa: 0x1000, size: 0x1000 }));
    expect(planner.plan().operations).toBe(0);
  });

  it.each([
    ['that descend', [5, 2]],
    ['that overlap', [2, 3]],
  ])('refuses sections %s', (_, starts) => {
    const planner = makePlanner({ policy: 'exact' });
    planner.begin();
    for (const at of starts) planner.add(asRange({ ...whole, at, pages: 2 }));
    expect(() => planner.plan()).toThrow(/must ascend and not overlap/);
  });

  it('refuses an address space that there is not', () => {
    const planner = makePlanner({ policy: 'exact' });
    planner.begin();
    planner.add({ ...asRange(whole), addressSpace: 2 });
    expect(() => planner.plan()).toThrow(/must ascend/);
  });

  it('refuses more sections than it has room for, naming the one too many', () => {
    const planner = makePlanner({ policy: 'exact', sections: 1 });
    planner.begin();
    planner.add(asRange(whole));
    expect(() => planner.add(asRange({ ...whole, at: 20, pages: 1 }))).toThrow(
      /\[0x14000, 0x15000\) \(4 KiB\) is one too many/,
    );
  });
});

describe('a plan that runs short of slots', () => {
  test.prop([maps, fc.integer({ min: 1, max: 8 })], { numRuns: 300 })(
    'merges neighbours, and gives up only when the merged map needs more slots than there are',
    (sequence, slots) => {
      const planner = makePlanner({ policy: 'stable', slots, discardDirty: true });
      const kernel = new Kernel();
      let before: Section[] = [];
      for (const after of sequence) {
        capture(planner, before, after);
        const needed = Math.max(...[0, 1].map((as) => mergedCount(after.filter((one) => one.as === as))));
        if (needed > slots) {
          expect(() => planner.plan()).toThrow(/even when neighbours are merged, and there are/);
          continue;
        }
        const plan = planner.plan();
        kernel.apply(planner, plan.operations, () => {
          for (const as of [0, 1]) {
            expect([...kernel.slots.values()].filter((slot) => slot.as === as).length).toBeLessThanOrEqual(slots);
          }
        });
        planner.applied(planner.operations, plan.operations);
        expect(translations(kernel.slots.values())).toEqual(translations(after));
        before = after;
      }
    },
  );

  it('says how many slots the map needs and how many there are', () => {
    const planner = makePlanner({ policy: 'stable', slots: 2 });
    capture(
      planner,
      [],
      [0, 4, 8].map((at) => ({ as: 0, at, pages: 1, host: 100 + at * 7, flags: 0 })),
    );
    expect(() => planner.plan()).toThrow(/needs 3 slots even when neighbours are merged, and there are 2/);
  });

  it('merges small neighbours before large ones', () => {
    const planner = makePlanner({ policy: 'stable', slots: 4, splitPoints: [page, 2 * page, 10 * page] });
    const whole: Section = { as: 0, at: 0, pages: 16, host: 100, flags: 0 };
    capture(planner, [], [whole]);
    planner.applied(planner.operations, planner.plan().operations);
    expect(planner.count(0)).toBe(4);
    capture(planner, [whole], [whole, { ...whole, at: 20, pages: 1, host: 300 }]);
    const plan = planner.plan();
    expect(plan).toMatchObject({ merged: 2, bytesTornDown: 2 * page, creates: 2 });
  });
});

function mergedCount(sections: readonly Section[]): number {
  return sections.filter((one, index) => {
    const previous = sections[index - 1];
    return !(
      previous &&
      previous.at + previous.pages === one.at &&
      previous.host === one.host &&
      previous.flags === one.flags
    );
  }).length;
}
