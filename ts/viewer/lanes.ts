import { READONLY } from '../trace/index.js';
import type { History } from './history.js';
import { kinds, none, noSlot, type Timeline, unnumbered } from './timeline.js';

/** How something of the present transaction is told apart, by more than its colour. */
export const marks = ['kept', 'deleted', 'created', 'changed', 'hole'] as const;
export type Mark = (typeof marks)[number];

/** Number of hues by which memory is told apart; the index after them stands for I/O. */
export const hues = 8;
export const ioFill = hues;

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
  /** What became of each row that isn't merely kept: index in {@link marks}. */
  readonly marked: ReadonlyMap<number, number>;
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

function marksOf(timeline: Timeline, space: number, transaction: number): Map<number, number> {
  const { operations, ranges } = timeline;
  const marked = new Map<number, number>();
  for (let row = timeline.firstOperation(transaction); row < timeline.firstOperation(transaction + 1); row++) {
    const [before, after] = [operations.before.at(row), operations.after.at(row)];
    if (before === after) continue;
    const flags = operations.change.at(row) === 3;
    if (before !== none && ranges.space.at(before) === space) marked.set(before, flags ? 3 : 1);
    if (after !== none && ranges.space.at(after) === space) marked.set(after, flags ? 3 : 2);
  }
  return marked;
}

type Base = Omit<Moment, 'lanes'>;

function slotLanes(base: Base): Lane[] {
  const { history, before, after } = base;
  const { ranges } = history.timeline;
  const label = (row: number) => slotLabel(history.timeline, row);
  const block = (row: number) => history.blocks.blockOf[row]!;
  const hostLabel = (row: number) => {
    const offset = ranges.host.at(row) - history.blocks.starts[block(row)]!;
    return `block ${block(row)} + 0x${offset.toString(16)}`;
  };
  return [
    laneOf(base, 'flat', 'Guest sees', merged(base), (row) => (ranges.flags.at(row) & READONLY ? 'rom' : 'ram'), false),
    laneOf(base, 'before', 'Slots before', before, label, true),
    betweenLane(base, label),
    laneOf(base, 'after', 'Slots after', after, label, true),
    laneOf(base, 'host', 'Host memory', after, hostLabel, false),
  ];
}

function snapshotLanes(base: Base): Lane[] {
  const { history, before, after } = base;
  const { timeline } = history;
  const { ranges, names } = timeline;
  const name = (row: number) => names[ranges.name.at(row)]!;
  const withSlot = (rows: Uint32Array) => rows.filter((row) => ranges.id.at(row) !== noSlot);
  return [
    laneOf(base, 'regions', 'Regions', after, name, false),
    laneOf(base, 'flat', 'Flat view', after, (row) => kinds[ranges.kind.at(row)]!, true),
    laneOf(base, 'before', 'Slots before', withSlot(before), name, true),
    laneOf(base, 'after', 'Slots after', withSlot(after), name, true),
  ];
}

function slotLabel({ ranges }: Timeline, row: number): string {
  const id = ranges.id.at(row);
  return id === unnumbered ? 'slot' : `${id}`;
}

/** A stretch of rows shown as one. */
interface Piece {
  readonly row: number;
  readonly start: number;
  readonly end: number;
}

