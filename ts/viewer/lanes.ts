import { READONLY } from '../trace/index.js';
import type { History } from './history.js';
import { type Hole, kinds, none, noSlot, unnumbered } from './records.js';
import type { Timeline } from './timeline.js';

/** How something of the present transaction is told apart, by more than its colour; `held` is a hole that none saw. */
export const marks = ['kept', 'deleted', 'created', 'changed', 'hole', 'held'] as const;
export type Mark = (typeof marks)[number];

/** Number of hues by which memory is told apart; the index after them stands for I/O. */
export const hues = 8;
export const ioFill = hues;
const ioKind = kinds.indexOf('i/o');

/** Ranges to be drawn in one row, by ascending address and free of overlap. */
export interface Lane {
  readonly key: 'regions' | 'flat' | 'before' | 'between' | 'after' | 'host';
  readonly title: string;
  readonly starts: Float64Array;
  readonly ends: Float64Array;
  /** Index of a hue, or {@link ioFill}. */
  readonly fills: Uint8Array;
  /** Index in {@link marks}. */
  readonly marks: Uint8Array;
  /** The indices of those that have another mark than kept. */
  readonly changed: Uint32Array;
  readonly readonly: Uint8Array;
  /** Row of the timeline's ranges, `none` for a hole. */
  readonly rows: Uint32Array;
  readonly label: (index: number) => string;
}

/** An address space as transaction `transaction` found and left it. */
export interface Moment {
  readonly history: History;
  readonly space: number;
  readonly transaction: number;
  /** Rows mapped before and after, by ascending address. */
  readonly before: Uint32Array;
  readonly after: Uint32Array;
  /** What became of each row of the timeline's ranges: index in {@link marks}. */
  readonly marked: Uint8Array;
  readonly lanes: readonly Lane[];
}

/** Gathers what is to be seen of `space` at transaction `transaction`, 0 to the number of transactions less 1. */
export function momentOf(history: History, space: number, transaction: number): Moment {
  const { timeline } = history;
  const before = history.alive(space, transaction - 1);
  const after = history.alive(space, transaction);
  const marked = marksOf(timeline, space, transaction);
  const base = { history, space, transaction, before, after, marked };
  const lanes = timeline.spaces[space]?.source === 'snapshots' ? snapshotLanes(base) : slotLanes(base);
  return { ...base, lanes };
}

function marksOf(timeline: Timeline, space: number, transaction: number): Uint8Array {
  const { operations, ranges } = timeline;
  const marked = new Uint8Array(ranges.gpa.length);
  // What the first snapshot shows was there before anybody looked.
  if (transaction === 0 && timeline.spaces[space]?.source === 'snapshots') return marked;
  for (let row = timeline.firstOperation(transaction); row < timeline.firstOperation(transaction + 1); row++) {
    const [before, after] = [operations.before.at(row), operations.after.at(row)];
    if (before === after) continue;
    const flags = operations.change.at(row) === 3;
    if (before !== none && ranges.space.at(before) === space) marked[before] = flags ? 3 : 1;
    if (after !== none && ranges.space.at(after) === space) marked[after] = flags ? 3 : 2;
  }
  return marked;
}

type Base = Omit<Moment, 'lanes'>;

function slotLanes(base: Base): Lane[] {
  const { history, marked } = base;
  const { ranges } = history.timeline;
  const [before, after] = [columnsOf(history, base.before), columnsOf(history, base.after)];
  const label = (row: number) => slotLabel(history.timeline, row);
  const hostLabel = (row: number) => {
    const block = history.block(row);
    return `block ${block} + 0x${(ranges.host.at(row) - history.blocks.starts[block]!).toString(16)}`;
  };
  return [
    mergedLane(history, after),
    laneOf('before', 'Slots before', withMarks(before, marked), label),
    betweenLane(base, before, label),
    laneOf('after', 'Slots after', withMarks(after, marked), label),
    laneOf('host', 'Host memory', after, hostLabel),
  ];
}

function snapshotLanes({ history, transaction, marked, before, after }: Base): Lane[] {
  const { ranges, names } = history.timeline;
  const name = (row: number) => names[ranges.name.at(row)]!;
  const slotsOf = (rows: Uint32Array) => {
    const own = rows.filter((row) => ranges.id.at(row) !== noSlot);
    return withMarks(columnsOf(history, own), marked);
  };
  const all = columnsOf(history, after);
  const slots =
    transaction === 0
      ? [laneOf('after', 'Slots', slotsOf(after), name)]
      : [laneOf('before', 'Slots before', slotsOf(before), name), laneOf('after', 'Slots after', slotsOf(after), name)];
  return [
    laneOf('regions', 'Regions', all, name),
    laneOf('flat', 'Flat view', withMarks(all, marked), (row) => kinds[ranges.kind.at(row)]!),
    ...slots,
  ];
}

function slotLabel({ ranges }: Timeline, row: number): string {
  const id = ranges.id.at(row);
  return id === unnumbered ? 'slot' : `${id}`;
}

/** The columns of a lane, to be filled. */
type Columns = Pick<Lane, 'starts' | 'ends' | 'fills' | 'marks' | 'changed' | 'readonly' | 'rows'>;

