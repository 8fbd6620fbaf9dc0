import { formatRange } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import { type Address, add, addressSpaceEnd, higher, lower, subtract } from './address.js';
import { byRank } from './children.js';
import { type FlatRange, type FlatView, isBacked, type Replacement, rangeEnd, sameRange } from './flat-view.js';
import type { MemoryRegion } from './region.js';

/** Addresses [`start`, `end`). */
export interface Window {
  readonly start: Address;
  readonly end: Address;
}

/** What rendering has cost so far, for tests and benchmarks: counts that don't depend on the machine. */
export interface RenderWork {
  /** Regions looked at, an alias and its target counted separately. */
  regionVisits: number;
  /** Addresses or ranks compared to order what the visits found. */
  comparisons: number;
}

/** A stretch of a view that was rendered anew: the ranges it had and those it has now. */
export interface Change {
  readonly before: readonly FlatRange[];
  readonly after: readonly FlatRange[];
}

/**
 * The view of `root` where `view` is its view before edits, all of which fell into `windows`: only what the windows
 * touch is rendered. Returns the same `view` and no changes if nothing differs. O(n log n) in the regions that reach
 * into the windows, and O(log n) in all others.
 *
 * Throws `INVALID` if host memory would show at or above 2^53.
 */
export function rerender(
  root: MemoryRegion,
  view: FlatView,
  windows: readonly Window[],
  work: RenderWork,
): { view: FlatView; changes: readonly Change[] } {
  const wide = widen(view, windows);
  const rendered = sweep(fragments(root, wide, work), work);
  const changes: Change[] = [];
  const replacements: Replacement[] = [];
  let next = 0;
  for (const { start, end } of wide) {
    const from = view.indexAfter(subtract(start, 1));
    const to = view.indexAfter(subtract(end, 1));
    const begin = next;
    while (next < rendered.length && rendered[next]!.gpa < end) next++;
    const before = view.slice(from, to);
    const after = reuse(before, rendered.slice(begin, next));
    if (before.length === after.length && before.every((range, index) => range === after[index])) continue;
    changes.push({ before, after });
    replacements.push({ from, to, ranges: after });
  }
  return changes.length === 0 ? { view, changes } : { view: view.with(replacements), changes };
}

/**
 * The windows as disjoint ascending ones that hold whole ranges of `view`: each also takes in the ranges it touches,
 * because what appears in it may merge with them. What lies beyond those stays as it is, since where two ranges part
 * depends only on what is on either side.
 */
function widen(view: FlatView, windows: readonly Window[]): Window[] {
  const wide = joined(windows).map(({ start, end }) => {
    let first = view.indexAfter(start);
    while (first > 0 && rangeEnd(view.at(first - 1)!) >= start) first--;
    const left = view.at(first);
    const right = view.at(view.indexAfter(end) - 1);
    return {
      start: left === undefined ? start : lower(start, left.gpa),
      end: right === undefined ? end : higher(end, rangeEnd(right)),
    };
  });
  return joined(wide);
}

function byStart(a: Window, b: Window): number {
  return a.start < b.start ? -1 : a.start > b.start ? 1 : 0;
}

/** Sorts in place, which costs nothing where there is nothing to do: most lists here are short, or in order. */
function ascending<T>(items: T[], compare: (a: T, b: T) => number): T[] {
  for (let index = 1; index < items.length; index++) {
    if (compare(items[index - 1]!, items[index]!) > 0) return items.sort(compare);
  }
  return items;
}

/** The windows as disjoint ascending ones that don't touch. */
function joined(windows: readonly Window[]): Window[] {
  const result: { start: Address; end: Address }[] = [];
  for (const { start, end } of ascending([...windows], byStart)) {
    const last = result.at(-1);
    if (last !== undefined && start <= last.end) last.end = higher(last.end, end);
    else result.push({ start, end });
  }
  return result;
}

/** The new ranges, with the old object in place of each that is exactly the same. */
function reuse(before: readonly FlatRange[], after: readonly FlatRange[]): readonly FlatRange[] {
  let next = 0;
  return after.map((range) => {
    while (next < before.length && before[next]!.gpa < range.gpa) next++;
    const old = before[next];
    return old !== undefined && old.logging === range.logging && sameRange(old, range) ? old : range;
  });
}

