import { fc, test } from '@fast-check/vitest';
import { describe, expect, it } from 'vitest';
import type { Arena } from '../../ts/core/arena.js';
import { type Core, errno } from '../../ts/core/core.js';
import { openCore, rangeOf } from './core.js';

const page = 0x1000n;
const mostAddresses = 64;
const mostRanges = 5000;

interface Range {
  readonly gpa: bigint;
  readonly size: bigint;
}

/** A table and a plain list of the same, by id. 64-bit values are big integers, so that none is out of reach. */
class Tables {
  readonly arena: Arena;
  readonly core: Core;
  readonly table: number;
  readonly list: (Range | undefined)[] = [];
  readonly #range: number;
  readonly #gpas: number;
  readonly #ids: number;
  readonly #bytes: DataView;

  constructor(capacity: number) {
    const { arena, core } = openCore(1 << 20);
    this.arena = arena;
    this.core = core;
    this.table = arena.allocate(core.table_size(capacity));
    core.table_init(this.table, capacity);
    this.#range = arena.allocate(arena.layout.range.bytes);
    this.#gpas = arena.allocate(mostAddresses * 8);
    this.#ids = arena.allocate(mostAddresses * 4);
    this.#bytes = new DataView(arena.octets.buffer);
  }

  insert(range: Range): number {
    const { layout } = this.arena;
    this.#bytes.setBigUint64(this.#range + layout.range.gpa, range.gpa, true);
    this.#bytes.setBigUint64(this.#range + layout.range.size, range.size, true);
    this.arena.setU32(this.#range + layout.range.id, layout.constants.ANY_ID);
    const id = this.core.insert(this.table, this.#range);
    if (id >= 0) this.list[id] = range;
    return id;
  }

  remove(id: number): void {
    expect(this.core.remove(this.table, id)).toBe(this.list[id] === undefined ? -errno.ENOENT : 0);
    this.list[id] = undefined;
  }

  expected(gpa: bigint): number {
    const id = this.list.findIndex((range) => range !== undefined && gpa >= range.gpa && gpa < range.gpa + range.size);
    return id < 0 ? -errno.ENOENT : id;
  }

  batch(gpas: readonly bigint[], path: number): { found: number; ids: number[] } {
    for (const [index, gpa] of gpas.entries()) this.#bytes.setBigUint64(this.#gpas + index * 8, gpa, true);
    const found = this.core.find_batch(this.table, this.#gpas, this.#ids, gpas.length, path);
    return { found, ids: gpas.map((_, index) => this.arena.words[(this.#ids >>> 2) + index]!) };
  }

  /** Every path of this build on this processor. */
  paths(): number[] {
    const { PATH_SCALAR } = this.arena.layout.constants;
    return [...new Set([PATH_SCALAR, this.core.best_path()])];
  }

  /** Compares all paths, and single look-ups, with the list: at the edges of some ranges, and at the ends of the world. */
  check(pick: (most: number) => number): void {
    const present = this.list.filter((range) => range !== undefined);
    const edges = Array.from(
      { length: Math.min(10, present.length) },
      () => present[pick(present.length - 1)]!,
    ).flatMap(({ gpa, size }) => [gpa - 1n, gpa, gpa + size / 2n, gpa + size - 1n, gpa + size]);
    const gpas = [0n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n, ...edges].filter((gpa) => gpa >= 0n);
    const some = gpas.slice(0, pick(gpas.length));
    for (const asked of [gpas, some]) {
      const ids = asked.map((gpa) => this.expected(gpa));
      const found = ids.filter((id) => id >= 0).length;
      for (const path of this.paths()) expect(this.batch(asked, path)).toEqual({ found, ids });
    }
    for (const gpa of gpas.filter((value) => value <= BigInt(Number.MAX_SAFE_INTEGER))) {
      expect(this.core.find(this.table, Number(gpa))).toBe(this.expected(gpa));
    }
  }
}

/** Where ranges lie: spread evenly, in clusters far apart, or around and above 2^63, where signed comparisons go wrong. */
const places: Record<string, (index: bigint) => bigint> = {
  spread: (index) => index * 3n * page,
  clustered: (index) => (index / 100n) * 2n ** 40n + (index % 100n) * 2n * page,
  high: (index) => 2n ** 63n - 1000n * page + index * 2n * page,
};

describe('a search', () => {
  test.prop(
    [
      fc.constantFrom(...Object.keys(places)),
      fc.constantFrom(0, 1, 7, 8, 9, 63, 64, 65, 511, 512, 513, 4095, 4097),
      fc.infiniteStream(fc.nat()),
    ],
    { numRuns: 40 },
  )('finds on every path what a plain list finds, while ranges come and go', (place, count, numbers) => {
    const pick = (most: number) => numbers.next().value! % (most + 1);
    const tables = new Tables(Math.max(1, count + pick(3)));
    const free = Array.from({ length: count }, (_, index) => BigInt(index));
    const indices: bigint[] = [];
    const insert = () => {
      const [index] = free.splice(pick(free.length - 1), 1);
      const id = tables.insert({ gpa: places[place]!(index!), size: pick(1) === 0 ? page : 2n * page });
      expect(id).toBeGreaterThanOrEqual(0);
      indices[id] = index!;
    };
    tables.check(pick);
    while (free.length > 0) insert();
    tables.check(pick);
    for (let step = 0; step < 5 && count > 0; step++) {
      const removed = Array.from({ length: 1 + pick(Math.min(count - 1, 70)) }, () => pick(count - 1));
      for (const id of new Set(removed)) {
        tables.remove(id);
        free.push(indices[id]!);
      }
      tables.check(pick);
      while (free.length > pick(3)) insert();
      tables.check(pick);
      while (free.length > 0) insert();
    }
  });

  it('refuses a path that this build lacks, and says which is best', () => {
    const tables = new Tables(mostRanges);
    const { PATH_SCALAR, PATH_AVX2, PATH_SIMD128 } = tables.arena.layout.constants;
    const native = tables.core.build === 'native';
    expect(tables.batch([0n], native ? PATH_SIMD128 : PATH_AVX2).found).toBe(-errno.EINVAL);
    tables.insert({ gpa: 0n, size: page });
    for (const asked of [1, 8, 20]) {
      const gpas = Array.from({ length: asked }, () => 0n);
      expect(tables.batch(gpas, native ? PATH_SIMD128 : PATH_AVX2).found).toBe(-errno.EINVAL);
    }
    expect(native ? [PATH_SCALAR, PATH_AVX2] : [PATH_SIMD128]).toContain(tables.core.best_path());
  });
});

describe('a map of many sections', () => {
  it('is searched level by level too, before and after a commit in its middle', () => {
    const { arena, core } = openCore(1 << 21);
    const capacity = 2000;
    const { range, constants } = arena.layout;
    const map = arena.allocate(core.map_size(capacity));
    core.map_init(map, capacity);
    const [deletes, adds, out] = [arena.allocate(range.bytes), arena.allocate(1000 * range.bytes), arena.allocate(64)];
    const scratch = arena.allocate(capacity * range.bytes);
    const section = (index: number) => rangeOf({ gpa: index * 0x3000, size: 0x2000, region: index + 1 });
    for (let index = 0; index < 1000; index++) arena.writeRange(adds + index * range.bytes, section(index));
    expect(core.map_commit(map, deletes, 0, adds, 1000, scratch, capacity)).toBe(0);
    const found = (gpa: number) =>
      core.map_lookup(map, gpa, out) === 0 ? arena.readRange(out).region : constants.ANY_ID;
    const expectAll = (missing: number) => {
      for (let index = 0; index < 1000; index++) {
        const region = index === missing ? constants.ANY_ID : index + 1;
        const at = [0, 0x1fff, 0x2000].map((offset) => found(index * 0x3000 + offset));
        expect(at).toEqual([region, region, constants.ANY_ID]);
      }
    };
    expectAll(-1);
    arena.writeRange(deletes, section(503));
    expect(core.map_commit(map, deletes, 1, adds, 0, scratch, capacity)).toBe(0);
    expectAll(503);
    arena.writeRange(adds, section(503));
    expect(core.map_commit(map, deletes, 0, adds, 1, scratch, capacity)).toBe(0);
    expectAll(-1);
  });
});