function columnsFor(count: number): Columns {
  return {
    starts: new Float64Array(count),
    ends: new Float64Array(count),
    fills: new Uint8Array(count),
    marks: new Uint8Array(count),
    changed: new Uint32Array(0),
    readonly: new Uint8Array(count),
    rows: new Uint32Array(count),
  };
}

function columnsOf(history: History, rows: Uint32Array): Columns {
  const { gpa, size, flags } = history.timeline.ranges;
  const columns = { ...columnsFor(rows.length), rows };
  for (let index = 0; index < rows.length; index++) {
    const row = rows[index]!;
    columns.starts[index] = gpa.cells[row]!;
    columns.ends[index] = gpa.cells[row]! + size.cells[row]!;
    columns.fills[index] = fillOf(history, row);
    columns.readonly[index] = flags.cells[row]! & READONLY ? 1 : 0;
  }
  return columns;
}

function withMarks(columns: Columns, marked: Uint8Array): Columns {
  const own = new Uint8Array(columns.rows.length);
  const changed: number[] = [];
  for (let index = 0; index < own.length; index++) {
    const mark = marked[columns.rows[index]!]!;
    own[index] = mark;
    if (mark !== 0) changed.push(index);
  }
  return { ...columns, marks: own, changed: Uint32Array.from(changed) };
}

/** Copies a range from one lane to another. */
function copy(to: Columns, index: number, from: Columns, at: number): void {
  to.rows[index] = from.rows[at]!;
  to.starts[index] = from.starts[at]!;
  to.ends[index] = from.ends[at]!;
  to.fills[index] = from.fills[at]!;
  to.readonly[index] = from.readonly[at]!;
}

function laneOf(key: Lane['key'], title: string, columns: Columns, label: (row: number) => string): Lane {
  return { ...columns, key, title, label: (index) => label(columns.rows[index]!) };
}

/** The same hue for the same memory: that of a host block, or of a named region. */
function fillOf(history: History, row: number): number {
  const { ranges, spaces } = history.timeline;
  if (ranges.kind.cells[row] === ioKind) return ioFill;
  const isSlot = spaces[ranges.space.cells[row]!]!.source === 'slots';
  return (isSlot ? history.block(row) : ranges.name.cells[row]!) % hues;
}

/** What the guest can tell apart: slots that continue each other, in host memory too and with the same flags, are one. */
function mergedLane(history: History, slots: Columns): Lane {
  const { host, flags } = history.timeline.ranges;
  const columns = columnsFor(slots.rows.length);
  let count = 0;
  for (let index = 0; index < slots.rows.length; index++) {
    const [row, first] = [slots.rows[index]!, columns.rows[count - 1]];
    const [start, end] = [slots.starts[index]!, slots.ends[index]!];
    const continues =
      first !== undefined &&
      columns.ends[count - 1] === start &&
      host.cells[row]! - start === host.cells[first]! - columns.starts[count - 1]! &&
      flags.cells[row] === flags.cells[first];
    if (continues) columns.ends[count - 1] = end;
    else copy(columns, count++, slots, index);
  }
  return {
    key: 'flat',
    title: 'Guest sees',
    starts: columns.starts.subarray(0, count),
    ends: columns.ends.subarray(0, count),
    fills: columns.fills.subarray(0, count),
    marks: columns.marks.subarray(0, count),
    changed: columns.changed,
    readonly: columns.readonly.subarray(0, count),
    rows: columns.rows.subarray(0, count),
    label: (index) => (columns.readonly[index] === 1 ? 'rom' : 'ram'),
  };
}

/** The moment after the deletes and before the creates: what stays, and the holes. */
function betweenLane(
  { history, transaction, marked, space }: Base,
  before: Columns,
  label: (row: number) => string,
): Lane {
  const { timeline } = history;
  const holes = timeline.transactions.space.at(transaction) === space ? disjoint(timeline.holesOf(transaction)) : [];
  const deleted = marks.indexOf('deleted');
  const kept = before.rows.reduce((count, row) => count + (marked[row] === deleted ? 0 : 1), 0);
  const columns = columnsFor(kept + holes.length);
  const changed = new Uint32Array(holes.length);
  let [at, hole] = [0, 0];
  for (let index = 0; index < columns.rows.length; ) {
    const next = holes[hole];
    if (next === undefined || (at < before.rows.length && before.starts[at]! < next.start)) {
      if (marked[before.rows[at]!] !== deleted) copy(columns, index++, before, at);
      at++;
      continue;
    }
    changed[hole++] = index;
    columns.rows[index] = none;
    columns.starts[index] = next.start;
    columns.ends[index] = next.end;
    columns.marks[index++] = marks.indexOf(next.held ? 'held' : 'hole');
  }
  return {
    ...columns,
    changed,
    key: 'between',
    title: 'In between',
    label: (index) => (columns.rows[index] === none ? '' : label(columns.rows[index]!)),
  };
}

/** Holes that touch as one, which was held if all of them were. */
function disjoint(holes: readonly Hole[]): { start: number; end: number; held: boolean }[] {
  const result: { start: number; end: number; held: boolean }[] = [];
  for (const { gpa, size, inhibited } of [...holes].sort((a, b) => a.gpa - b.gpa)) {
    const last = result.at(-1);
    if (last !== undefined && gpa <= last.end) {
      last.end = Math.max(last.end, gpa + size);
      last.held &&= inhibited;
    } else result.push({ start: gpa, end: gpa + size, held: inhibited });
  }
  return result;
}
