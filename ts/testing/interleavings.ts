import type { Arena } from '../core/arena.js';
import { hex } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import type { GuestStep } from '../kvm/backend.js';
import { gateLineBytes, lineWords } from '../kvm/gate.js';
import type { SimulatedBackend } from '../kvm/simulated.js';
import type { Change, KernelCall } from '../kvm/simulated-kernel.js';
import { slotFlags } from '../kvm/simulated-readers.js';
import type { SlotState } from '../kvm/simulated-slots.js';
import { type SimulatedRunner, simulatedRunner } from '../kvm/simulated-vcpu.js';
import { describeCall } from './hooks.js';
import { randomFrom } from './random.js';

/** What one interleaving plays in. Made anew for each, and always the same. */
export interface World {
  readonly arena: Arena;
  /** Holds the slots from before the commit. */
  readonly backend: SimulatedBackend;
  /** What each vCPU does, once, while the commit goes on. Few steps: the number of interleavings explodes. */
  readonly guests: readonly (readonly GuestStep[])[];
  /** Makes the change under test, by calls on `backend`. */
  commit(): void;
  /** Whether a vCPU may be in KVM_RUN now: false while the commit keeps it out. Default: always. */
  mayRun?(vcpu: number): boolean;
}

/** A moment at which a vCPU sees a hole: an address that is mapped before and after the commit, and isn't now. */
export interface HoleMoment {
  /** The vCPU, from 0, and the step it was at. */
  readonly vcpu: number;
  readonly step: GuestStep;
  readonly gpa: number;
  /** How KVM_RUN would end: in a bogus MMIO exit, or with the guest dead. */
  readonly exit: 'mmio' | 'internal-error';
  /** The last call of which vCPUs had seen something, and what that call does. */
  readonly call: KernelCall;
  readonly change: Change;
  /** The interleaving in which it was met first: {@link replayInterleaving} plays it again. */
  readonly schedule: readonly number[];
}

/** What {@link exploreInterleavings} found. */
export interface InterleavingReport {
  readonly interleavings: number;
  /** Each moment once, however many interleavings lead to it. */
  readonly moments: readonly HoleMoment[];
}

/** How to explore. */
export interface ExploreOptions {
  /** How many interleavings to play at most. Default 20,000. */
  readonly limit?: number;
  /** With a seed, `limit` interleavings are drawn at random; without, all are played, and too many are an error. */
  readonly seed?: number;
}

/**
 * Plays a commit again and again, each time with the vCPUs' steps at other places: before the first call, and after
 * each change of what vCPUs see, of which a delete or a move makes two. Steps that are left when the commit ends come
 * after it. All of it happens in this thread, so the same schedule always gives the same result.
 *
 * Throws `CAPACITY` if there are more than `limit` interleavings and no seed was given.
 */
export function exploreInterleavings(makeWorld: () => World, options: ExploreOptions = {}): InterleavingReport {
  const { limit = 20_000, seed } = options;
  const moments = new Map<string, HoleMoment>();
  const play = (choose: Chooser): Choice[] => {
    const { choices, holes } = playInterleaving(makeWorld(), choose);
    for (const { key, moment } of holes) if (!moments.has(key)) moments.set(key, moment);
    return choices;
  };
  let interleavings = 0;
  if (seed !== undefined) {
    const random = randomFrom(seed);
    for (; interleavings < limit; interleavings++) play((options) => Math.floor(random() * options));
  } else {
    for (let prefix: number[] | undefined = []; prefix !== undefined; interleavings++) {
      if (interleavings === limit) {
        const advice = 'give fewer steps, a higher limit, or a seed to play a random choice of them';
        throw new MemorySlotsError('CAPACITY', `there are more than ${limit} interleavings: ${advice}`);
      }
      prefix = following(play(chooserOf(prefix)));
    }
  }
  return { interleavings, moments: [...moments.values()] };
}

/** Plays one interleaving, given by {@link HoleMoment.schedule}: the moments in it. */
export function replayInterleaving(makeWorld: () => World, schedule: readonly number[]): HoleMoment[] {
  return playInterleaving(makeWorld(), chooserOf(schedule)).holes.map(({ moment }) => moment);
}

/** A moment in words. */
export function describeMoment({ vcpu, step, gpa, exit, call, change }: HoleMoment): string {
  const fate = exit === 'mmio' ? 'exits with MMIO' : 'dies with an internal error';
  const verb = step.kind === 'check' ? 'read' : step.kind;
  return `after call ${call.number} (${describeCall(call, change)}) a ${verb} of vCPU ${vcpu} at ${hex(gpa)} ${fate}`;
}

/** Picks one of a number of options: 0 to go on with the commit, or a vCPU that may take a step. */
type Chooser = (options: number) => number;

interface Choice {
  readonly taken: number;
  readonly options: number;
}

