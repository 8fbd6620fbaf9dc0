import type { Arena } from '../core/arena.js';
import { MemorySlotsError } from '../core/errors.js';
import { Fairness, type Progress } from './fairness.js';
import { controlWords, Gate, gateBits, gateLineBytes } from './gate.js';

/** How an {@link Inhibitor} behaves. */
export interface InhibitorOptions {
  /** How long to wait, in milliseconds, for everybody to come out before giving up. Default 5,000. */
  readonly timeout?: number;
  /**
   * A vCPU that has been kept at its gate for longer than this, in milliseconds, is let in once before the next window.
   * Default 30; 0 waits for everybody before every window; Infinity turns the rule off.
   */
  readonly fairnessAge?: number;
  /**
   * Processors of this host. If fewer vCPUs are inside, the owner looks for them to come out for a moment before it
   * sleeps. Default 1: it sleeps at once. A Machine says what the host has.
   */
  readonly processors?: number;
}

/** How to reach one vCPU. */
export interface Kickable {
  /** Makes it leave KVM_RUN, or not enter it; any number of times. */
  readonly kick: () => void;
  /** What its thread is at, for an error: as `thread 1234, state S (sleeping), waiting in futex_wait`. */
  readonly describe?: () => string;
  /** Whether its thread exists, as far as one can tell. */
  readonly isAlive?: () => boolean;
}

/** One vCPU, as its inhibitor sees it. */
interface Member extends Kickable {
  readonly progress: Progress;
}

/** What another thread needs to cancel a commit that waits. Structured-cloneable. */
export interface CommitCanceller {
  readonly memory: WebAssembly.Memory;
  readonly control: number;
}

/**
 * Makes the commit that is now waiting for vCPUs to come out give up: its caller gets a `CANCELLED` error, and nothing
 * has changed. Any thread but the owner, whose event loop stands still in a commit. False if no commit is waiting. Even
 * when it is true, the commit may have gone ahead: its caller knows.
 */
export function cancelCommit({ memory, control }: CommitCanceller): boolean {
  const words = new Int32Array(memory.buffer);
  const base = control >>> 2;
  const attempt = Atomics.load(words, base + controlWords.attempt);
  if (attempt === 0) return false;
  Atomics.store(words, base + controlWords.cancel, attempt);
  Atomics.add(words, base + controlWords.events, 1);
  Atomics.notify(words, base + controlWords.events);
  return true;
}

/** How often, in milliseconds, a wait looks whether a vCPU's thread is still there. */
const aliveInterval = 100;
/** How long, in milliseconds, the owner looks before it sleeps: as long as sleeping and waking would take. */
const lookTime = 0.05;

/**
 * Keeps vCPUs and other callers of VM ioctls out while memory slots are updated, so that to every vCPU the update
 * happens at one instant. Stands for the holder of QEMU's big lock: only the thread that made it may inhibit, and its own
 * ioctls go through no gate. Proved in test/model/inhibitor.pml, which names the functions here.
 *
 * The order of steps, each of which matters (the kick protocol is described at {@link Gate.startRun}):
 * shut every gate; kick whoever is inside, once; sleep until all are out; do the work; open every gate; bump the epoch;
 * wake all sleepers at once. Opening gate by gate would let the first to wake preempt the owner in the middle of it.
 */
export class Inhibitor {
  readonly common: Gate;
  readonly control: number;
  readonly commonLine: number;
  readonly #arena: Arena;
  readonly #words: Int32Array;
  readonly #members = new Map<number, Member>();
  readonly #timeout: number;
  readonly #fairness: Fairness;
  readonly #processors: number;
  readonly #onWindow: ((microseconds: number, error: unknown) => void) | undefined;
  #inside = false;
  #attempts = 0;

