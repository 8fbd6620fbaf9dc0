import type { Step } from '../trace/index.js';
import { upperBound } from './columns.js';

/** Addresses that a transaction unmapped and mapped again: what a vCPU that ran meanwhile found missing. */
export interface Hole {
  readonly gpa: number;
  /** Bytes. */
  readonly size: number;
  /** From the delete to the create, in microseconds; NaN if the log has no times. */
  readonly microseconds: number;
  /** The addresses show the same host memory with the same flags before and after: all was for nothing. */
  readonly reshape: boolean;
}

/** The holes of one transaction: where a deleted range meets a created one. By the address of the deleted range. */
export function holesOf(steps: readonly Step[]): Hole[] {
  const creates = steps
    .filter(({ change }) => change === 'create' || change === 'move')
    .sort((a, b) => a.after!.gpa - b.after!.gpa);
  // Creates may overlap each other where a commit was undone: only the sum of all ends is known to ascend.
  const reach: number[] = [];
  for (const { after } of creates) reach.push(Math.max(reach.at(-1) ?? 0, after!.gpa + after!.size));
  const holes: Hole[] = [];
  for (const { change, before, update } of steps) {
    if ((change !== 'delete' && change !== 'move') || before === undefined) continue;
    const end = before.gpa + before.size;
    for (let index = upperBound(reach, reach.length, before.gpa); index < creates.length; index++) {
      const { after, update: create } = creates[index]!;
      if (after!.gpa >= end) break;
      if (create.line < update.line || after!.addressSpace !== before.addressSpace) continue;
      const gpa = Math.max(before.gpa, after!.gpa);
      const size = Math.min(end, after!.gpa + after!.size) - gpa;
      if (size <= 0) continue;
      holes.push({
        gpa,
        size,
        microseconds: (create.time ?? Number.NaN) - (update.time ?? Number.NaN),
        reshape: before.hostAddress - before.gpa === after!.hostAddress - after!.gpa && before.flags === after!.flags,
      });
    }
  }
  return holes;
}
