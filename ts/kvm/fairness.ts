import { controlWords, gateBits, lineWords } from './gate.js';

/** The longest the fairness rule holds up a window, in milliseconds, whatever the vCPUs do. */
const patience = 100;
/**
 * How long, in milliseconds, the gates stay open after the last starving vCPU got in. A vCPU that tells the owner may
 * be preempted by it on the spot: shut at once, the gate would send it out again before its guest did anything.
 */
const slice = 0.5;

/** How far one vCPU has come. */
export interface Progress {
  /** Arena offset of the vCPU's line. */
  readonly line: number;
  entries: number;
  /** performance.now() when the vCPU was last seen to run, or not to be kept from it. */
  at: number;
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
    const starving: Progress[] = [];
    for (const member of members) {
      if (!this.#keptOut(member)) this.#note(member, now);
      else if (now - member.at >= this.#age) starving.push(member);
    }
    if (starving.length === 0) return;
    for (const { line } of starving) Atomics.or(this.#words, line >>> 2, gateBits.awaited);
    const until = Math.min(deadline, now + patience);
    this.#sleep(until, () => cancelled() || !starving.some((member) => this.#keptOut(member)));
    for (const { line } of starving) Atomics.and(this.#words, line >>> 2, ~gateBits.awaited);
    this.#sleep(Math.min(deadline, performance.now() + slice), cancelled);
    // Who still hasn't got in stays as old as it is, and is waited for again before the next window.
    for (const member of starving) if (!this.#keptOut(member)) this.#note(member, performance.now());
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

  /** Whether the vCPU has not run since it was last looked at, only because of windows. */
  #keptOut({ line, entries }: Progress): boolean {
    const base = line >>> 2;
    return (
      Atomics.load(this.#words, base + lineWords.entries) === entries &&
      Atomics.load(this.#words, base + lineWords.keptOut) === 1 &&
      (Atomics.load(this.#words, base) & (gateBits.paused | gateBits.closed)) === 0
    );
  }

  #note(member: Progress, now: number): void {
    member.entries = Atomics.load(this.#words, (member.line >>> 2) + lineWords.entries);
    member.at = now;
  }
}
