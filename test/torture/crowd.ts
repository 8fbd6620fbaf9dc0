import type { Arena } from '../../ts/core/arena.js';
import { gateBits } from '../../ts/kvm/gate.js';
import type { Machine } from '../../ts/kvm/machine.js';
import type { Vcpu } from '../../ts/kvm/vcpu-owner.js';
import {
  placeWatchGuest,
  readWatchCounters,
  type WatchCounters,
  watchBlockBytes,
} from '../../ts/replay/watch-guest.js';
import type { Field, Random } from './field.js';
import { processorTime } from './processor-time.js';
import type { Tally } from './tally.js';

/** How long a single kick may take to bring a vCPU out, in milliseconds: processors are shared. */
const kickPatience = 5_000;
/** How long every guest has to get through its words once, in milliseconds. */
const roundPatience = 30_000;

interface Seat {
  readonly index: number;
  vcpu: Vcpu;
  paused: boolean;
  /** Why its guest stopped by itself, if it did. */
  stopped: string | undefined;
}

/**
 * Guests that watch a field's words, half of them emulated and half native, each in a seat of its own: now and then one
 * ends and another takes its seat. Owner thread only.
 */
export class Crowd {
  readonly #machine: Machine;
  readonly #arena: Arena;
  readonly #field: Field;
  readonly #random: Random;
  readonly #tally: Tally;
  readonly #seats: Seat[] = [];

  private constructor(machine: Machine, arena: Arena, field: Field, random: Random, tally: Tally) {
    this.#machine = machine;
    this.#arena = arena;
    this.#field = field;
    this.#random = random;
    this.#tally = tally;
  }

  /** Fills as many seats as the tally has and lets all guests run. */
  static async fill(machine: Machine, arena: Arena, field: Field, random: Random, tally: Tally): Promise<Crowd> {
    const crowd = new Crowd(machine, arena, field, random, tally);
    for (const index of tally.entries.keys()) crowd.#seats.push(await crowd.#take(index));
    return crowd;
  }

  async #take(index: number): Promise<Seat> {
    const offset = index * watchBlockBytes;
    const { code, codeAddress, watched } = this.#field;
    const mode = index % 2 === 0 ? 'protected' : 'user';
    const gpa = codeAddress + offset;
    const { start, steps } = placeWatchGuest(code, offset, gpa, watched, mode);
    // A simulated guest fetches its code and writes to its block only if it says so.
    const own = [{ kind: 'fetch', gpa } as const, { kind: 'write', gpa, size: 4, value: 1 } as const];
    const vcpu = await this.#machine.addVcpu({ start: start!, steps: [...steps!, ...own] });
    const seat: Seat = { index, vcpu, paused: false, stopped: undefined };
    void vcpu.stopped.then((stop) => {
      if (stop === undefined) return;
      const { reason, gpa, detail } = stop;
      seat.stopped = `the guest in seat ${index} stopped: ${reason} ${gpa} ${detail} ${vcpu.error?.message ?? ''}`;
    });
    vcpu.resume();
    this.#tally.counts.vcpusAdded++;
    return seat;
  }

  /** Why guests stopped that were to run for ever. */
  get stopped(): string[] {
    return this.#seats.flatMap(({ stopped }) => stopped ?? []);
  }

  #read({ index, vcpu }: Seat): WatchCounters {
    return readWatchCounters(this.#machine.backend === 'simulated', vcpu, this.#field.code, index * watchBlockBytes);
  }

  /** Whether a guest that is here now has seen something wrong. */
  harm(): boolean {
    return this.#seats.some((seat) => {
      const { spuriousExits, internalErrors } = seat.vcpu.counters;
      return this.#read(seat).wrongValues + spuriousExits + internalErrors > 0;
    });
  }

  /** Has a random guest end and another take its seat. */
  async replace(): Promise<void> {
    const index = Math.floor(this.#random() * this.#seats.length);
    await this.#leave(this.#seats[index]!);
    this.#seats[index] = await this.#take(index);
  }

  async #leave(seat: Seat): Promise<void> {
    const { vcpu } = seat;
    const time = processorTime(vcpu.thread);
    await vcpu.end();
    const { reads, wrongValues } = this.#read(seat);
    const { entries, spuriousExits, internalErrors } = vcpu.counters;
    const { counts, problems } = this.#tally;
    for (const [name, count] of Object.entries({ reads, wrongValues, spuriousExits, internalErrors })) {
      counts[name as 'reads'] += count;
    }
    counts.vcpusRemoved++;
    this.#tally.entries[seat.index]! += entries;
    this.#tally.processorMillis += time;
    if (wrongValues + spuriousExits + internalErrors === 0) return;
    const seen = `${wrongValues} wrong values, ${spuriousExits} spurious exits, ${internalErrors} internal errors`;
    problems.push(`the guest in seat ${seat.index} met with ${seen}`);
  }

  /** Pauses a random guest, or lets the one that is paused go on. */
  pauseOrResume(): void {
    const paused = this.#seats.find((seat) => seat.paused);
    const seat = paused ?? this.#seats[Math.floor(this.#random() * this.#seats.length)]!;
    seat.paused = paused === undefined;
    if (seat.paused) seat.vcpu.pause();
    else seat.vcpu.resume();
    this.#tally.counts.pauses++;
  }

  /**
   * Lets a random guest go and stops it at once, or a moment later, and sees that it comes out though nobody kicks it
   * again: no commit may be made meanwhile, and nobody else may kick.
   */
  watchKick(): void {
    const { vcpu, paused } = this.#seats[Math.floor(this.#random() * this.#seats.length)]!;
    if (vcpu.hasEnded) return;
    vcpu.resume();
    const start = performance.now();
    const delay = this.#random() * 0.2;
    while (performance.now() - start < delay);
    const wasInside = this.#isInside(vcpu);
    vcpu.pause();
    const moment = new Int32Array(new SharedArrayBuffer(4));
    const deadline = performance.now() + kickPatience;
    while (this.#isInside(vcpu) && performance.now() < deadline) Atomics.wait(moment, 0, 0, 0.05);
    const { counts, problems } = this.#tally;
    if (wasInside) counts.watchedKicks++;
    if (this.#isInside(vcpu)) {
      counts.lostKicks++;
      problems.push(`a kick of vCPU ${vcpu.index} was lost: it stayed in KVM_RUN for ${kickPatience} ms`);
    }
    if (!paused) vcpu.resume();
  }

  #isInside({ line }: Vcpu): boolean {
    return (Atomics.load(this.#arena.words, line >>> 2) & gateBits.count) > 0;
  }

  /** Lets all guests get through their words, with nothing going on: whoever can't is stuck. Their number. */
  async settle(): Promise<number> {
    for (const seat of this.#seats) {
      seat.vcpu.resume();
      seat.paused = false;
    }
    // The round under way may have begun before the last change.
    const goals = this.#seats.map((seat) => this.#read(seat).rounds + 2);
    const deadline = performance.now() + roundPatience;
    const stuck = () => this.#seats.filter((seat) => this.#read(seat).rounds < goals[seat.index]!);
    while (stuck().length > 0 && this.stopped.length === 0 && performance.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    return stuck().length;
  }

  /** Ends all guests. */
  async end(): Promise<void> {
    await Promise.all(this.#seats.map((seat) => this.#leave(seat)));
  }
}
