import { type Address, add } from './address.js';
import type { GuestMemory } from './guest-memory.js';
import type { MemoryRegion } from './region.js';

/** One range of a flat view: who answers these addresses, and how. */
export interface FlatRange {
  /** Guest-physical address of the first byte. */
  readonly gpa: Address;
  /** Size in bytes. */
  readonly size: Address;
  /** The region shown here: never an alias or a container. */
  readonly region: MemoryRegion;
  /** Where in the region the range starts, in bytes. */
  readonly offset: Address;
  /** Whether the guest may not write it: the region, or an alias or container on the way to it, is read-only. */
  readonly readonly: boolean;
  /** Whether it is a ROM device in ROM mode. */
  readonly romMode: boolean;
  /** Whether the region, or an alias or container on the way to it, is marked non-volatile. */
  readonly nonvolatile: boolean;
  /** Whether guest writes to it are logged. */
  readonly logging: boolean;
}

/** What a range has that host memory backs: its numbers are below 2^53, so they are exact JavaScript numbers. */
export interface Backed {
  readonly gpa: number;
  readonly size: number;
  readonly offset: number;
  readonly region: MemoryRegion & { readonly memory: GuestMemory };
}

/** Whether guest reads of the range come from memory: RAM, ROM, device memory, or a ROM device in ROM mode. */
export function isRamLike(range: FlatRange): boolean {
  const { kind } = range.region;
  return kind === 'ram' || kind === 'rom' || kind === 'ram-device' || range.romMode;
}

/** Whether the range is RAM-like and its region has host memory, which is what a memory slot can map. */
export function isBacked<T extends FlatRange>(range: T): range is T & Backed {
  return range.region.memory !== undefined && isRamLike(range);
}

/** Whether guest writes to the range go to memory too, and not to handlers or nowhere. */
export function isWritable(range: FlatRange): boolean {
  return isRamLike(range) && !range.readonly && !range.romMode;
}

/** The address just past the range. */
export function rangeEnd(range: FlatRange): Address {
  return add(range.gpa, range.size);
}

/** Whether two ranges are the same apart from the logging mark, which is what listeners compare by. */
export function sameRange(a: FlatRange, b: FlatRange): boolean {
  return (
    a.gpa === b.gpa &&
    a.size === b.size &&
    a.region === b.region &&
    a.offset === b.offset &&
    a.readonly === b.readonly &&
    a.romMode === b.romMode &&
    a.nonvolatile === b.nonvolatile
  );
}

/** The map of one address space at one moment: disjoint ranges by ascending address. Never changes. */
export class FlatView {
  readonly ranges: readonly FlatRange[];

  constructor(ranges: readonly FlatRange[]) {
    this.ranges = ranges;
  }

  /** The range that holds `gpa`, or undefined in a hole. O(log n) comparisons. */
  find(gpa: Address): FlatRange | undefined {
    const range = this.ranges[this.indexAfter(gpa) - 1];
    return range !== undefined && gpa < rangeEnd(range) ? range : undefined;
  }

  /** The index of the first range that starts above `gpa`, the number of ranges if none does. */
  indexAfter(gpa: Address): number {
    let [from, to] = [0, this.ranges.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.ranges[middle]!.gpa <= gpa) from = middle + 1;
      else to = middle;
    }
    return from;
  }
}
