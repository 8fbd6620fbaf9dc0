import { type Address, add, subtract } from './address.js';

/** Something that lies in a container: at `address`, `size` bytes long. Both stay as they are while it is in there. */
export interface Child {
  readonly address: Address;
  readonly size: Address;
  readonly priority: number;
  /** The higher, the later it came. Unique. */
  readonly age: number;
}

/** Items in one piece of a {@link SortedList}, at most. */
const mostInPiece = 256;

/**
 * Items by ascending address, in short pieces, so that one that comes or goes moves few others: O(log n) but for the
 * list of pieces, and for those at one and the same address.
 */
class SortedList<T extends Child> {
  readonly #pieces: T[][] = [];

  get isEmpty(): boolean {
    return this.#pieces.length === 0;
  }

  insert(item: T): void {
    const index = this.#pieceOf(item.address);
    const piece = this.#pieces[index];
    if (piece === undefined) {
      this.#pieces.push([item]);
      return;
    }
    piece.splice(lowerBound(piece, item.address), 0, item);
    if (piece.length > mostInPiece) this.#pieces.splice(index + 1, 0, piece.splice(mostInPiece / 2));
  }

  remove(item: T): void {
    for (let index = this.#pieceOf(item.address); index < this.#pieces.length; index++) {
      const piece = this.#pieces[index]!;
      const at = piece.indexOf(item, lowerBound(piece, item.address));
      if (at < 0) continue;
      piece.splice(at, 1);
      if (piece.length === 0) this.#pieces.splice(index, 1);
      return;
    }
    throw new Error(`no item at ${item.address} to be removed`);
  }

  /** Adds to `out` what lies below `end` from the first at or above `from` on, and reaches above `start`. */
  collect(from: Address, start: Address, end: Address, out: T[]): void {
    for (let index = this.#pieceOf(from); index < this.#pieces.length; index++) {
      const piece = this.#pieces[index]!;
      for (let at = lowerBound(piece, from); at < piece.length; at++) {
        const item = piece[at]!;
        if (item.address >= end) return;
        if (add(item.address, item.size) > start) out.push(item);
      }
    }
  }

  /** The last piece that begins below `address`, or the first: where the first item at or above it is, or would be. */
  #pieceOf(address: Address): number {
    let [from, to] = [0, this.#pieces.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.#pieces[middle]![0]!.address < address) from = middle + 1;
      else to = middle;
    }
    return Math.max(0, from - 1);
  }
}

/** The place of the first item at or above `address`. */
function lowerBound(items: readonly Child[], address: Address): number {
  let [from, to] = [0, items.length];
  // Most come by ascending address.
  if (to > 0 && items[to - 1]!.address < address) return to;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (items[middle]!.address < address) from = middle + 1;
    else to = middle;
  }
  return from;
}

/** Those of similar size: each at least half as long as `most`, and shorter than that. */
interface SizeClass<T extends Child> {
  readonly most: Address;
  readonly list: SortedList<T>;
}

/**
 * What lies in a container, found by address however many there are. They may overlap. Kept apart by size, in powers
 * of two: then whatever reaches a range begins not far below it, and few that begin there don't reach it.
 */
export class Children<T extends Child> {
  readonly #classes = new Map<number, SizeClass<T>>();
  #ordered: readonly T[] | undefined = [];

  insert(child: T): void {
    const key = logarithm(child.size);
    let found = this.#classes.get(key);
    if (found === undefined) {
      found = { most: key < 52 ? 2 ** (key + 1) : 2n ** BigInt(key + 1), list: new SortedList() };
      this.#classes.set(key, found);
    }
    found.list.insert(child);
    this.#ordered = undefined;
  }

  /** Removes `child`, which is there, as it was when it was inserted. */
  remove(child: T): void {
    const key = logarithm(child.size);
    const { list } = this.#classes.get(key)!;
    list.remove(child);
    if (list.isEmpty) this.#classes.delete(key);
    this.#ordered = undefined;
  }

  /** All, in the order of {@link byRank}. */
  get ordered(): readonly T[] {
    if (this.#ordered === undefined) {
      const all: T[] = [];
      this.collect(0, 2n ** 65n, all);
      this.#ordered = all.sort(byRank);
    }
    return this.#ordered;
  }

  /** Adds to `out` those that reach into [`start`, `end`), in no order. */
  collect(start: Address, end: Address, out: T[]): void {
    for (const { most, list } of this.#classes.values()) list.collect(subtract(start, most), start, end, out);
  }
}

/** By descending priority, the newest first among equals. */
export function byRank(a: Child, b: Child): number {
  return a.priority === b.priority ? b.age - a.age : b.priority - a.priority;
}

/** The whole part of the logarithm to base 2; of sizes beyond 2^53, perhaps one more. */
function logarithm(size: Address): number {
  if (typeof size === 'number' && size < 2 ** 31) return 31 - Math.clz32(size);
  return Math.floor(Math.log2(Number(size)));
}
