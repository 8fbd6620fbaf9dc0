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

/** A stretch of a view by the indices of its ranges, and what is to be there instead. */
export interface Replacement {
  readonly from: number;
  readonly to: number;
  readonly ranges: readonly FlatRange[];
}

/** Ranges in one piece of a view: at most, and below which it is joined with a neighbour when it is copied anyway. */
const mostInPiece = 256;
const leastInPiece = 64;

/**
 * The map of one address space at one moment: disjoint ranges by ascending address. Never changes. Kept in pieces that
 * the next view has too where nothing changed, so that a small change of a large view is small.
 */
export class FlatView {
  static readonly empty: FlatView = new FlatView([]);
  readonly #pieces: readonly (readonly FlatRange[])[];
  /** The index of the first range of each piece, and behind them the number of all. */
  readonly #starts: readonly number[];
  #ranges: readonly FlatRange[] | undefined;

  private constructor(pieces: readonly (readonly FlatRange[])[]) {
    this.#pieces = pieces;
    const starts = [0];
    for (const [index, { length }] of pieces.entries()) starts.push(starts[index]! + length);
    this.#starts = starts;
  }

  /** All ranges, by ascending address. */
  get ranges(): readonly FlatRange[] {
    this.#ranges ??= this.#pieces.flat();
    return this.#ranges;
  }

  /** The range that holds `gpa`, or undefined in a hole. O(log n) comparisons. */
  find(gpa: Address): FlatRange | undefined {
    const range = this.at(this.indexAfter(gpa) - 1);
    return range !== undefined && gpa < rangeEnd(range) ? range : undefined;
  }

  /** The range with this index, or undefined. */
  at(index: number): FlatRange | undefined {
    const piece = this.#pieceAt(index);
    return this.#pieces[piece]?.[index - this.#starts[piece]!];
  }

  /** The index of the first range that starts above `gpa`, the number of ranges if none does. */
  indexAfter(gpa: Address): number {
    const piece = after(this.#pieces, gpa, ([first]) => first!.gpa) - 1;
    return piece < 0 ? 0 : this.#starts[piece]! + after(this.#pieces[piece]!, gpa, (range) => range.gpa);
  }

  /** The ranges with indices from `from` to before `to`. */
  slice(from: number, to: number): readonly FlatRange[] {
    const stretches: (readonly FlatRange[])[] = [];
    this.#take(from, to, stretches);
    return stretches.length === 1 ? stretches[0]! : stretches.flat();
  }

  /** This view with stretches of it replaced; they ascend and don't overlap. */
  with(replacements: readonly Replacement[]): FlatView {
    const stretches: (readonly FlatRange[])[] = [];
    let kept = 0;
    for (const { from, to, ranges } of replacements) {
      this.#take(kept, from, stretches);
      stretches.push(ranges);
      kept = to;
    }
    this.#take(kept, this.#starts.at(-1)!, stretches);
    return new FlatView(packed(stretches));
  }

  /** Adds to `out` the ranges with indices from `from` to before `to`, in whole pieces where possible. */
  #take(from: number, to: number, out: (readonly FlatRange[])[]): void {
    for (let piece = this.#pieceAt(from), at = from; at < to; piece++) {
      const start = this.#starts[piece]!;
      const ranges = this.#pieces[piece]!;
      const whole = at === start && start + ranges.length <= to;
      out.push(whole ? ranges : ranges.slice(at - start, to - start));
      at = start + ranges.length;
    }
  }

  /** The piece that holds the range with this index. */
  #pieceAt(index: number): number {
    return after(this.#starts, index, (start) => start) - 1;
  }
}

/** How many of `items`, which ascend by their keys, have a key at or below `key`. */
function after<T>(items: readonly T[], key: Address, keyOf: (item: T) => Address): number {
  let [from, to] = [0, items.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (keyOf(items[middle]!) <= key) from = middle + 1;
    else to = middle;
  }
  return from;
}

/** The same ranges in pieces, of which those that are long enough stay the same objects. */
function packed(stretches: readonly (readonly FlatRange[])[]): (readonly FlatRange[])[] {
  const pieces: (readonly FlatRange[])[] = [];
  let open: FlatRange[] = [];
  const close = (): void => {
    const size = Math.ceil(open.length / Math.ceil(open.length / mostInPiece));
    for (let at = 0; at < open.length; at += size) pieces.push(open.slice(at, at + size));
    open = [];
  };
  for (const stretch of stretches) {
    if (open.length === 0 && stretch.length >= leastInPiece && stretch.length <= mostInPiece) {
      pieces.push(stretch);
      continue;
    }
    for (const range of stretch) open.push(range);
    if (open.length >= leastInPiece) close();
  }
  close();
  return pieces;
}
