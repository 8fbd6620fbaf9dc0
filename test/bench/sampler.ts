import { loadRivals } from './rivals.js';

/** Measuring several things against each other, in turns, so that a busy machine slows them all alike. */

/** Something to be measured. */
export interface Contender {
  /** Does it once; or `operations` times in a row. */
  readonly run: () => unknown;
  /** How often one call of `run` does what is to be measured. Default 1. */
  readonly operations?: number;
  /** Called, unmeasured, before its turn and after. */
  readonly before?: () => void;
  readonly after?: () => void;
}

/** Nanoseconds an operation. */
export interface Sample {
  readonly median: number;
  /** The middle half of all turns lies between these two. */
  readonly low: number;
  readonly high: number;
  readonly turns: number;
}

export interface RaceOptions {
  /** How long to measure, in milliseconds, all contenders together. */
  readonly milliseconds: number;
  /** How long one turn lasts at least, in milliseconds. Default 1. */
  readonly turn?: number;
  /** At least this many turns each, whatever time it takes. Default 5. */
  readonly leastTurns?: number;
}

const nanoseconds = (): number => Number(process.hrtime.bigint());

/** Times `repeats` calls: nanoseconds of processor time a call, so that other processes only cost what they displace. */
function time(run: () => unknown, repeats: number): number {
  const { threadTime } = loadRivals();
  const start = threadTime();
  for (let index = 0; index < repeats; index++) run();
  return (threadTime() - start) / repeats;
}

/** How many calls make a turn long enough to be measured. Warms up as well. */
function repeatsFor({ run, before, after }: Contender, turn: number): number {
  before?.();
  try {
    let repeats = 1;
    for (;;) {
      const spent = time(run, repeats) * repeats;
      if (spent >= turn * 1e6) return repeats;
      repeats = Math.min(repeats * 8, Math.ceil((repeats * turn * 1.1e6) / Math.max(spent, 1000)) + 1);
    }
  } finally {
    after?.();
  }
}

/**
 * Lets all contenders have turn after turn, A B C B C A C A B …, and gives the median of each one's turns. For
 * what computes: what waits is to be measured by {@link raceMeasured}.
 */
export function race<Name extends string>(
  contenders: Readonly<Record<Name, Contender>>,
  options: RaceOptions,
): Record<Name, Sample> {
  const names = Object.keys(contenders) as Name[];
  const repeats = new Map(names.map((name) => [name, repeatsFor(contenders[name], options.turn ?? 1)]));
  const turns = new Map<Name, number[]>(names.map((name) => [name, []]));
  const start = nanoseconds();
  for (let round = 0; ; round++) {
    const enough = nanoseconds() - start > options.milliseconds * 1e6;
    if (enough && round >= (options.leastTurns ?? 5)) break;
    for (let index = 0; index < names.length; index++) {
      const name = names[(round + index) % names.length]!;
      const contender = contenders[name];
      contender.before?.();
      const spent = time(contender.run, repeats.get(name)!);
      contender.after?.();
      turns.get(name)!.push(spent / (contender.operations ?? 1));
    }
  }
  return Object.fromEntries(names.map((name) => [name, sampleOf(turns.get(name)!)])) as Record<Name, Sample>;
}

/** The same for turns that measure themselves: each call is one turn and answers nanoseconds an operation. */
export function raceMeasured<Name extends string>(
  contenders: Readonly<Record<Name, () => number>>,
  options: Pick<RaceOptions, 'milliseconds' | 'leastTurns'>,
): Record<Name, Sample> {
  const names = Object.keys(contenders) as Name[];
  const turns = new Map<Name, number[]>(names.map((name) => [name, []]));
  for (const name of names) contenders[name]();
  const start = nanoseconds();
  for (let round = 0; ; round++) {
    const enough = nanoseconds() - start > options.milliseconds * 1e6;
    if (enough && round >= (options.leastTurns ?? 5)) break;
    for (let index = 0; index < names.length; index++) {
      const name = names[(round + index) % names.length]!;
      turns.get(name)!.push(contenders[name]());
    }
  }
  return Object.fromEntries(names.map((name) => [name, sampleOf(turns.get(name)!)])) as Record<Name, Sample>;
}

/** The same for what takes long or has to be awaited: `rounds` turns of one call each. */
export async function raceAsync<Name extends string>(
  contenders: Readonly<Record<Name, () => Promise<unknown> | unknown>>,
  rounds: number,
): Promise<Record<Name, Sample>> {
  const names = Object.keys(contenders) as Name[];
  const turns = new Map<Name, number[]>(names.map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (let index = 0; index < names.length; index++) {
      const name = names[(round + index) % names.length]!;
      const start = nanoseconds();
      await contenders[name]();
      turns.get(name)!.push(nanoseconds() - start);
    }
  }
  return Object.fromEntries(names.map((name) => [name, sampleOf(turns.get(name)!)])) as Record<Name, Sample>;
}

/** The median and the middle half of some numbers. */
export function sampleOf(values: readonly number[]): Sample {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round((sorted.length - 1) * share)] ?? Number.NaN;
  return { median: at(0.5), low: at(0.25), high: at(0.75), turns: sorted.length };
}
