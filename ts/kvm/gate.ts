import { Arena, type ArenaHandle } from '../core/arena.js';
import type { Core } from '../core/core.js';

/**
 * Gates keep ioctls and memory-slot updates apart. Each vCPU has one, on a cache line pair of its own; one more is for
 * every other caller of VM ioctls. A gate is a word that counts who is inside, with bits for every reason not to enter:
 *
 *     bit 31 shut     an inhibit window is open, or about to be: nobody enters, whoever is inside is to leave
 *     bit 30 closed   this vCPU is to end, for good
 *     bit 29 paused   this vCPU is to stay out until it is resumed
 *     bit 28 awaited  the owner waits for this vCPU to get into KVM_RUN (see Fairness): doing so tells it
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

/** Any reason for a vCPU not to be in KVM_RUN. The common gate only ever has the first. */
const keepOut = gateBits.shut | gateBits.closed | gateBits.paused;

/** Bytes of a gate's line: two cache lines, since processors fetch them in pairs. */
export const gateLineBytes = 128;

/** The words of a gate's line, as indices from its start. All are unsigned 32-bit counters unless said otherwise. */
export const lineWords = {
  gate: 0,
  /** Times the vCPU went into KVM_RUN. */
  entries: 1,
  /** {@link VcpuState}. */
  state: 2,
  /** Kernel thread id of the vCPU's thread, 0 before it runs. */
  thread: 3,
  exits: 4,
  mmioExits: 5,
  spuriousExits: 6,
  internalErrors: 7,
  /** 1 from when the vCPU found its gate shut or paused until its guest has made some progress. */
  keptOut: 8,
  /** For {@link Mailbox}: 1 while the vCPU waits for the owner to answer an MMIO exit. */
  mailbox: 9,
  /** Counters that a simulated guest keeps, see simulated-vcpu.ts. */
  guestReads: 10,
  guestWrongValues: 11,
  guestRounds: 12,
  /** Set to stop a simulated vCPU, as kvm_run's immediate_exit does a real one. */
  immediateExit: 13,
  /** Times that the guest got on after the vCPU had been kept out. */
  progress: 14,
} as const;

/** The words of the control line, which all gates share. */
export const controlWords = {
  epoch: 0,
  events: 1,
  /** Number of the attempt at a window that is to be cancelled; see cancelCommit. */
  cancel: 2,
  /** Number of the attempt under way, from 1; 0 when there is none, or its work has begun. */
  attempt: 3,
} as const;

/** What another thread needs to go through a gate. Structured-cloneable, for one thread. */
export interface GateHandle {
  readonly arena: ArenaHandle;
  readonly control: number;
  readonly line: number;
}

/** A gate as seen by those who go through it: a vCPU's thread, or any thread for the common gate. */
export class Gate {
  readonly #core: Core;
  readonly #words: Int32Array;
  readonly #line: number;
  readonly #gate: number;
  readonly #control: number;
  /** Whether this thread has set the word of the same name. */
  #keptOut = false;

  /** `control` and `line` are arena offsets in bytes of the control line and of the gate's own line. */
  constructor(arena: Arena, control: number, line: number) {
    // Atomics are calls in V8; in WASM they are instructions.
    this.#core = arena.wasm;
    this.#words = arena.words;
    this.#line = line;
    this.#gate = line >>> 2;
    this.#control = control >>> 2;
  }

  /** The gate of `handle`, in another thread. */
  static attach(handle: GateHandle): Gate {
    return new Gate(Arena.attach(handle.arena), handle.control, handle.line);
  }

  /**
   * Goes in, sleeping while the gate is shut or paused. False once the gate is closed: then nobody went in. Must be
   * followed by {@link leave}, also when what is done inside throws.
   */
  enter(): boolean {
    while (this.#core.gate_enter(this.#line, keepOut) === 0) {
      const words = this.#words;
      // Before the gate: whoever opens it afterwards bumps the epoch, and the wait below returns at once.
      const epoch = Atomics.load(words, this.#control + controlWords.epoch);
      const word = Atomics.load(words, this.#gate);
      if (word & gateBits.closed) return false;
      if (word & keepOut) {
        this.#keptOut = true;
        Atomics.store(words, this.#gate + lineWords.keptOut, 1);
        Atomics.wait(words, this.#control + controlWords.epoch, epoch);
      }
    }
    return true;
  }

  /**
   * Whether a vCPU that is inside may call KVM_RUN, which it then must: it is counted. To be asked *after*
   * immediate_exit was cleared with a sequentially consistent store: whoever shuts, closes or pauses sets the gate's
   * bit first and immediate_exit second, so a kick that the clearing wiped out is found here.
   */
  startRun(): boolean {
    const word = Atomics.load(this.#words, this.#gate);
    if (word & keepOut) return false;
    Atomics.add(this.#words, this.#gate + lineWords.entries, 1);
    if (word & gateBits.awaited) this.#tellOwner();
    return true;
  }

  /** Whether the vCPU was kept out, and has made no progress since. */
  get keptOut(): boolean {
    return this.#keptOut;
  }

  /** Says that the guest of a vCPU that was kept out has made progress. */
  progressed(): void {
    this.#keptOut = false;
    // A vCPU that finds its gate shut again at once is kept out again before anybody could have seen that it wasn't.
    Atomics.add(this.#words, this.#gate + lineWords.progress, 1);
    Atomics.store(this.#words, this.#gate + lineWords.keptOut, 0);
  }

  /** Comes out, and tells the owner if it is waiting for that. */
  leave(): void {
    if (this.#core.gate_leave(this.#line) & gateBits.shut) this.#tellOwner();
  }

  /**
   * Shuts the gate of a vCPU for good on behalf of a thread that ends, or has ended, in the middle of anything: nobody
   * is inside any more. Again is harmless.
   */
  release(): void {
    Atomics.store(this.#words, this.#gate + lineWords.thread, 0);
    Atomics.store(this.#words, this.#gate + lineWords.state, vcpuStates.dead);
    Atomics.store(this.#words, this.#gate, gateBits.closed);
    this.#tellOwner();
  }

  #tellOwner(): void {
    const events = this.#control + controlWords.events;
    Atomics.add(this.#words, events, 1);
    Atomics.notify(this.#words, events);
  }
}

/** Where a vCPU stands, in its line's `state` word. Written by its own thread, except `dead` after a crash. */
export const vcpuStates = { starting: 0, ready: 1, running: 2, ended: 3, dead: 4 } as const;
