import type { Arena } from '../core/arena.js';
import { MemorySlotsError } from '../core/errors.js';
import { controlWords, Gate, gateBits, gateLineBytes, lineWords, vcpuStates } from './gate.js';

/** How an {@link Inhibitor} behaves. */
export interface InhibitorOptions {
  /** How long to wait, in milliseconds, for everybody to come out before giving up. Default 5,000. */
  readonly timeout?: number;
  /**
   * A vCPU that has been kept at its gate for longer than this, in milliseconds, is let in once before the next window.
   * Default 30; Infinity turns the rule off.
   */
  readonly fairnessAge?: number;
}

/** One vCPU, as its inhibitor sees it. */
interface Member {
  readonly line: number;
  readonly kick: () => void;
  entries: number;
  /** performance.now() when `entries` was last seen to change. */
  progressAt: number;
}

/** The longest the fairness rule holds up a window, in milliseconds, whatever the vCPU does. */
const fairnessPatience = 100;

/**
 * Keeps vCPUs and other callers of VM ioctls out while memory slots are updated, so that to every vCPU the update
 * happens at one instant. Stands for the holder of QEMU's big lock: only the thread that made it may inhibit, and its own
 * ioctls go through no gate.
 *
 * The order of steps, each of which matters (the kick protocol is described at {@link Gate.mayRun}):
 * shut every gate; kick whoever is inside; sleep until all are out; do the work; open every gate; bump the epoch; wake
 * all sleepers at once. Opening gate by gate would let the first to wake preempt the owner in the middle of it.
 */
export class Inhibitor {
  readonly common: Gate;
  readonly control: number;
  readonly #arena: Arena;
  readonly #words: Int32Array;
  readonly #commonLine: number;
  readonly #members = new Map<number, Member>();
  readonly #timeout: number;
  readonly #fairnessAge: number;
  #inside = false;