function chooserOf(schedule: readonly number[]): Chooser {
  let next = 0;
  return () => schedule[next++] ?? 0;
}

/** The next schedule in the order of an odometer, or undefined after the last. */
function following(choices: readonly Choice[]): number[] | undefined {
  const last = choices.findLastIndex(({ taken, options }) => taken + 1 < options);
  if (last < 0) return undefined;
  return choices.slice(0, last + 1).map(({ taken }, index) => (index === last ? taken + 1 : taken));
}

/** An exit at an address that may turn out to be mapped before and after the commit. */
interface Suspect {
  readonly key: string;
  readonly write: boolean;
  readonly moment: HoleMoment;
}

function playInterleaving(world: World, choose: Chooser): { choices: Choice[]; holes: Suspect[] } {
  const { kernel } = world.backend;
  const vcpus = world.guests.map((steps, index) => new SteppedVcpu(world, index, steps));
  const choices: Choice[] = [];
  const suspects: Suspect[] = [];
  const before = kernel.layout();

  /** A point of the commit at which vCPUs may take steps. */
  const pause = (call: KernelCall | undefined, change: Change, phase: number): void => {
    const waiting = new Set<SteppedVcpu>();
    for (;;) {
      const ready = vcpus.filter((vcpu) => vcpu.ready && !waiting.has(vcpu));
      if (ready.length === 0) return;
      const taken = choose(ready.length + 1);
      choices.push({ taken, options: ready.length + 1 });
      if (taken === 0) return;
      const vcpu = ready[taken - 1]!;
      const { done } = vcpu;
      const schedule = choices.map((choice) => choice.taken);
      const moved = vcpu.step(({ write, ...hole }) => {
        if (call === undefined) return;
        const key = [call.number, phase, vcpu.index, done, hole.gpa].join();
        suspects.push({ key, write, moment: { ...hole, vcpu: vcpu.index, call, change, schedule } });
      });
      // It touched the slot that is on its way out: nothing new can happen to it at this point.
      if (!moved) waiting.add(vcpu);
    }
  };

  let phase = 0;
  const remove = kernel.addHooks({
    before: () => {
      phase = 0;
      return undefined;
    },
    published: (call, change) => pause(call, change, ++phase),
  });
  try {
    pause(undefined, 'nothing', 0);
    world.commit();
  } finally {
    remove();
  }
  for (const vcpu of vcpus) while (vcpu.unfinished) vcpu.step(() => {});
  const after = kernel.layout();
  const direct = (slots: readonly SlotState[], { moment: { gpa }, write }: Suspect): boolean =>
    slots.some((slot) => gpa >= slot.gpa && gpa < slot.gpa + slot.size && !(write && slot.flags & slotFlags.readonly));
  return { choices, holes: suspects.filter((suspect) => direct(before, suspect) && direct(after, suspect)) };
}

/** An exit for want of a slot. */
type Hole = Pick<HoleMoment, 'step' | 'gpa' | 'exit'> & { readonly write: boolean };

/** A vCPU that runs in this thread, a step at a time, each its own stay in KVM_RUN. */
class SteppedVcpu {
  readonly index: number;
  readonly #world: World;
  readonly #steps: readonly GuestStep[];
  readonly #runner: SimulatedRunner;
  readonly #rounds: number;
  #dead = false;

  constructor(world: World, index: number, steps: readonly GuestStep[]) {
    this.#world = world;
    this.index = index;
    this.#steps = steps;
    const line = world.arena.allocate(gateLineBytes);
    this.#rounds = (line >>> 2) + lineWords.guestRounds;
    this.#runner = simulatedRunner(world.arena, world.backend.createVcpu(index, line, { steps }), line);
  }

  /** Steps taken. */
  get done(): number {
    return this.#world.arena.words[this.#rounds]! * this.#steps.length + this.#runner.position;
  }

  get unfinished(): boolean {
    return !this.#dead && this.done < this.#steps.length;
  }

  /** Whether it may take a step now. */
  get ready(): boolean {
    return this.unfinished && (this.#world.mayRun?.(this.index) ?? true);
  }

  /** Takes a step, through all exits it causes. False if it couldn't, because its slot is being deleted or moved. */
  step(report: (hole: Hole) => void): boolean {
    const start = this.done;
    const step = this.#steps[start]!;
    for (;;) {
      this.#runner.clearKick();
      const exit = this.#runner.step();
      if (exit?.reason === 'internal-error') {
        this.#dead = true;
        report({ step, gpa: exit.gpa, exit: 'internal-error', write: false });
        return true;
      }
      if (exit?.reason !== 'mmio') return this.done !== start;
      report({ step, gpa: exit.gpa, exit: 'mmio', write: exit.write });
      // A kick makes the next stay complete the access and nothing else.
      this.#world.backend.kick(this.index);
      this.#runner.step();
      if (this.done !== start) return true;
    }
  }
}
