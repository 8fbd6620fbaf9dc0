import { fc, test } from '@fast-check/vitest';
import { describe, expect } from 'vitest';
import { Planner } from '../../ts/kvm/planner.js';
import { openCore, rangeOf } from './core.js';

const page = 0x1000;
/** Places of one page, each free or taken. */
const places = 300;
const backed = 0x10000;

/** Which places change hands: each number toggles, replaces, or leaves the place it stands for. */
const step = fc.array(fc.constantFrom('keep', 'keep', 'keep', 'toggle', 'replace'), {
  minLength: places,
  maxLength: places,
});
/** Changes of a few neighbours only, and of everything. */
const steps = fc.array(
  fc.record({ changes: step, from: fc.nat(places), length: fc.constantFrom(1, 3, 20, 150, places) }),
  { minLength: 1, maxLength: 8 },
);

/** Runs `commit` for each step with what is deleted and added, and `check` after it with what is there now. */
function play(
  sequence: readonly { changes: readonly string[]; from: number; length: number }[],
  commit: (deletes: number[], adds: number[], round: number) => void,
  check: (present: ReadonlySet<number>) => void,
): void {
  const present = new Set(Array.from({ length: places }, (_, place) => place).filter((place) => place % 3 !== 0));
  commit([], [...present], 0);
  check(present);
  for (const [round, { changes, from, length }] of sequence.entries()) {
    const [deletes, adds]: [number[], number[]] = [[], []];
    for (const [place, change] of changes.entries()) {
      if (place < from || place >= from + length || change === 'keep') continue;
      if (present.has(place)) deletes.push(place);
      if (!present.has(place) || change === 'replace') adds.push(place);
    }
    commit(deletes, adds, round + 1);
    for (const place of deletes) present.delete(place);
    for (const place of adds) present.add(place);
    check(present);
  }
}

describe('many ranges that go and come at once', () => {
  test.prop([steps], { numRuns: 60 })('are all found in a map, and nothing else is', (sequence) => {
    const { arena, core } = openCore(1 << 20);
    const { range, constants } = arena.layout;
    const map = arena.allocate(core.map_size(places));
    core.map_init(map, places);
    const [deleted, added] = [arena.allocate(places * range.bytes), arena.allocate(places * range.bytes)];
    const [scratch, out] = [arena.allocate(2 * places * range.bytes), arena.allocate(range.bytes)];
    const write = (list: number, chosen: number[]) => {
      for (const [index, place] of chosen.entries()) {
        const section = rangeOf({ gpa: place * page, size: page, region: place + 1 });
        arena.writeRange(list + index * range.bytes, section);
      }
    };
    play(
      sequence,
      (deletes, adds) => {
        write(deleted, deletes);
        write(added, adds);
        const lists = [deleted, deletes.length, added, adds.length] as const;
        expect(core.map_commit(map, ...lists, scratch, 2 * places)).toBe(0);
      },
      (present) => {
        for (let place = 0; place < places; place++) {
          const found = core.map_lookup(map, place * page + 5, out) === 0 ? arena.readRange(out) : undefined;
          expect(found?.region ?? constants.ANY_ID).toBe(present.has(place) ? place + 1 : constants.ANY_ID);
        }
      },
    );
  });

  test.prop([steps], { numRuns: 60 })('are all slots of a table, in order, and nothing else is', (sequence) => {
    const { arena, core } = openCore(1 << 21);
    const planner = new Planner(arena, core, { slots: places, policy: 'exact', sections: places });
    const hosts = new Map<number, number>();
    const section = (place: number) =>
      rangeOf({ gpa: place * page, size: page, host: hosts.get(place)!, flags: backed });
    play(
      sequence,
      (deletes, adds, round) => {
        planner.begin();
        for (const place of deletes) planner.delete(section(place));
        for (const place of adds) hosts.set(place, (2 * places * (round + 1) + 2 * place) * page);
        for (const place of adds) planner.add(section(place));
        const { operations } = planner.plan();
        expect(operations).toBe(deletes.length + adds.length);
        planner.applied(planner.operations, operations);
      },
      (present) => {
        const wanted = [...present].sort((a, b) => a - b).map((place) => [place * page, hosts.get(place)]);
        const slots = planner.list(0);
        expect(slots.map(({ gpa, host }) => [gpa, host])).toEqual(wanted);
        expect(new Set(slots.map(({ id }) => id)).size).toBe(slots.length);
      },
    );
  });
});