/** Some addresses where a region with content of its own shows, unless one of lower rank does. */
interface Fragment {
  readonly start: Address;
  readonly end: Address;
  /** Order of rendering: of two fragments, the one of lower rank shows. */
  readonly rank: number;
  readonly region: MemoryRegion;
  /** Guest-physical address of the region's first byte, shown or not. */
  readonly base: Address;
  readonly readonly: boolean;
  readonly nonvolatile: boolean;
}

/** A region still to be looked at: where its first byte is, and the addresses it may show at. */
interface Visit {
  readonly region: MemoryRegion;
  readonly base: Address;
  readonly start: Address;
  readonly end: Address;
  readonly readonly: boolean;
  readonly nonvolatile: boolean;
  /** Its children are done: what is left is its own content. */
  readonly own: boolean;
}

/** What the tree below `root` offers for `windows` (disjoint, ascending), in no order of addresses. */
function fragments(root: MemoryRegion, windows: readonly Window[], work: RenderWork): Fragment[] {
  const found: Fragment[] = [];
  const pending: Visit[] = [];
  const offer = (region: MemoryRegion, base: Address, around: Omit<Visit, 'region' | 'base' | 'own'>) => {
    if (!region.enabled) return;
    const [start, end] = [higher(base, around.start), lower(add(base, region.size), around.end)];
    if (start >= end || !reaches(windows, start, end, work)) return;
    const readonly = around.readonly || region.readonly;
    const nonvolatile = around.nonvolatile || region.nonvolatile;
    pending.push({ region, base, start, end, readonly, nonvolatile, own: false });
  };
  offer(root, root.address, { start: 0, end: addressSpaceEnd, readonly: false, nonvolatile: false });
  const show = ({ region, base, start, end, readonly, nonvolatile }: Visit) => {
    const rank = found.length;
    for (let index = firstEndingAfter(windows, start, work); index < windows.length; index++) {
      const window = windows[index]!;
      if (window.start >= end) break;
      const [from, to] = [higher(start, window.start), lower(end, window.end)];
      found.push({ start: from, end: to, rank, region, base, readonly, nonvolatile });
    }
  };
  for (let visit = pending.pop(); visit !== undefined; visit = pending.pop()) {
    if (visit.own) {
      show(visit);
      continue;
    }
    work.regionVisits++;
    const { region, base } = visit;
    if (region.target !== undefined) {
      offer(region.target, subtract(base, region.targetOffset), visit);
      continue;
    }
    const children = childrenIn(windows, visit, work);
    if (children.length === 0) {
      if (region.kind !== 'container') show(visit);
      continue;
    }
    // The stack turns the order round: the region's own content is looked at after all its children.
    if (region.kind !== 'container') pending.push({ ...visit, own: true });
    for (let index = children.length - 1; index >= 0; index--) {
      const child = children[index]!;
      offer(child, add(base, child.address), visit);
    }
  }
  return found;
}

/** The children of a visited region that reach into a window, in the order in which they show. */
function childrenIn(
  windows: readonly Window[],
  { region, base, start, end }: Visit,
  work: RenderWork,
): readonly MemoryRegion[] {
  const found: MemoryRegion[] = [];
  for (let index = firstEndingAfter(windows, start, work); index < windows.length; index++) {
    const window = windows[index]!;
    if (window.start >= end) break;
    const [from, to] = [subtract(higher(window.start, start), base), subtract(lower(window.end, end), base)];
    // All of them are in order already, more often than not.
    if (from <= 0 && to >= region.size) return region.children;
    region.collectChildren(from, to, found);
  }
  work.comparisons += found.length;
  ascending(found, (a, b) => {
    work.comparisons++;
    return byRank(a, b);
  });
  // Those that reach into several windows were found for each.
  return windows.length === 1 ? found : found.filter((child, index) => child !== found[index - 1]);
}

