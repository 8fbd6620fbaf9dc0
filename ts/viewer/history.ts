import { Axis } from './axis.js';
import { upperBound } from './columns.js';
import { none, type Timeline } from './timeline.js';

/** Stretches of host memory that ranges show, and which of them each range shows. */
export interface HostBlocks {
  /** By block: its host-virtual address (bytes), and its size in bytes. Ascending. */
  readonly starts: Float64Array;
  readonly sizes: Float64Array;
  /** By row of the timeline's ranges. */
  readonly blockOf: Uint32Array;
}

/** What is derived from a timeline, made again only after it has grown. */
export class History {
  readonly timeline: Timeline;
  #version = -1;
  #blocks: HostBlocks | undefined;
  readonly #rows = new Map<number, Uint32Array>();
  readonly #axes = new Map<number, Axis>();

  constructor(timeline: Timeline) {
    this.timeline = timeline;
  }

  /** All rows of the ranges of an address space, whenever they lived, by ascending address. */
  rows(space: number): Uint32Array {
    this.#refresh();
    let rows = this.#rows.get(space);
    if (rows === undefined) {
      const { ranges } = this.timeline;
      const own: number[] = [];
      for (let row = 0; row < ranges.gpa.length; row++) if (ranges.space.at(row) === space) own.push(row);
      const gpas = ranges.gpa.cells;
      rows = Uint32Array.from(own).sort((a, b) => gpas[a]! - gpas[b]! || a - b);
      this.#rows.set(space, rows);
    }
    return rows;
  }

  axis(space: number): Axis {
    this.#refresh();
    let axis = this.#axes.get(space);
    if (axis === undefined) {
      const { ranges, length } = this.timeline;
      const rows = this.rows(space);
      const gpas = Float64Array.from(rows, (row) => ranges.gpa.at(row));
      const sizes = Float64Array.from(rows, (row) => ranges.size.at(row));
      const use = Float64Array.from(
        rows,
        (row) => (Math.min(length, ranges.died.at(row)) - ranges.born.at(row) || 1e-3) / Math.max(1, length),
      );
      axis = new Axis(gpas, sizes, use);
      this.#axes.set(space, axis);
    }
    return axis;
  }

  /** The rows that are mapped after transaction `transaction` (−1: before the first), by ascending address. */
  alive(space: number, transaction: number): Uint32Array {
    const rows = this.rows(space);
    const [born, died] = [this.timeline.ranges.born.cells, this.timeline.ranges.died.cells];
    const result = new Uint32Array(rows.length);
    let count = 0;
    for (const row of rows) if (born[row]! <= transaction && died[row]! > transaction) result[count++] = row;
    return result.subarray(0, count);
  }

  get blocks(): HostBlocks {
    this.#refresh();
    this.#blocks ??= hostBlocks(this.timeline);
    return this.#blocks;
  }

  #refresh(): void {
    if (this.#version === this.timeline.version) return;
    this.#version = this.timeline.version;
    this.#rows.clear();
    this.#axes.clear();
    this.#blocks = undefined;
  }
}

/** The union of all host ranges, as disjoint blocks. */
function hostBlocks({ ranges, spaces }: Timeline): HostBlocks {
  const count = ranges.gpa.length;
  const known = Uint32Array.from({ length: count }, (_, row) => row).filter(
    (row) => spaces[ranges.space.at(row)]!.source === 'slots',
  );
  const order = Float64Array.from(known, (row) => ranges.host.at(row)).sort();
  // Ends need no partner: the union of ranges begins wherever more ranges have ended than begun.
  const ends = Float64Array.from(known, (row) => ranges.host.at(row) + ranges.size.at(row)).sort();
  const [starts, sizes]: [number[], number[]] = [[], []];
  for (let index = 0; index < order.length; index++) {
    if (index === 0 || order[index]! > ends[index - 1]!) starts.push(order[index]!);
    sizes[starts.length - 1] = ends[index]! - starts.at(-1)!;
  }
  const blockStarts = Float64Array.from(starts);
  const blockOf = new Uint32Array(count).fill(none);
  for (const row of known) blockOf[row] = upperBound(blockStarts, blockStarts.length, ranges.host.at(row)) - 1;
  return { starts: blockStarts, sizes: Float64Array.from(sizes), blockOf };
}
