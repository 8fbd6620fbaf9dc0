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
  take(gpa: number, end: number): Gone[] {
    const ranges = this.#ranges;
    const first = this.#firstEndingAfter(gpa);
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
    if (index > first) ranges.splice(first, index - first, ...left);
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

function cut({ slot, by, exits, window }: Gone, gpa: number, end: number): Gone {
  return { gpa, end, slot, by, exits, window };
}