  constructor(arena: Arena, options: InhibitorOptions = {}) {
    this.#arena = arena;
    this.#words = arena.words;
    this.#timeout = options.timeout ?? 5_000;
    this.#fairnessAge = options.fairnessAge ?? 30;
    this.control = arena.allocate(gateLineBytes, gateLineBytes);
    this.#commonLine = arena.allocate(gateLineBytes, gateLineBytes);
    this.common = new Gate(arena, this.control, this.#commonLine);
  }

  /** Whether a window is open now. */
  get inhibiting(): boolean {
    return this.#inside;
  }

  /** Reserves a line for vCPU gates. The gate starts paused. Never freed: hand it out again after {@link remove}. */
  allocateLine(): number {
    return this.#arena.allocate(gateLineBytes, gateLineBytes);
  }

  /** Puts vCPU `index` under this inhibitor, with its gate paused. `kick` makes it leave KVM_RUN; any number of times. */
  add(index: number, line: number, kick: () => void): void {
    this.#assertOutside('add a vCPU');
    this.#words.fill(0, line >>> 2, (line + gateLineBytes) >>> 2);
    Atomics.store(this.#words, line >>> 2, gateBits.paused);
    this.#members.set(index, { line, kick, entries: 0, progressAt: performance.now() });
  }

  /** Takes vCPU `index`, whose thread has ended, out. */
  remove(index: number): void {
    this.#assertOutside('remove a vCPU');
    this.#members.delete(index);
  }

  /** Makes vCPU `index` stay out from now on. Returns at once: the vCPU has been kicked, not seen out. */
  pause(index: number): void {
    const member = this.#member(index);
    Atomics.or(this.#words, member.line >>> 2, gateBits.paused);
    member.kick();
  }

  resume(index: number): void {
    Atomics.and(this.#words, this.#member(index).line >>> 2, ~gateBits.paused);
    this.#wakeSleepers();
  }

  /** Ends vCPU `index`: its gate never opens again, and its thread comes out of its loop. */
  close(index: number): void {
    const member = this.#member(index);
    Atomics.or(this.#words, member.line >>> 2, gateBits.closed);
    member.kick();
    this.#wakeSleepers();
  }

  /** Frees the gate of a vCPU whose thread is gone, wherever it was: nobody is inside any more. */
  release(index: number): void {
    const { line } = this.#member(index);
    Atomics.store(this.#words, (line >>> 2) + lineWords.state, vcpuStates.dead);
    Atomics.store(this.#words, line >>> 2, gateBits.closed);
  }

  /** Makes a commit that is waiting for vCPUs give up. Any thread may do the same through shared memory. */
  static cancel(words: Int32Array, control: number): void {
    const base = control >>> 2;
    Atomics.store(words, base + controlWords.cancel, 1);
    Atomics.add(words, base + controlWords.events, 1);
    Atomics.notify(words, base + controlWords.events);
  }

  /**
   * Runs `work` while no vCPU is in KVM_RUN and nobody is inside the common gate. Synchronous: `work` must not wait for
   * a vCPU. Resolves to what `work` returned and the window's length in microseconds, from shutting the first gate to
   * having opened the last.
   *
   * Throws `STATE` when called from inside a window, `TIMEOUT` if somebody doesn't come out in time, and `CANCELLED`;
   * in all three cases `work` hasn't run and all gates are open.
   */
  window<Result>(work: () => Result): { result: Result; microseconds: number } {
    this.#assertOutside('inhibit');
    this.#letStarvingIn();
    const base = this.control >>> 2;
    Atomics.store(this.#words, base + controlWords.cancel, 0);
    const start = performance.now();
    let end = start;
    this.#inside = true;
    let result: Result;
    try {
      this.#shut();
      this.#waitForAllOut(start + this.#timeout);
      Atomics.add(this.#words, base + controlWords.windows, 1);
      result = work();
    } finally {
      for (const line of this.#lines()) Atomics.and(this.#words, line >>> 2, ~gateBits.shut);
      end = performance.now();
      this.#inside = false;
      this.#wakeSleepers();
    }
    return { result, microseconds: (end - start) * 1000 };
  }

  #shut(): void {
    for (const line of this.#lines()) Atomics.or(this.#words, line >>> 2, gateBits.shut);
  }

  *#lines(): Iterable<number> {
    yield this.#commonLine;
    for (const member of this.#members.values()) yield member.line;
  }

  #wakeSleepers(): void {
    const epoch = (this.control >>> 2) + controlWords.epoch;
    Atomics.add(this.#words, epoch, 1);
    Atomics.notify(this.#words, epoch);
  }

  #waitForAllOut(deadline: number): void {
    const base = this.control >>> 2;
    for (;;) {
      const events = Atomics.load(this.#words, base + controlWords.events);
      let inside = this.#count(this.#commonLine);
      // Kicked before every wait: one kick may have met a vCPU that was between two calls of KVM_RUN.
      for (const member of this.#members.values()) {
        if (this.#count(member.line) === 0) continue;
        inside++;
        member.kick();
      }
      if (inside === 0) return;
      if (Atomics.load(this.#words, base + controlWords.cancel)) {
        throw new MemorySlotsError('CANCELLED', 'the commit was cancelled while it waited; nothing was changed');
      }
      const left = deadline - performance.now();
      if (left <= 0) throw this.#timeoutError();
      Atomics.wait(this.#words, base + controlWords.events, events, left);
    }
  }

  #count(line: number): number {
    return Atomics.load(this.#words, line >>> 2) & gateBits.count;
  }

  #timeoutError(): MemorySlotsError {
    const stuck = [...this.#members].filter(([, member]) => this.#count(member.line) > 0);
    const names = stuck.map(
      ([index, { line }]) => `vCPU ${index} (thread ${this.#words[(line >>> 2) + lineWords.thread]})`,
    );
    if (this.#count(this.#commonLine) > 0) names.push('a caller of a VM ioctl');
    const message = `${names.join(', ')} didn't come out within ${this.#timeout} ms`;
    return new MemorySlotsError('TIMEOUT', `${message}; the gates are open again and nothing was changed`);
  }

  /** The age rule: windows back to back must not keep a vCPU out for ever. */
  #letStarvingIn(): void {
    const now = performance.now();
    for (const member of this.#members.values()) {
      const base = member.line >>> 2;
      const entries = Atomics.load(this.#words, base + lineWords.entries);
      if (entries !== member.entries || !this.#starves(base)) {
        member.entries = entries;
        member.progressAt = now;
      } else if (now - member.progressAt > this.#fairnessAge) {
        this.#awaitEntry(member, now + fairnessPatience);
      }
    }
  }

  /** Whether a vCPU is at its gate only because of windows. */
  #starves(base: number): boolean {
    return (
      Atomics.load(this.#words, base + lineWords.parked) === 1 &&
      (Atomics.load(this.#words, base) & (gateBits.paused | gateBits.closed)) === 0
    );
  }

  #awaitEntry(member: Member, deadline: number): void {
    const base = member.line >>> 2;
    const events = (this.control >>> 2) + controlWords.events;
    Atomics.or(this.#words, base, gateBits.awaited);
    for (;;) {
      const seen = Atomics.load(this.#words, events);
      const entries = Atomics.load(this.#words, base + lineWords.entries);
      const left = deadline - performance.now();
      if (entries !== member.entries || left <= 0) break;
      Atomics.wait(this.#words, events, seen, left);
    }
    Atomics.and(this.#words, base, ~gateBits.awaited);
    member.entries = Atomics.load(this.#words, base + lineWords.entries);
    member.progressAt = performance.now();
  }

  #member(index: number): Member {
    const member = this.#members.get(index);
    if (member === undefined) throw new MemorySlotsError('INVALID', `there is no vCPU ${index}`);
    return member;
  }

  #assertOutside(what: string): void {
    if (this.#inside) throw new MemorySlotsError('STATE', `can't ${what} from inside an inhibit window`);
  }
}
