import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';

/** Processor time that thread `id` of this process has had, in milliseconds (proc(5), schedstat); 0 once it has ended. */
export function processorTime(id: number): number {
  try {
    return Number(readFileSync(`/proc/self/task/${id}/schedstat`, 'latin1').split(' ')[0]) / 1e6;
  } catch {
    return 0;
  }
}

/** What share of all that `threads` threads could have had in `elapsed` milliseconds they got, from 0 to 1. */
export function processorShare(milliseconds: number, elapsed: number, threads: number): number {
  return Math.round((milliseconds / (elapsed * Math.min(threads, availableParallelism()))) * 100) / 100;
}
