import type { SlotUpdate } from './event.js';

/** Memory that a transaction has deleted and not created again. */
export interface Gone {
  readonly gpa: number;
  /** The address behind its last byte. */
  readonly end: number;
  /** The slot that it was in. */
  readonly slot: SlotUpdate;
  /** The call that deleted it. */
  readonly by: SlotUpdate;
  /** MMIO exits logged before that. */
  readonly exits: number;
  /** The inhibit window it was deleted in, counted from 1; 0 for none. */
  readonly window: number;
}

const nothing: readonly Gone[] = [];

/** The ranges that the present transaction has left without memory: disjoint, in address order. */
export class Missing {
  readonly #ranges: Gone[] = [];

  clear(): void {
    this.#ranges.length = 0;
  }

  add(gone: Gone): void {
    const ranges = this.#ranges;
    const last = ranges.at(-1);
    if (last === undefined || last.end <= gone.gpa) {
      ranges.push(gone);
      return;
    }
    // Overlaps come from logs with missing lines only: the later delete counts.
    this.take(gone.gpa, gone.end);
    ranges.splice(this.#firstEndingAfter(gone.gpa), 0, gone);
  }

  /** Takes out what lies between two addresses, cut to them. */
  take(gpa: number, end: number): readonly Gone[] {
    const ranges = this.#ranges;
    const first = this.#firstEndingAfter(gpa);
    if (first === ranges.length || ranges[first]!.gpa >= end) return nothing;
    const taken: Gone[] = [];
    const left: Gone[] = [];
    let index = first;
    for (; index < ranges.length; index++) {
      const range = ranges[index]!;
      if (range.gpa >= end) break;
      taken.push(cut(range, Math.max(range.gpa, gpa), Math.min(range.end, end)));
      if (range.gpa < gpa) left.push(cut(range, range.gpa, gpa));
      if (range.end > end) left.push(cut(range, end, range.end));
    }
    if (left.length === 1) {
      ranges[first] = left[0]!;
      if (index > first + 1) ranges.splice(first + 1, index - first - 1);
    } else ranges.splice(first, index - first, ...left);
    return taken;
  }

  #firstEndingAfter(gpa: number): number {
    const ranges = this.#ranges;
    let low = 0;
    let high = ranges.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ranges[middle]!.end > gpa) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

function cut(gone: Gone, gpa: number, end: number): Gone {
  if (gone.gpa === gpa && gone.end === end) return gone;
  const { slot, by, exits, window } = gone;
  return { gpa, end, slot, by, exits, window };
}
