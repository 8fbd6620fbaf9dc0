import type { Arena } from '../../ts/core/arena.js';
import { LinuxBackend } from '../../ts/kvm/linux.js';
import { Machine } from '../../ts/kvm/machine.js';
import type { Policy } from '../../ts/kvm/planner.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import { kernelDifferences } from '../kvm/kernel-slots.js';
import { Crowd } from './crowd.js';
import { Disturbers, flags, makeFlags } from './disturbers.js';
import { Field, type Random } from './field.js';
import { Storm } from './storm.js';
import type { Tally } from './tally.js';
import { WatchedBackend } from './watched-backend.js';

/** Milliseconds of commits between two turns of the event loop. */
const slice = 4;
/** Milliseconds between two changes of who sits in the crowd. */
const replaceInterval = 300;
/** How many in a hundred slices are calm, end with a pause, and end with a kick that is watched. */
const percent = { calm: 50, pauses: 20, watchedKicks: 5 } as const;
/** A deaf control drops one in so many of the kicks that aren't for a window. */
const droppedKick = 3;
/** Milliseconds: a window waits this long for vCPUs. */
const timeout = 5_000;

/** What a round is to be like. */
export interface RoundOptions {
  readonly backend: 'kvm' | 'simulated';
  readonly seconds: number;
  readonly vcpus: number;
  readonly policy: Policy;
  /** Rules of a simulated KVM. */
  readonly profile: 'x86' | 'x86-smm';
  readonly random: Random;
  /** A fault that is to be found: updates that aren't atomic, or kicks that get lost. */
  readonly control?: 'naive' | 'deaf' | undefined;
}

/** Tortures one virtual machine, from its making to its end. Ends early once something is wrong. */
export async function playRound(options: RoundOptions, tally: Tally): Promise<void> {
  const words = makeFlags();
  let arena!: Arena;
  let backend!: WatchedBackend;
  let storm: Storm | undefined;
  const machine = await Machine.create({
    backend: (memory) => {
      const { profile } = options;
      arena = memory;
      const inner = options.backend === 'kvm' ? new LinuxBackend(arena) : new SimulatedBackend(arena, { profile });
      backend = new WatchedBackend(arena, inner, words);
      return backend;
    },
    policy: options.policy,
    inhibitor: { timeout },
    onCommit: (record) => storm?.record(record),
  });
  const disturbers = new Disturbers(machine, words, Math.floor(options.random() * 2 ** 31));
  try {
    backend.commonLine = machine.ioctlGate().line;
    const field = new Field(machine, options.random, options.vcpus);
    storm = new Storm(machine, backend, field, options.random, tally);
    const start = performance.now();
    const crowd = await Crowd.fill(machine, arena, field, options.random, tally);
    if (options.control === 'deaf') backend.dropKicks = droppedKick;
    if (options.control === 'naive') machine.updates = 'naive';
    await rage(options, machine, backend, storm, crowd, disturbers, tally);
    disturbers.calm = true;
    backend.dropKicks = 0;
    const stuck = tally.problems.length > 0 ? 0 : await crowd.settle();
    if (stuck > 0) tally.problems.push(`${stuck} guests made no progress`);
    storm.check();
    tally.problems.push(...kernelDifferences(machine, backend.inner, arena), ...crowd.stopped);
    tally.elapsedMillis += performance.now() - start;
    await crowd.end();
  } finally {
    // They use what closing the machine frees.
    await disturbers.end();
    tally.counts.otherIoctls += Atomics.load(words, flags.ioctls);
    tally.counts.otherKicks += Atomics.load(words, flags.kicks);
    const inWindow = Atomics.load(words, flags.ioctlsInWindow);
    if (inWindow > 0) tally.problems.push(`${inWindow} ioctls of other threads were made inside an inhibit window`);
    if (disturbers.error !== undefined) tally.problems.push(`a thread beside the machine died: ${disturbers.error}`);
    await machine.close();
  }
}

/** Everything at once, for as long as nothing is wrong. */
async function rage(
  options: RoundOptions,
  machine: Machine,
  backend: WatchedBackend,
  storm: Storm,
  crowd: Crowd,
  disturbers: Disturbers,
  tally: Tally,
): Promise<void> {
  const end = performance.now() + options.seconds * 1000;
  const chance = (share: number) => options.random() * 100 < share;
  let replacing: Promise<void> | undefined;
  let nextReplacement = performance.now() + replaceInterval;
  disturbers.follow(machine, backend);
  for (let now = performance.now(); now < end && tally.problems.length === 0; now = performance.now()) {
    disturbers.calm = options.control === 'deaf' || chance(percent.calm);
    do storm.transact();
    while (performance.now() - now < slice && tally.problems.length === 0);
    if (chance(percent.pauses)) crowd.pauseOrResume();
    if (chance(percent.watchedKicks)) {
      disturbers.calm = true;
      crowd.watchKick();
    }
    if (now > nextReplacement && replacing === undefined) {
      const done = () => {
        replacing = undefined;
        nextReplacement = performance.now() + replaceInterval;
        disturbers.follow(machine, backend);
      };
      replacing = crowd.replace().then(done, (error) => {
        done();
        tally.problems.push(`a vCPU couldn't be replaced: ${error}`);
      });
    }
    if (crowd.harm() || crowd.stopped.length > 0) break;
    await new Promise((resolve) => setImmediate(resolve));
  }
  await replacing;
}