function laneOf(
  base: Base,
  key: Lane['key'],
  title: string,
  pieces: Uint32Array | readonly Piece[],
  label: (row: number) => string,
  showsMarks: boolean,
): Lane {
  const { history, marked } = base;
  const { ranges } = history.timeline;
  const rows = pieces instanceof Uint32Array ? pieces : Uint32Array.from(pieces, ({ row }) => row);
  const starts = new Float64Array(rows.length);
  const ends = new Float64Array(rows.length);
  const fills = new Uint8Array(rows.length);
  const laneMarks = new Uint8Array(rows.length);
  const readonly = new Uint8Array(rows.length);
  for (let index = 0; index < rows.length; index++) {
    const row = rows[index]!;
    const piece = pieces[index]!;
    starts[index] = typeof piece === 'number' ? ranges.gpa.at(row) : piece.start;
    ends[index] = typeof piece === 'number' ? starts[index]! + ranges.size.at(row) : piece.end;
    fills[index] = fillOf(history, row);
    laneMarks[index] = showsMarks ? (marked.get(row) ?? 0) : 0;
    readonly[index] = ranges.flags.at(row) & READONLY ? 1 : 0;
  }
  return {
    key,
    title,
    starts,
    ends,
    fills,
    marks: laneMarks,
    readonly,
    rows,
    label: (index) => (rows[index] === none ? '' : label(rows[index]!)),
  };
}

/** The same hue for the same memory: that of a host block, or of a named region. */
function fillOf({ timeline, blocks }: History, row: number): number {
  const { ranges, spaces } = timeline;
  if (kinds[ranges.kind.at(row)] === 'i/o') return ioFill;
  return (spaces[ranges.space.at(row)]!.source === 'slots' ? blocks.blockOf[row]! : ranges.name.at(row)) % hues;
}

/** What the guest can tell apart: slots that continue each other, in host memory too and with the same flags, are one. */
function merged({ history, after }: Base): Piece[] {
  const { gpa, size, host, flags } = history.timeline.ranges;
  const pieces: { row: number; start: number; end: number }[] = [];
  let last: { row: number; start: number; end: number } | undefined;
  for (const row of after) {
    const start = gpa.at(row);
    const continues =
      last !== undefined &&
      last.end === start &&
      host.at(row) - start === host.at(last.row) - gpa.at(last.row) &&
      flags.at(row) === flags.at(last.row);
    if (continues) last!.end = start + size.at(row);
    else {
      last = { row, start, end: start + size.at(row) };
      pieces.push(last);
    }
  }
  return pieces;
}

/** The moment after the deletes and before the creates: what stays, and the holes. */
function betweenLane(base: Base, label: (row: number) => string): Lane {
  const { history, before, transaction, marked, space } = base;
  const { timeline } = history;
  const holes = timeline.transactions.space.at(transaction) === space ? timeline.holesOf(transaction) : [];
  const kept = before.filter((row) => marked.get(row) !== 1);
  const lane = laneOf(base, 'between', 'In between', kept, label, false);
  if (holes.length === 0) return lane;
  const all = [
    ...Array.from(kept, (row, index) => ({ start: lane.starts[index]!, end: lane.ends[index]!, index, row })),
    ...disjoint(holes).map(({ start, end }) => ({ start, end, index: -1, row: none })),
  ].sort((a, b) => a.start - b.start);
  const byIndex = (value: (index: number) => number) => Uint8Array.from(all, ({ index }) => value(index));
  const rows = Uint32Array.from(all, ({ row }) => row);
  return {
    ...lane,
    starts: Float64Array.from(all, ({ start }) => start),
    ends: Float64Array.from(all, ({ end }) => end),
    fills: byIndex((index) => (index < 0 ? 0 : lane.fills[index]!)),
    marks: byIndex((index) => (index < 0 ? marks.indexOf('hole') : 0)),
    readonly: byIndex((index) => (index < 0 ? 0 : lane.readonly[index]!)),
    rows,
    label: (index) => (rows[index] === none ? 'hole' : label(rows[index]!)),
  };
}

function disjoint(holes: readonly { gpa: number; size: number }[]): { start: number; end: number }[] {
  const result: { start: number; end: number }[] = [];
  for (const { gpa, size } of [...holes].sort((a, b) => a.gpa - b.gpa)) {
    const last = result.at(-1);
    if (last !== undefined && gpa <= last.end) last.end = Math.max(last.end, gpa + size);
    else result.push({ start: gpa, end: gpa + size });
  }
  return result;
}
