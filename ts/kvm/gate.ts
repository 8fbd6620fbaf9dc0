import type { Arena } from '../core/arena.js';

/**
 * Gates keep ioctls and memory-slot updates apart. Each vCPU has one, on a cache line pair of its own; one more is for
 * every other caller of VM ioctls. A gate is a word that counts who is inside, with bits for every reason not to enter:
 *
 *     bit 31 shut     an inhibit window is open, or about to be: nobody enters, whoever is inside is to leave
 *     bit 30 closed   this vCPU is to end, for good
 *     bit 29 paused   this vCPU is to stay out until it is resumed
 *     bit 28 awaited  the owner waits for somebody to get in (fairness): entering tells it
 *     bits 0–15       how many are inside: 0 or 1 for a vCPU
 *
 * Two more words make the waiting safe against lost wake-ups, because every wait names the value it last saw:
 * `epoch`, bumped whenever gates open, on which everybody sleeps who may not enter; and `events`, bumped whenever the
 * owner may have something to look at, on which only the owner sleeps.
 */
export const gateBits = {
  shut: 1 << 31,
  closed: 1 << 30,
  paused: 1 << 29,
  awaited: 1 << 28,
  count: 0xffff,
} as const;

/** Any reason for a vCPU not to be in KVM_RUN. */
const keepOut = gateBits.shut | gateBits.closed | gateBits.paused;

/** Bytes of a gate's line: two cache lines, since processors fetch them in pairs. */
export const gateLineBytes = 128;

/** The words of a gate's line, as indices from its start. All are unsigned 32-bit counters unless said otherwise. */
export const lineWords = {
  gate: 0,
  /** Times somebody went in: what counts as progress. */
  entries: 1,
  /** {@link VcpuState}. */
  state: 2,
  /** Kernel thread id of the vCPU's thread, 0 before it runs. */
  thread: 3,
  exits: 4,
  mmioExits: 5,
  spuriousExits: 6,
  internalErrors: 7,
  /** 1 while the vCPU sleeps at its gate. */
  parked: 8,
  /** For {@link Mailbox}: 1 while the vCPU waits for the owner to answer an MMIO exit. */
  mailbox: 9,
  /** Counters that a simulated guest keeps, see simulated-vcpu.ts. */
  guestReads: 10,
  guestWrongValues: 11,
  guestRounds: 12,
  /** Set to stop a simulated vCPU, as kvm_run's immediate_exit does a real one. */
  immediateExit: 13,
} as const;

/** The words of the control line, which all gates share. */
export const controlWords = { epoch: 0, events: 1, cancel: 2, windows: 3 } as const;

/** A gate as seen by those who go through it: a vCPU's thread, or any thread for the common gate. */
export class Gate {
  readonly #words: Int32Array;
  readonly #gate: number;
  readonly #control: number;

  /** `control` and `line` are arena offsets in bytes of the control line and of the gate's own line. */
  constructor(arena: Arena, control: number, line: number) {
    this.#words = arena.words;
    this.#gate = line >>> 2;
    this.#control = control >>> 2;
  }

  /**
   * Goes in, sleeping while the gate is shut or paused. False once the gate is closed: then nobody went in. Must be
   * followed by {@link leave}, also when what is done inside throws.
   */
  enter(): boolean {
    const words = this.#words;
    for (;;) {
      const epoch = Atomics.load(words, this.#control + controlWords.epoch);
      const word = Atomics.load(words, this.#gate);
      if (word & gateBits.closed) return false;
      if (word & keepOut) {
        Atomics.store(words, this.#gate + lineWords.parked, 1);
        Atomics.wait(words, this.#control + controlWords.epoch, epoch);
        Atomics.store(words, this.#gate + lineWords.parked, 0);
        continue;
      }
      if (Atomics.compareExchange(words, this.#gate, word, word + 1) !== word) continue;
      Atomics.add(words, this.#gate + lineWords.entries, 1);
      if (word & gateBits.awaited) this.#tellOwner();
      return true;
    }
  }

  /**
   * Whether a vCPU that is inside may call KVM_RUN. To be asked *after* immediate_exit was cleared with a sequentially
   * consistent store: whoever shuts, closes or pauses sets the gate's bit first and immediate_exit second, so a kick
   * that the clearing wiped out is found here.
   */
  mayRun(): boolean {
    return (Atomics.load(this.#words, this.#gate) & keepOut) === 0;
  }

  /** Comes out, and tells the owner if it is waiting for that. */
  leave(): void {
    if (Atomics.sub(this.#words, this.#gate, 1) & gateBits.shut) this.#tellOwner();
  }

  #tellOwner(): void {
    const events = this.#control + controlWords.events;
    Atomics.add(this.#words, events, 1);
    Atomics.notify(this.#words, events);
  }
}

/** Where a vCPU stands, in its line's `state` word. Written by its own thread, except `dead` after a crash. */
export const vcpuStates = { starting: 0, ready: 1, running: 2, ended: 3, dead: 4 } as const;
