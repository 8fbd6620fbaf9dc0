import type { Arena } from '../../ts/core/arena.js';
import type { Core } from '../../ts/core/core.js';
import { nativeCore } from '../../ts/core/native.js';
import { createArena } from '../../ts/core/node.js';

/** Numbers of slots that look-ups and plans are measured at; the last is what KVM has on x86. */
export const slotCounts = [8, 64, 509, 4096, 32764] as const;
export const mostSlots = 32764;
export const addressCount = 4096;

const page = 4096;

/** A range of guest-physical addresses, in bytes. */
export interface Range {
  readonly gpa: number;
  readonly size: number;
}

/** Reproducible random integers: from 0 to below `below`. */
export function randomNumbers(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** Where the slots of a guest may lie. */
export const layouts: Readonly<Record<'spread' | 'clustered', (count: number) => Range[]>> = {
  /** One after the other with gaps, all of about a size. */
  spread(count) {
    const random = randomNumbers(1);
    let at = 0;
    return Array.from({ length: count }, () => {
      const gpa = at + random(16) * page;
      const size = (1 + random(16)) * page;
      at = gpa + size;
      return { gpa, size };
    });
  },
  /** Clusters of up to 200 adjacent slots, far apart, up to the 52nd bit. */
  clustered(count) {
    const random = randomNumbers(2);
    const clusters = Math.ceil(count / 200);
    const distance = Math.floor(2 ** 51 / (clusters + 1) / page) * page;
    let [at, left] = [0, 0];
    let cluster = 0;
    return Array.from({ length: count }, () => {
      if (left === 0) {
        left = 1 + random(200);
        if (cluster < clusters) at = ++cluster * distance;
      }
      left--;
      const gpa = at;
      const size = (1 + random(16)) * page;
      at += size;
      return { gpa, size };
    });
  },
};

/** Random addresses: one in 16 anywhere, the others in some range. */
export function addressesIn(ranges: readonly Range[]): number[] {
  const random = randomNumbers(3);
  const last = ranges.at(-1)!;
  const end = last.gpa + last.size;
  return Array.from({ length: addressCount }, () => {
    const { gpa, size } = ranges[random(ranges.length)]!;
    return random(16) === 0 ? random(end / page) * page : gpa + random(size);
  });
}

/** The permutation of 0 … count − 1 by which slots got their ids. */
export function shuffled(count: number): number[] {
  const random = randomNumbers(4);
  const order = Array.from({ length: count }, (_, index) => index);
  for (let index = count - 1; index > 0; index--) {
    const other = random(index + 1);
    [order[index], order[other]] = [order[other]!, order[index]!];
  }
  return order;
}

/** A slot table with all that the rivals need of the same slots, in one arena that both builds use. */
export class Slots {
  readonly arena: Arena;
  readonly native: Core;
  readonly ranges: readonly Range[];
  readonly addresses: Float64Array;
  /** Id of each range. */
  readonly ids: readonly number[];
  /** Arena offsets: our table, records by id, sorted arrays of starts, ends and ids, addresses as integers and as
   * doubles, and where the answers go. */
  readonly table: number;
  readonly records: number;
  readonly starts: number;
  readonly ends: number;
  readonly sortedIds: number;
  readonly gpas: number;
  readonly doubles: number;
  readonly answers: number;

  /** `spare` bytes a slot are left in the arena for more. */
  constructor(ranges: readonly Range[], spare = 0) {
    const count = ranges.length;
    const arena = createArena(count * (256 + spare) + addressCount * 24 + (1 << 20));
    const core = nativeCore(arena);
    this.arena = arena;
    this.native = core;
    this.ranges = ranges;
    this.table = arena.allocate(core.table_size(count));
    core.table_init(this.table, count);
    const { bytes } = arena.layout.range;
    this.records = arena.allocate(count * bytes);
    this.starts = arena.allocate(count * 8);
    this.ends = arena.allocate(count * 8);
    this.sortedIds = arena.allocate(count * 4);
    this.gpas = arena.allocate(addressCount * 8);
    this.doubles = arena.allocate(addressCount * 8);
    this.answers = arena.allocate(addressCount * 4);
    this.ids = shuffled(count);
    for (const [index, { gpa, size }] of ranges.entries()) {
      const id = this.ids[index]!;
      const at = this.records + id * bytes;
      const rest = { host: 2 ** 40 + gpa, offset: 0, flags: 0x10000, region: 0, since: 0 };
      arena.writeRange(at, { gpa, size, id, addressSpace: 0, guestMemfd: -1, ...rest });
      if (core.insert(this.table, at) !== id) throw new Error('the layout overlaps itself');
      arena.setU64(this.starts + index * 8, gpa);
      arena.setU64(this.ends + index * 8, gpa + size);
      arena.setU32(this.sortedIds + index * 4, id);
    }
    const addresses = addressesIn(ranges);
    for (const [index, gpa] of addresses.entries()) arena.setU64(this.gpas + index * 8, gpa);
    this.addresses = new Float64Array(arena.octets.buffer as ArrayBuffer, this.doubles, addressCount);
    this.addresses.set(addresses);
  }

  /** The answers of the last look-up. */
  readAnswers(count = addressCount): number[] {
    return [...this.arena.words.subarray(this.answers >>> 2, (this.answers >>> 2) + count)];
  }
}
