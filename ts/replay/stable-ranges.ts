import type { HostMemory } from '../kvm/backend.js';
import type { RecordedRange, Recording } from './recording.js';
import { type WatchedWord, writeWord } from './watch-guest.js';

/** Watched words per stable range. */
const wordsPerRange = 8;

/** A range whose host memory and flags are the same after every step of a recording, from its first on. */
export type StableRange = Omit<RecordedRange, 'addressSpace'>;

/** The ranges of address space 0 that every step of `recording` leaves as they are, by ascending address. */
export function stableRanges(recording: Recording): StableRange[] {
  const layout = new Set<RecordedRange>();
  let stable: StableRange[] | undefined;
  for (const step of recording.steps) {
    for (const range of step.deletes) layout.delete(range);
    for (const range of step.adds) layout.add(range);
    const now = [...layout].filter((range) => range.addressSpace === 0).sort((a, b) => a.gpa - b.gpa);
    stable = stable === undefined ? now : intersect(stable, now);
  }
  return stable ?? [];
}

/** What both lists map to the same host memory with the same flags. Both ascend; so does the result. */
function intersect(a: readonly StableRange[], b: readonly StableRange[]): StableRange[] {
  const result: StableRange[] = [];
  let [i, j] = [0, 0];
  while (i < a.length && j < b.length) {
    const [left, right] = [a[i]!, b[j]!];
    const start = Math.max(left.gpa, right.gpa);
    const end = Math.min(left.gpa + left.size, right.gpa + right.size);
    const same =
      left.memory === right.memory && left.flags === right.flags && left.offset - left.gpa === right.offset - right.gpa;
    if (start < end && same) {
      result.push({ ...left, gpa: start, size: end - start, offset: left.offset + (start - left.gpa) });
    }
    if (left.gpa + left.size < right.gpa + right.size) i++;
    else j++;
  }
  return result;
}

/**
 * Words that guests may expect at any time of the recording: at both ends of each stable range, and in between. Writes
 * them into `memories`, which are those of its player.
 */
export function stableWords(recording: Recording, memories: readonly HostMemory[]): WatchedWord[] {
  const result: WatchedWord[] = [];
  for (const stable of stableRanges(recording)) {
    for (let index = 0; index < wordsPerRange; index++) {
      const last = stable.size - 4;
      const inside = Math.floor(((last / (wordsPerRange - 1)) * index) / 4) * 4;
      const gpa = stable.gpa + inside;
      if (gpa === 0 || gpa >= 2 ** 32) continue;
      const value = (0x5a000000 + (gpa >>> 4)) >>> 0;
      writeWord(memories[stable.memory]!, stable.offset + inside, value);
      result.push({ gpa, value });
    }
  }
  return result;
}

/** The first of `candidates` at which `size` bytes are free in every step of the recording, or undefined. */
export function freeAddress(recording: Recording, size: number, candidates: Iterable<number>): number | undefined {
  const ranges = recording.steps.flatMap((step) => step.adds);
  for (const gpa of candidates) {
    if (!ranges.some((range) => range.gpa < gpa + size && gpa < range.gpa + range.size)) return gpa;
  }
  return undefined;
}
