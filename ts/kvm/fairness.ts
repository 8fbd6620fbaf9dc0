import { controlWords, gateBits, lineWords } from './gate.js';

/** The longest the fairness rule holds up a window, in milliseconds, whatever the vCPUs do. */
const patience = 100;
/**
 * How long, in milliseconds, the gates stay open after the last starving vCPU got in. A vCPU that tells the owner may
 * be preempted by it on the spot: shut at once, the gate would send it out again before its guest did anything. Twice
 * what VcpuLoop takes for progress.
 */
const slice = 0.5;

/** How far one vCPU has come. */
export interface Progress {
  /** Arena offset of the vCPU's line. */
  readonly line: number;
  /** performance.now() when the vCPU was last seen to have made progress, or not to be kept from it by windows. */
  at: number;
  /** How often it had made progress then. */
  seen: number;
}

/**
 * The age rule: windows back to back must not keep a vCPU out for ever. Whoever has been kept at its gate for longer
 * than a set age is let into KVM_RUN before the next window. Waiting before every window for everybody who is kept out
 * (an age of 0) costs a round of the scheduler per commit once vCPUs outnumber processors.
 *
 * Owner thread only.
 */
export class Fairness {
  readonly #words: Int32Array;
  readonly #events: number;
  readonly #age: number;

  /** `control` is the arena offset of the control line; `age` in milliseconds, Infinity for no rule. */
  constructor(words: Int32Array, control: number, age: number) {
    this.#words = words;
    this.#events = (control >>> 2) + controlWords.events;
    this.#age = age;
  }

  /** Waits, gates open, for those who starve; not beyond `deadline`, nor once `cancelled`. */
  letStarvingIn(members: Iterable<Progress>, deadline: number, cancelled: () => boolean): void {
    const now = performance.now();
    const starving: { readonly line: number; readonly entries: number }[] = [];
    for (const member of members) {
      const { line } = member;
      const progress = Atomics.load(this.#words, (line >>> 2) + lineWords.progress);
      if (!this.#isKeptOut(line) || progress !== member.seen) {
        member.at = now;
        member.seen = progress;
      } else if (now - member.at >= this.#age) {
        starving.push({ line, entries: this.#entries(line) });
      }
    }
    if (starving.length === 0) return;
    for (const { line } of starving) Atomics.or(this.#words, line >>> 2, gateBits.awaited);
    const until = Math.min(deadline, now + patience);
    // Inside counts as in: such a vCPU may have looked for the awaited bit before it was set.
    const isOut = ({ line, entries }: (typeof starving)[number]) =>
      this.#isKeptOut(line) && !this.#isInside(line) && this.#entries(line) === entries;
    this.#sleep(until, () => cancelled() || !starving.some(isOut));
    for (const { line } of starving) Atomics.and(this.#words, line >>> 2, ~gateBits.awaited);
    // Whoever makes no progress in this time either stays as old as it is, and is waited for again.
    this.#sleep(Math.min(deadline, performance.now() + slice), cancelled);
  }

  /** Sleeps until `done`, which is asked whenever the owner is told something, or until `until`. */
  #sleep(until: number, done: () => boolean): void {
    for (;;) {
      const seen = Atomics.load(this.#words, this.#events);
      const left = until - performance.now();
      if (left <= 0 || done()) return;
      Atomics.wait(this.#words, this.#events, seen, left);
    }
  }

  /** Whether only windows keep the vCPU from making progress. */
  #isKeptOut(line: number): boolean {
    const base = line >>> 2;
    return (
      Atomics.load(this.#words, base + lineWords.keptOut) === 1 &&
      (Atomics.load(this.#words, base) & (gateBits.paused | gateBits.closed)) === 0
    );
  }

  #isInside(line: number): boolean {
    return (Atomics.load(this.#words, line >>> 2) & gateBits.count) > 0;
  }

  #entries(line: number): number {
    return Atomics.load(this.#words, (line >>> 2) + lineWords.entries);
  }
}
