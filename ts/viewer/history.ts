import { Axis } from './axis.js';
import { float64, lowerBound, upperBound } from './columns.js';
import { none } from './records.js';
import type { Timeline } from './timeline.js';

/** Stretches of host memory that ranges show. */
export interface HostBlocks {
  /** By block: its host-virtual address (bytes), and its size in bytes. Ascending. */
  readonly starts: Float64Array;
  readonly sizes: Float64Array;
}

/** All ranges of an address space, whenever they lived, by ascending address and then by age: the timeline's columns. */
interface Sorted {
  readonly rows: Uint32Array;
  readonly born: Uint32Array;
  readonly died: Uint32Array;
}

/** What is derived from a timeline, made again only after it has grown. */
export class History {
  readonly timeline: Timeline;
  #version = -1;
  #blocks: HostBlocks | undefined;
  /** By row: its block, as far as anybody has asked. */
  #blockOf = new Uint32Array(0);
  readonly #sorted = new Map<number, Sorted>();
  readonly #axes = new Map<number, Axis>();

  constructor(timeline: Timeline) {
    this.timeline = timeline;
  }

  #ranges(space: number): Sorted {
    this.#refresh();
    let sorted = this.#sorted.get(space);
    if (sorted === undefined) {
      const rows = sortedRows(this.timeline, space);
      const { born, died } = this.timeline.ranges;
      // In the order in which they are gone through, which is many times as fast as hopping about.
      sorted = { rows, born: rows.map((row) => born.cells[row]!), died: rows.map((row) => died.cells[row]!) };
      this.#sorted.set(space, sorted);
    }
    return sorted;
  }

  axis(space: number): Axis {
    this.#refresh();
    let axis = this.#axes.get(space);
    if (axis === undefined) {
      axis = axisOf(this.timeline, this.#ranges(space).rows);
      this.#axes.set(space, axis);
    }
    return axis;
  }

  /** The rows that are mapped after transaction `transaction` (−1: before the first), by ascending address. */
  alive(space: number, transaction: number): Uint32Array {
    const { rows, born, died } = this.#ranges(space);
    const result = new Uint32Array(rows.length);
    let count = 0;
    for (let index = 0; index < rows.length; index++) {
      if (born[index]! <= transaction && died[index]! > transaction) result[count++] = rows[index]!;
    }
    return result.subarray(0, count);
  }

  get blocks(): HostBlocks {
    this.#refresh();
    this.#blocks ??= hostBlocks(this.timeline);
    return this.#blocks;
  }

  /** The index of the block that a row shows; the row must be a slot's. */
  block(row: number): number {
    const { starts } = this.blocks;
    if (this.#blockOf[row] === none) {
      this.#blockOf[row] = upperBound(starts, starts.length, this.timeline.ranges.host.at(row)) - 1;
    }
    return this.#blockOf[row]!;
  }

  #refresh(): void {
    if (this.#version === this.timeline.version) return;
    this.#version = this.timeline.version;
    this.#sorted.clear();
    this.#axes.clear();
    this.#blocks = undefined;
    this.#blockOf = new Uint32Array(this.timeline.ranges.gpa.length).fill(none);
  }
}

/** The rows of a space: its places are sorted, and rows counted into them, so that no two rows are compared. */
function sortedRows({ ranges, places }: Timeline, space: number): Uint32Array {
  const gpas = Float64Array.from(ofSpace(places.gpa.cells, places.space.cells, places.gpa.length, space)).sort();
  // How many rows begin at each place, then where in the result the next of them goes.
  const next = new Uint32Array(gpas.length + 1);
  const rankOf = new Uint32Array(places.gpa.length);
  for (let place = 0; place < rankOf.length; place++) {
    if (places.space.cells[place] === space) rankOf[place] = lowerBound(gpas, gpas.length, places.gpa.cells[place]!);
  }
  const count = ranges.gpa.length;
  const [spaces, placeOf] = [ranges.space.cells, ranges.place.cells];
  for (let row = 0; row < count; row++) if (spaces[row] === space) next[rankOf[placeOf[row]!]! + 1]!++;
  for (let rank = 0; rank < gpas.length; rank++) next[rank + 1]! += next[rank]!;
  const result = new Uint32Array(next[gpas.length]!);
  for (let row = 0; row < count; row++) if (spaces[row] === space) result[next[rankOf[placeOf[row]!]!]!++] = row;
  return result;
}

function* ofSpace(
  values: ArrayLike<number>,
  spaces: ArrayLike<number>,
  count: number,
  space: number,
): Iterable<number> {
  for (let index = 0; index < count; index++) if (spaces[index] === space) yield values[index]!;
}

function axisOf({ ranges, length }: Timeline, rows: Uint32Array): Axis {
  const [gpas, sizes] = [new Float64Array(rows.length), new Float64Array(rows.length)];
  const use = new Float64Array(rows.length);
  let count = 0;
  for (const row of rows) {
    const [gpa, size] = [ranges.gpa.cells[row]!, ranges.size.cells[row]!];
    const share = (Math.min(length, ranges.died.cells[row]!) - ranges.born.cells[row]! || 1e-3) / Math.max(1, length);
    // What lay at the same place one after another counts as one.
    if (count > 0 && gpas[count - 1] === gpa && sizes[count - 1] === size) use[count - 1]! += share;
    else {
      gpas[count] = gpa;
      sizes[count] = size;
      use[count++] = share;
    }
  }
  return new Axis(gpas.subarray(0, count), sizes.subarray(0, count), use.subarray(0, count));
}

/** The union of all host ranges, as disjoint blocks. */
function hostBlocks({ hosts }: Timeline): HostBlocks {
  const count = hosts.start.length;
  const begins = hosts.start.cells.slice(0, count).sort();
  const ends = hosts.start.cells.slice(0, count);
  for (let row = 0; row < count; row++) ends[row]! += hosts.size.cells[row]!;
  ends.sort();
  const [starts, sizes] = [float64(), float64()];
  for (let index = 0; index < count; index++) {
    // Ends need no partner: a union of ranges ends wherever as many have ended as begun.
    if (index === 0 || begins[index]! > ends[index - 1]!) {
      starts.push(begins[index]!);
      sizes.push(0);
    }
    const block = starts.length - 1;
    sizes.set(block, ends[index]! - starts.at(block));
  }
  return { starts: starts.cells.slice(0, starts.length), sizes: sizes.cells.slice(0, sizes.length) };
}
