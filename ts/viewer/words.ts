import { formatSize, hex } from '../core/checks.js';
import { GUEST_MEMFD, LOG_DIRTY_PAGES, READONLY } from '../trace/index.js';
import { type Lane, type Moment, marks } from './lanes.js';
import { type Hole, kinds, none, noSlot, type TransactionFigures, unnumbered } from './records.js';

export { formatSize as bytes, hex as hexadecimal };

/** A time in microseconds in words: `640 µs`, `12.3 ms`, `1.5 s`. */
export function duration(microseconds: number): string {
  if (microseconds < 1_000) return `${Math.round(microseconds)} µs`;
  if (microseconds < 1_000_000) return `${(microseconds / 1_000).toFixed(1)} ms`;
  return `${(microseconds / 1_000_000).toFixed(2)} s`;
}

/** `3 slots`, `1 slot`. */
export function counted(count: number, noun: string): string {
  return `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`;
}

/** The flags of a slot by name; an empty text for none. */
export function flagNames(flags: number): string {
  const names = [
    [LOG_DIRTY_PAGES, 'log dirty pages'],
    [READONLY, 'read-only'],
    [GUEST_MEMFD, 'guest_memfd'],
  ] as const;
  return names.flatMap(([bit, name]) => (flags & bit ? [name] : [])).join(', ');
}

/** What is known of a range in the timeline, as pairs of a term and its value. */
export function describeRow({ history, marked }: Moment, row: number): [term: string, value: string][] {
  const { timeline, blocks } = history;
  const { ranges, names, spaces } = timeline;
  const [gpa, size, host] = [ranges.gpa.at(row), ranges.size.at(row), ranges.host.at(row)];
  const pairs: [string, string][] = [
    ['GPA', `${hex(gpa)} – ${hex(gpa + size - 1)}`],
    ['Size', `${formatSize(size)} (${hex(size)})`],
  ];
  const id = ranges.id.at(row);
  const name = names[ranges.name.at(row)]!;
  if (name !== '') pairs.push(['Region', `${name} + ${hex(host)}`], ['Kind', kinds[ranges.kind.at(row)]!]);
  pairs.push(['Slot', id === noSlot ? 'none' : id === unnumbered ? 'yes (its id is not in a snapshot)' : `${id}`]);
  const flags = flagNames(ranges.flags.at(row));
  if (spaces[ranges.space.at(row)]!.source === 'slots') {
    const block = history.block(row);
    pairs.push(['Host', `block ${block} + ${hex(host - blocks.starts[block]!)} (at ${hex(host)})`]);
    pairs.push(['Flags', flags === '' ? 'none' : flags]);
  } else if (flags !== '') pairs.push(['Flags', flags]);
  pairs.push(['Since', `transaction ${ranges.born.at(row) + 1}`]);
  const mark = marks[marked[row]!]!;
  if (mark !== 'kept') pairs.push(['Now', mark]);
  return pairs;
}

/** What a range of a lane is, as pairs; of a hole too. */
export function describeItem(moment: Moment, lane: Lane, index: number): [term: string, value: string][] {
  const row = lane.rows[index]!;
  if (row === none) {
    const size = lane.ends[index]! - lane.starts[index]!;
    const hidden = isHidden(moment.history.timeline.figures(moment.transaction));
    return [
      ['Hole', `${hex(lane.starts[index]!)} – ${hex(lane.ends[index]! - 1)}`],
      ['Size', formatSize(size)],
      ['A vCPU here', hidden ? 'was held' : 'reads garbage, or dies'],
    ];
  }
  const pairs = describeRow(moment, row);
  // Of a piece that joins several slots, only the addresses are its own.
  if (lane.key === 'flat' && lane.ends[index]! - lane.starts[index]! !== moment.history.timeline.ranges.size.at(row)) {
    const [start, end] = [lane.starts[index]!, lane.ends[index]!];
    return [
      ['GPA', `${hex(start)} – ${hex(end - 1)}`],
      ['Size', formatSize(end - start)],
      ['Slots', 'several that continue each other'],
    ];
  }
  return pairs;
}

/** Whether there were holes, none of which any vCPU could see. */
export function isHidden({ holes }: TransactionFigures): boolean {
  return holes.length > 0 && holes.every(({ inhibited }) => inhibited);
}

/** One transaction in plain words. */
export function describeTransaction(figures: TransactionFigures, isSnapshot: boolean): string {
  const { index, creates, deletes, flagChanges, failures, holes, window } = figures;
  if (isSnapshot && index === 0)
    return `What the first snapshot shows: ${counted(creates, 'range')} in all address spaces.`;
  const noun = isSnapshot ? 'range' : 'slot';
  const parts = [
    ...(deletes > 0 ? [`${counted(deletes, noun)} deleted`] : []),
    ...(creates > 0 ? [`${counted(creates, noun)} created`] : []),
    ...(flagChanges > 0 ? [`flags of ${counted(flagChanges, noun)} changed`] : []),
    ...(failures > 0 ? [`${counted(failures, 'call')} failed`] : []),
  ];
  const done = parts.length === 0 ? 'No slot changed' : parts.join(', ');
  if (holes.length === 0) {
    if (isSnapshot) return `${done}.`;
    return `${done}. Nothing that was mapped before and after was missing in between.`;
  }
  const size = holes.reduce((sum, hole) => sum + hole.size, 0);
  const longest = Math.max(...holes.map(({ microseconds }) => microseconds));
  const time = Number.isNaN(longest) ? 'for a while' : `for ${duration(longest)}`;
  const place = holes.length === 1 ? `at ${hex(holes[0]!.gpa)}` : `in ${holes.length} places`;
  const hole = `In between, ${formatSize(size)} ${place} had no memory ${time}`;
  if (isHidden(figures)) {
    const held = window ? ` for ${duration(window)}` : '';
    return `${done}. ${hole}, but all vCPUs were held${held}: none could see it.`;
  }
  return `${done}. ${hole}: a vCPU touching it then reads garbage or dies.`;
}

/** One hole as a finding. */
export function describeHole(hole: Hole, time: number | undefined): string {
  const when = time === undefined ? '' : `At ${duration(time)}: `;
  const length = Number.isNaN(hole.microseconds) ? '' : ` for ${duration(hole.microseconds)}`;
  const why = hole.reshape ? ', only to be mapped to the same memory again' : '';
  const end = hole.inhibited ? '; vCPUs were held meanwhile' : '';
  return `${when}${formatSize(hole.size)} at ${hex(hole.gpa)} unmapped${length}${why}${end}`;
}
