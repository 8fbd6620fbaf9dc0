import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { randomFrom } from '../../ts/testing/random.js';
import { playRound, type RoundOptions } from './round.js';
import { counted, Tally, type TortureReport } from './tally.js';

const usage = `npm run torture -- [--seconds N] [--vcpus N] [--backend kvm|simulated] [--seed S] [--control naive|deaf] [--json]

Reshapes the memory of running guests in every way, back to back, for N seconds (default 60) with N vCPUs (default 8),
while other threads make VM ioctls, kick vCPUs and cancel commits, vCPUs are paused, ended and added, and calls fail.
Guests check what they read; the slot table is compared with the memory map, with the calls, and with KVM. Every 5 s
there is a new virtual machine.

  --seed S            seeds the random choices (default 1); how many there are is a matter of time, so no run is like another
  --control naive     updates aren't atomic: guests are harmed, and this must fail
  --control deaf      kicks get lost, outside of windows: so must this
  --json              nothing but the last line, which is JSON in either case

Exit status: 0 if nothing was wrong and enough was done, else 1.`;

const roundSeconds = 5;
/** In so many seconds everything that can happen must happen at least once. */
const allKindsSeconds = 10;

/** What a torture is to be like. */
export type TortureOptions = Pick<RoundOptions, 'backend' | 'seconds' | 'vcpus' | 'control'> & {
  readonly seed: number;
};

/**
 * Overlapping commits a second, in the least, for a torture to prove anything: with a processor for each vCPU, and with
 * more vCPUs than processors.
 */
const leastRate = { few: 20_000 / 60, many: 2_000 / 60 };

/** Runs a torture; `say` is told of each round. `least`: how many overlapping commits there must be. */
export async function torture(
  options: TortureOptions,
  say: (line: string) => void = () => {},
  least = options.seconds * (options.vcpus <= availableParallelism() ? leastRate.few : leastRate.many),
): Promise<TortureReport> {
  const tally = new Tally(options.vcpus);
  const rounds = Math.ceil(options.seconds / roundSeconds);
  for (let round = 0; round < rounds && tally.problems.length === 0; round++) {
    const policy = round % 2 === 0 ? 'exact' : 'stable';
    const profile = round % 4 < 2 ? 'x86' : 'x86-smm';
    const random = randomFrom(options.seed + round * 1_000_003);
    try {
      await playRound({ ...options, seconds: options.seconds / rounds, policy, profile, random }, tally);
    } catch (error) {
      tally.problems.push(`round ${round + 1} ended in ${error}`);
    }
    const { commits, overlapping, inhibits, reads } = tally.counts;
    const counts = `${commits} commits, ${overlapping} overlapping, ${inhibits} windows, ${reads} words read`;
    say(`round ${round + 1} of ${rounds}, ${policy}: ${counts} so far`);
  }
  if (tally.problems.length === 0) tally.problems.push(...lacking(tally, least, options.seconds >= allKindsSeconds));
  return tally.report;
}

/** What was done too little of for the rest to mean anything. */
function lacking({ counts, entries }: Tally, least: number, allKinds: boolean): string[] {
  const harm = ['timeouts', 'wrongValues', 'spuriousExits', 'internalErrors', 'lostKicks'];
  const undone = allKinds ? counted.filter((name) => counts[name] === 0 && !harm.includes(name)) : [];
  const problems = undone.map((name) => `there were no ${name}`);
  if (counts.overlapping < least) {
    problems.push(`${counts.overlapping} overlapping commits are too few: there must be ${Math.ceil(least)}`);
  }
  if (entries.includes(0)) problems.push('a vCPU never ran');
  return problems;
}

/** The command. Resolves to its exit status. */
export async function run(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      seconds: { type: 'string', default: '60' },
      vcpus: { type: 'string', default: '8' },
      backend: { type: 'string', default: 'kvm' },
      seed: { type: 'string', default: '1' },
      control: { type: 'string' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  const { backend, control } = values;
  const [seconds, vcpus, seed] = [values.seconds, values.vcpus, values.seed].map(Number) as [number, number, number];
  const known =
    (backend === 'kvm' || backend === 'simulated') &&
    (control === undefined || control === 'naive' || control === 'deaf') &&
    seconds > 0 &&
    Number.isInteger(vcpus) &&
    vcpus > 0 &&
    Number.isInteger(seed);
  if (values.help || !known) {
    console.log(usage);
    return values.help ? 0 : 2;
  }
  const say = values.json ? () => {} : console.log;
  const report = await torture({ backend, seconds, vcpus, seed, control }, say);
  for (const problem of report.problems.slice(0, 20)) say(problem);
  console.log(JSON.stringify(report));
  return report.problems.length === 0 ? 0 : 1;
}