  /**
   * Throws `STATE` on a thread other than the one that created the arena, and `INVALID` for options out of range.
   * `onWindow` is told of each time that gates were shut, once all are open again: for how long, and what was thrown
   * meanwhile, if anything. It must not throw.
   */
  constructor(arena: Arena, options: InhibitorOptions = {}, onWindow?: (microseconds: number, error: unknown) => void) {
    if (arena.isAttached) {
      throw new MemorySlotsError('STATE', "only the machine's owner thread may inhibit: this thread attached to it");
    }
    this.#arena = arena;
    this.#words = arena.words;
    this.#onWindow = onWindow;
    this.#timeout = mustBeMilliseconds('the inhibit timeout', options.timeout ?? 5_000);
    this.control = arena.allocate(gateLineBytes, gateLineBytes);
    this.commonLine = arena.allocate(gateLineBytes, gateLineBytes);
    this.common = new Gate(arena, this.control, this.commonLine);
    const age = mustBeMilliseconds('the fairness age', options.fairnessAge ?? 30);
    this.#fairness = new Fairness(this.#words, this.control, age);
    this.#processors = options.processors ?? 1;
  }

  /** Whether a window is open now. */
  get inhibiting(): boolean {
    return this.#inside;
  }

  /** Reserves a line for vCPU gates. The gate starts paused. Never freed: hand it out again after {@link remove}. */
  allocateLine(): number {
    return this.#arena.allocate(gateLineBytes, gateLineBytes);
  }

