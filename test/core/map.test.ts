import { fc, test } from '@fast-check/vitest';
import { describe, expect, it } from 'vitest';
import type { Arena } from '../../ts/core/arena.js';
import { type Core, errno } from '../../ts/core/core.js';
import { openCore, rangeOf } from './core.js';

const page = 0x1000;
const pages = 20;
const backed = 0x10000;

/** A map of sections with the memory that its calls need. */
class Sections {
  readonly arena: Arena;
  readonly core: Core;
  readonly map: number;
  readonly #deletes: number;
  readonly #adds: number;
  readonly #scratch: number;
  readonly #out: number;
  readonly #scratchCapacity: number;

  constructor(capacity: number, scratchCapacity = 256) {
    const { arena, core } = openCore(1 << 20);
    this.arena = arena;
    this.core = core;
    this.map = arena.allocate(core.map_size(capacity));
    core.map_init(this.map, capacity);
    this.#deletes = arena.allocate(64 * arena.layout.range.bytes);
    this.#adds = arena.allocate(64 * arena.layout.range.bytes);
    this.#out = arena.allocate(arena.layout.range.bytes);
    this.#scratch = arena.allocate(scratchCapacity * arena.layout.range.bytes);
    this.#scratchCapacity = scratchCapacity;
  }

  commit(deletes: readonly Section[], adds: readonly Section[]): number {
    for (const [list, sections] of [
      [this.#deletes, deletes],
      [this.#adds, adds],
    ] as const) {
      for (const [index, { at, pages: length, region, ram }] of sections.entries()) {
        const range = rangeOf({
          gpa: at * page,
          size: length * page,
          host: ram ? (500 + at) * page : 0,
          region,
          flags: ram ? backed : 0,
          offset: 3 * page,
        });
        this.arena.writeRange(list + index * this.arena.layout.range.bytes, range);
      }
    }
    return this.core.map_commit(
      this.map,
      this.#deletes,
      deletes.length,
      this.#adds,
      adds.length,
      this.#scratch,
      this.#scratchCapacity,
    );
  }

  find(gpa: number) {
    return this.core.map_lookup(this.map, gpa, this.#out) === 0 ? this.arena.readRange(this.#out) : undefined;
  }

  get commits(): number {
    return this.arena.u32(this.map + this.arena.layout.map.commit);
  }
}

interface Section {
  readonly at: number;
  readonly pages: number;
  readonly region: number;
  readonly ram: boolean;
}

/** Sections that a random row of cuts makes: disjoint and ascending. */
const layout = fc
  .array(
    fc.record({
      pages: fc.integer({ min: 1, max: 6 }),
      gap: fc.nat(2),
      region: fc.integer({ min: 1, max: 4 }),
      ram: fc.boolean(),
    }),
    { maxLength: 7 },
  )
  .map((parts) => {
    const sections: Section[] = [];
    let at = 0;
    for (const { pages: length, gap, region, ram } of parts) {
      at += gap;
      if (at + length > pages) break;
      sections.push({ at, pages: length, region, ram });
      at += length;
    }
    return sections;
  });

describe('a map of sections', () => {
  test.prop([fc.array(layout, { maxLength: 12 })], { numRuns: 200 })(
    'finds at every address what was published last, and since which commit it has been backed without a break',
    (sequence) => {
      const map = new Sections(64);
      let before: Section[] = [];
      const since = new Map<number, number>();
      for (const [index, after] of sequence.entries()) {
        const same = (a: Section) => (b: Section) => JSON.stringify(a) === JSON.stringify(b);
        const deletes = before.filter((one) => !after.some(same(one)));
        const adds = after.filter((one) => !before.some(same(one)));
        expect(map.commit(deletes, adds)).toBe(0);
        expect(map.commits).toBe(index + 1);
        const ramAt = (list: Section[], at: number) =>
          list.some((one) => one.ram && at >= one.at && at < one.at + one.pages);
        for (let at = 0; at < pages; at++) {
          if (!ramAt(after, at)) since.delete(at);
          else if (!ramAt(before, at)) since.set(at, index + 1);
          const wanted = after.find((one) => at >= one.at && at < one.at + one.pages);
          for (const gpa of [at * page, at * page + page - 1]) {
            const found = map.find(gpa);
            expect(found?.region).toBe(wanted?.region);
            if (found === undefined || wanted === undefined) continue;
            expect(found.offset + gpa - found.gpa).toBe(3 * page + gpa - wanted.at * page);
            if (!wanted.ram) continue;
            expect(found.host + gpa - found.gpa).toBe(500 * page + gpa);
            expect(found.since).toBe(since.get(at));
          }
        }
        before = after;
      }
    },
  );

  const one: Section = { at: 2, pages: 4, region: 1, ram: true };

  it.each([
    ['deletes what is not there', [{ ...one, at: 3 }], [], errno.ENOENT],
    ['deletes what lies below all', [{ ...one, at: 0, pages: 1 }], [], errno.ENOENT],
    ['deletes what reaches beyond all', [{ ...one, pages: 6 }], [], errno.ENOENT],
    ['deletes one twice', [one, one], [], errno.EINVAL],
    ['adds downwards', [], [12, 9].map((at) => ({ ...one, at, pages: 1 })), errno.EINVAL],
    ['adds over what stays', [], [{ ...one, at: 4 }], errno.EEXIST],
    [
      'adds two that overlap',
      [one],
      [
        { ...one, at: 2 },
        { ...one, at: 4 },
      ],
      errno.EEXIST,
    ],
    ['adds an empty range', [], [{ ...one, at: 9, pages: 0 }], errno.ENOENT],
    ['adds more than there is room for', [], [7, 9, 11, 13].map((at) => ({ ...one, at, pages: 1 })), errno.ENOSPC],
  ])('is as it was after a commit that %s', (what, deletes, adds, number) => {
    const map = new Sections(4);
    expect(map.commit([], [one])).toBe(0);
    const result = map.commit(deletes, adds);
    // An empty section has nothing to publish.
    if (what.includes('empty')) expect(result).toBe(0);
    else expect(result).toBe(-number);
    expect(map.find(2 * page)).toMatchObject({ region: 1, gpa: 2 * page, size: 4 * page, since: 1 });
    expect(map.find(6 * page)).toBeUndefined();
    expect(map.commits).toBe(what.includes('empty') ? 2 : 1);
  });

  it('says so when the scratch space is too small for the pieces', () => {
    const map = new Sections(8, 1);
    expect(map.commit([], [one, { ...one, at: 9 }])).toBe(-errno.ENOSPC);
    expect(map.find(2 * page)).toBeUndefined();
  });
});
