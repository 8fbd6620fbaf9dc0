import { processorShare } from './processor-time.js';

/** What is counted. */
export const counted = [
  'commits',
  /** Commits in which a deleted range overlapped a created one. */
  'overlapping',
  'inhibits',
  /** Commits of which a call was made to fail, and which were undone. */
  'failed',
  'cancelled',
  'timeouts',
  /** Transactions whose edit threw. */
  'abandoned',
  /** Transactions that were planned and not made. */
  'planned',
  'tableChecks',
  'dirtyPages',
  /** VM ioctls of other threads, and kicks of theirs. */
  'otherIoctls',
  'otherKicks',
  'reads',
  'wrongValues',
  'spuriousExits',
  'internalErrors',
  'vcpusAdded',
  'vcpusRemoved',
  'pauses',
  /** Single kicks of which was watched whether they were heard, and those that weren't. */
  'watchedKicks',
  'lostKicks',
] as const;

type Counts = Record<(typeof counted)[number], number>;

/** What a torture came to: the last line of its output. Times in microseconds. */
export interface TortureReport extends Counts {
  readonly maxWindowMicros: number;
  /** Of the processor time that all vCPUs could have had, from 0 to 1. */
  readonly vcpuShare: number;
  /** Entries into KVM_RUN of the least and the most served vCPU. */
  readonly entriesLeast: number;
  readonly entriesMost: number;
  /** What was wrong, or too little, in words: empty if all held. */
  readonly problems: readonly string[];
}

/** Keeps the books of a torture, over all its machines. */
export class Tally {
  readonly counts = Object.fromEntries(counted.map((name) => [name, 0])) as Counts;
  readonly problems: string[] = [];
  /** Entries into KVM_RUN, by seat (see Crowd). */
  readonly entries: number[];
  maxWindowMicros = 0;
  /** What vCPU threads had of the processors, and how long they were there. */
  processorMillis = 0;
  elapsedMillis = 0;

  constructor(vcpus: number) {
    this.entries = Array<number>(vcpus).fill(0);
  }

  get report(): TortureReport {
    const { counts, entries, problems, maxWindowMicros, processorMillis, elapsedMillis } = this;
    const { commits, inhibits, spuriousExits, wrongValues, lostKicks, timeouts, ...others } = counts;
    return {
      ...{ commits, inhibits, spuriousExits, wrongValues, lostKicks, timeouts },
      maxWindowMicros: Math.round(maxWindowMicros),
      vcpuShare: processorShare(processorMillis, elapsedMillis, entries.length),
      entriesLeast: Math.min(...entries),
      entriesMost: Math.max(...entries),
      ...others,
      problems,
    };
  }
}