  /** Puts vCPU `index` under this inhibitor, with its gate paused. */
  add(index: number, line: number, vcpu: Kickable): void {
    this.#assertOutside('add a vCPU');
    this.#words.fill(0, line >>> 2, (line + gateLineBytes) >>> 2);
    Atomics.store(this.#words, line >>> 2, gateBits.paused);
    this.#members.set(index, { ...vcpu, progress: { line, at: performance.now(), seen: 0 } });
  }

  /** Takes vCPU `index`, whose thread has ended, out. */
  remove(index: number): void {
    this.#assertOutside('remove a vCPU');
    this.#members.delete(index);
  }

  /** Makes vCPU `index` stay out from now on. Returns at once: the vCPU has been kicked, not seen out. */
  pause(index: number): void {
    const member = this.#member(index);
    Atomics.or(this.#words, member.progress.line >>> 2, gateBits.paused);
    member.kick();
  }

  resume(index: number): void {
    Atomics.and(this.#words, this.#member(index).progress.line >>> 2, ~gateBits.paused);
    this.#wakeSleepers();
  }

  /** Ends vCPU `index`: its gate never opens again, and its thread comes out of its loop. */
  close(index: number): void {
    const member = this.#member(index);
    Atomics.or(this.#words, member.progress.line >>> 2, gateBits.closed);
    member.kick();
    this.#wakeSleepers();
  }

  /** Frees the gate of a vCPU whose thread is gone, wherever it was: nobody is inside any more. */
  release(index: number): void {
    this.#release(this.#member(index));
  }

  /**
   * Runs `work` while no vCPU is in KVM_RUN and nobody is inside the common gate. Synchronous: `work` must not wait for
   * a vCPU. Gives what `work` returned and the window's length in microseconds, from shutting the first gate to
   * having opened the last.
   *
   * Throws `STATE` when called from inside a window, `TIMEOUT` if somebody doesn't come out in time, and `CANCELLED`;
   * in all three cases `work` hasn't run and all gates are open.
   */
  window<Result>(work: () => Result): { result: Result; microseconds: number } {
    this.#assertOutside('inhibit');
    const attempt = (this.control >>> 2) + controlWords.attempt;
    const deadline = performance.now() + this.#timeout;
    this.#inside = true;
    this.#attempts = (this.#attempts + 1) & 0x7fffffff || 1;
    Atomics.store(this.#words, attempt, this.#attempts);
    let start: number | undefined;
    let microseconds = 0;
    let failure: unknown;
    let result: Result;
    try {
      this.#fairness.letStarvingIn(this.#progress(), deadline, () => this.#isCancelled());
      start = performance.now();
      this.#shut();
      this.#waitForAllOut(this.#kickInside(), deadline);
      Atomics.store(this.#words, attempt, 0);
      result = work();
    } catch (error) {
      failure = error;
      throw error;
    } finally {
      for (const line of this.#lines()) Atomics.and(this.#words, line >>> 2, ~gateBits.shut);
      if (start !== undefined) microseconds = (performance.now() - start) * 1000;
      Atomics.store(this.#words, attempt, 0);
      this.#inside = false;
      this.#wakeSleepers();
      if (start !== undefined) this.#onWindow?.(microseconds, failure);
    }
    return { result, microseconds };
  }

  #shut(): void {
    for (const line of this.#lines()) Atomics.or(this.#words, line >>> 2, gateBits.shut);
  }

  *#lines(): Iterable<number> {
    yield this.commonLine;
    for (const { line } of this.#progress()) yield line;
  }

  *#progress(): Iterable<Progress> {
    for (const { progress } of this.#members.values()) yield progress;
  }

  #wakeSleepers(): void {
    const epoch = (this.control >>> 2) + controlWords.epoch;
    Atomics.add(this.#words, epoch, 1);
    Atomics.notify(this.#words, epoch);
  }

  /** Nobody can come in any more, so one kick each is enough. How many there were. */
  #kickInside(): number {
    let kicked = 0;
    for (const member of this.#members.values()) {
      if (this.#count(member.progress.line) === 0) continue;
      member.kick();
      kicked++;
    }
    return kicked;
  }

  #isAnyoneInside(): boolean {
    if (this.#count(this.commonLine) > 0) return true;
    for (const { progress } of this.#members.values()) if (this.#count(progress.line) > 0) return true;
    return false;
  }

  #waitForAllOut(kicked: number, deadline: number): void {
    if (kicked > 0 && kicked < this.#processors) {
      // They run, and come out sooner than this thread would have gone to sleep and been woken.
      const until = performance.now() + lookTime;
      while (this.#isAnyoneInside() && performance.now() < until);
    }
    const events = (this.control >>> 2) + controlWords.events;
    for (;;) {
      const seen = Atomics.load(this.#words, events);
      if (this.#isCancelled()) {
        throw new MemorySlotsError('CANCELLED', 'the commit was cancelled while it waited; nothing was changed');
      }
      if (!this.#isAnyoneInside()) return;
      const left = deadline - performance.now();
      if (left <= 0) throw this.#timeoutError();
      if (Atomics.wait(this.#words, events, seen, Math.min(left, aliveInterval)) === 'timed-out') this.#releaseDead();
    }
  }

  /** A thread that was destroyed from outside can't say so, and its owner hears of it only when its event loop turns. */
  #releaseDead(): void {
    for (const member of this.#members.values()) {
      if (this.#count(member.progress.line) > 0 && member.isAlive?.() === false) this.#release(member);
    }
  }

  #release(member: Member): void {
    new Gate(this.#arena, this.control, member.progress.line).release();
  }

  #count(line: number): number {
    return Atomics.load(this.#words, line >>> 2) & gateBits.count;
  }

  #isCancelled(): boolean {
    return Atomics.load(this.#words, (this.control >>> 2) + controlWords.cancel) === this.#attempts;
  }

  #timeoutError(): MemorySlotsError {
    const names = [...this.#members]
      .filter(([, { progress }]) => this.#count(progress.line) > 0)
      .map(([index, { describe }]) => `vCPU ${index}${describe === undefined ? '' : ` (${describe()})`}`);
    const callers = this.#count(this.commonLine);
    if (callers > 0) names.push(`${callers} ${callers === 1 ? 'caller' : 'callers'} of VM ioctls`);
    const message = `${names.join(', ')} didn't come out within ${this.#timeout} ms`;
    return new MemorySlotsError('TIMEOUT', `${message}; the gates are open again and nothing was changed`);
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

function mustBeMilliseconds(what: string, value: number): number {
  if (value >= 0) return value;
  throw new MemorySlotsError('INVALID', `${what} must be 0 or more milliseconds, not ${value}`);
}