/** Whether some window holds an address of [`start`, `end`). */
function reaches(windows: readonly Window[], start: Address, end: Address, work: RenderWork): boolean {
  const window = windows[firstEndingAfter(windows, start, work)];
  work.comparisons++;
  return window !== undefined && window.start < end;
}

/** The index of the first window that ends above `gpa`. */
function firstEndingAfter(windows: readonly Window[], gpa: Address, work: RenderWork): number {
  let [from, to] = [0, windows.length];
  while (from < to) {
    work.comparisons++;
    const middle = (from + to) >> 1;
    if (windows[middle]!.end <= gpa) from = middle + 1;
    else to = middle;
  }
  return from;
}

/**
 * Who shows where: passes over the fragments by ascending address, keeping those that reach the present address in a
 * heap with the lowest rank on top. Each enters and leaves the heap once, so the whole is O(n log n).
 */
function sweep(found: Fragment[], work: RenderWork): FlatRange[] {
  ascending(found, (a, b) => {
    work.comparisons++;
    return byStart(a, b);
  });
  const ranges: FlatRange[] = [];
  const reaching: Fragment[] = [];
  let next = 0;
  let gpa: Address = 0;
  while (next < found.length || reaching.length > 0) {
    while (reaching.length > 0 && reaching[0]!.end <= gpa) pop(reaching, work);
    if (reaching.length === 0) {
      const first = found[next];
      if (first === undefined) break;
      gpa = higher(gpa, first.start);
    }
    while (next < found.length && found[next]!.start <= gpa) push(reaching, found[next++]!, work);
    const top = reaching[0]!;
    // It shows up to its end, or to the start of one that outranks it; those it outranks wait in the heap.
    let end = top.end;
    while (next < found.length && found[next]!.start < end) {
      work.comparisons++;
      if (found[next]!.rank < top.rank) end = found[next]!.start;
      else push(reaching, found[next++]!, work);
    }
    append(ranges, top, gpa, end);
    gpa = end;
  }
  return ranges;
}

/** Adds [`gpa`, `end`) of a fragment, joined with the last range if the two are one to a listener. */
function append(ranges: FlatRange[], fragment: Fragment, gpa: Address, end: Address): void {
  const { region, readonly, nonvolatile } = fragment;
  const offset = subtract(gpa, fragment.base);
  const last = ranges.at(-1);
  const joins =
    last !== undefined &&
    last.region === region &&
    rangeEnd(last) === gpa &&
    add(last.offset, last.size) === offset &&
    last.readonly === readonly &&
    last.nonvolatile === nonvolatile &&
    !region.unmergeable;
  if (joins) ranges.pop();
  const start = joins ? last.gpa : gpa;
  const range: FlatRange = {
    gpa: start,
    size: subtract(end, start),
    region,
    offset: joins ? last.offset : offset,
    readonly,
    romMode: region.romMode,
    nonvolatile,
    logging: region.logging,
  };
  if (end > Number.MAX_SAFE_INTEGER && isBacked(range)) {
    const where = formatRange(range.gpa, range.size);
    throw new MemorySlotsError(
      'INVALID',
      `host memory of '${region.name}' can't show at ${where}: it must end below 2^53`,
    );
  }
  ranges.push(range);
}

function push(heap: Fragment[], fragment: Fragment, work: RenderWork): void {
  let hole = heap.length;
  heap.push(fragment);
  while (hole > 0) {
    const above = (hole - 1) >> 1;
    work.comparisons++;
    if (heap[above]!.rank <= fragment.rank) break;
    heap[hole] = heap[above]!;
    hole = above;
  }
  heap[hole] = fragment;
}

function pop(heap: Fragment[], work: RenderWork): void {
  const moved = heap.pop()!;
  if (heap.length === 0) return;
  let hole = 0;
  for (let below = 1; below < heap.length; below = 2 * hole + 1) {
    work.comparisons += 2;
    if (below + 1 < heap.length && heap[below + 1]!.rank < heap[below]!.rank) below++;
    if (heap[below]!.rank >= moved.rank) break;
    heap[hole] = heap[below]!;
    hole = below;
  }
  heap[hole] = moved;
}
