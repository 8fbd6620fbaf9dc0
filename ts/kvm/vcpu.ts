import type { Arena, MemoryRange } from '../core/arena.js';
import { SectionMapReader } from '../memory/section-map.js';
import type { Exit, VcpuRunner } from './backend.js';
import { Gate, gateBits, lineWords, vcpuStates } from './gate.js';

/** Words of a vCPU's mailbox, from the start of its line; see {@link VcpuLoop}. All but `data` are plain numbers. */
export const mailboxWords = { gpaLow: 16, gpaHigh: 17, size: 18, write: 19, data: 20 } as const;

/** What a vCPU tells its owner by message. */
export type VcpuMessage =
  /** An access that the owner is to answer is in the mailbox. */
  | { readonly kind: 'mmio' }
  /** The dirty ring is nearly full: the vCPU waits until it is drained. */
  | { readonly kind: 'dirty-ring-full' }
  /** The guest can't go on: it halted, or KVM said something that this library doesn't know. */
  | { readonly kind: 'stopped'; readonly reason: string; readonly gpa: number; readonly detail: number };

/** How a vCPU's loop reaches its owner, and what it is to do. */
export interface VcpuLoopOptions {
  /** Arena offsets: the control line of all gates, this vCPU's line, the section map, room for one range. */
  readonly control: number;
  readonly line: number;
  readonly map: number;
  readonly scratch: number;
  readonly send: (message: VcpuMessage) => void;
}

/** How long, in milliseconds, a guest has to be in KVM_RUN to have got anywhere for certain, unless it exits. */
const shortestProgress = 0.25;
/** How long, in milliseconds, a vCPU sleeps for its owner's answer before it looks whether it is to end. */
const mailboxPatience = 50;

/**
 * The life of a vCPU in its own thread: enter the gate, KVM_RUN, leave the gate, handle the exit, again, until the gate
 * is closed or the guest can't go on. Everything the owner wants to know is in the vCPU's line of shared words, since a
 * thread inside KVM_RUN answers no messages.
 *
 * Exits are handled outside the gate, so an inhibit window never waits for a handler. An access to RAM that came out as
 * MMIO is made good here (KVM would complete it with whatever data it is given), and counted as spurious if its
 * address was mapped before and after every commit since the vCPU entered.
 */
export class VcpuLoop {
  readonly #words: Int32Array;
  readonly #arena: Arena;
  readonly #base: number;
  readonly #gate: Gate;
  readonly #reader: SectionMapReader;
  readonly #runner: VcpuRunner;
  readonly #send: (message: VcpuMessage) => void;
  readonly #naive: number;

  constructor(arena: Arena, runner: VcpuRunner, options: VcpuLoopOptions) {
    this.#arena = arena;
    this.#words = arena.words;
    this.#base = options.line >>> 2;
    this.#naive = (options.control >>> 2) + naiveWord;
    this.#gate = new Gate(arena, options.control, options.line);
    this.#reader = new SectionMapReader(arena, options.map, options.scratch);
    this.#runner = runner;
    this.#send = options.send;
  }

  /** Runs until the vCPU is closed or can't go on. Returns then; throws what KVM_RUN throws. */
  run(): void {
    while (this.turn());
    Atomics.store(this.#words, this.#base + lineWords.state, vcpuStates.ended);
  }

  /**
   * One stay in KVM_RUN, once the gate lets the vCPU in, and all that its exit calls for. False once the vCPU is closed
   * or its guest can't go on. Throws what KVM_RUN throws.
   */
  turn(): boolean {
    if (!this.#gate.enter()) return false;
    const entered = this.#reader.commit;
    let exit: Exit | undefined;
    try {
      this.#runner.clearKick();
      if (this.#gate.startRun()) exit = this.#run();
    } finally {
      this.#gate.leave();
    }
    if (exit === undefined || exit.reason === 'interrupted') return true;
    this.#count(lineWords.exits);
    return this.#handle(exit, entered);
  }

  /**
   * KVM_RUN. Of a vCPU that was kept out, sees whether its guest got anywhere: a kick may come so early that it didn't,
   * and then the vCPU starves although it goes in and out.
   */
  #run(): Exit {
    if (!this.#gate.keptOut) return this.#runner.run();
    const start = performance.now();
    const exit = this.#runner.run();
    if (exit.reason !== 'interrupted' || performance.now() - start >= shortestProgress) this.#gate.progressed();
    return exit;
  }

  #count(word: number): void {
    Atomics.add(this.#words, this.#base + word, 1);
  }

  /** Whether the vCPU can go on. */
  #handle(exit: Exit, entered: number): boolean {
    if (exit.reason === 'mmio') {
      this.#count(lineWords.mmioExits);
      this.#handleMmio(exit, entered);
      return true;
    }
    if (exit.reason === 'port') {
      if (!exit.write) exit.data.fill(0xff);
      return true;
    }
    if (exit.reason === 'dirty-ring-full') {
      // If the vCPU is to end first, its gate tells.
      this.#tell({ kind: 'dirty-ring-full' });
      return true;
    }
    if (exit.reason === 'internal-error' || exit.reason === 'shutdown') this.#count(lineWords.internalErrors);
    this.#send({ kind: 'stopped', reason: exit.reason, gpa: exit.gpa, detail: exit.detail });
    return false;
  }

  #handleMmio(exit: Exit, entered: number): void {
    const section = this.#reader.find(exit.gpa);
    const data = exit.data.subarray(0, exit.size);
    const isMemory = section !== undefined && this.#isMemory(section, exit.write);
    if (isMemory && section.since <= entered) this.#count(lineWords.spuriousExits);
    if (isMemory && !exit.write && !this.#isNaive) {
      this.#read(section, exit.gpa, data);
      return;
    }
    // Writes to memory go to the owner as well: KVM won't know of them, and the owner, who keeps the dirty log, must
    // not turn logging on between a look at the map and the write.
    if (section !== undefined && !(isMemory && this.#isNaive) && this.#ask(exit, data)) return;
    // Nobody answers: reads give all ones, as from an empty bus.
    if (!exit.write) exit.data.fill(0xff);
  }

  get #isNaive(): boolean {
    return Atomics.load(this.#words, this.#naive) !== 0;
  }

  #isMemory({ flags }: MemoryRange, write: boolean): boolean {
    const { BACKED, READONLY } = this.#arena.layout.constants;
    return (flags & BACKED) !== 0 && !(write && flags & READONLY);
  }

  /** What reaches past the section's end comes byte by byte from whatever memory is there. */
  #read(section: MemoryRange, gpa: number, data: Uint8Array): void {
    const inside = Math.min(data.length, section.gpa + section.size - gpa);
    this.#runner.access(section.host + (gpa - section.gpa), data.subarray(0, inside), false);
    for (let index = inside; index < data.length; index++) {
      const next = this.#reader.find(gpa + index);
      const byte = data.subarray(index, index + 1);
      if (next === undefined || !this.#isMemory(next, false)) byte.fill(0xff);
      else this.#runner.access(next.host + (gpa + index - next.gpa), byte, false);
    }
  }

  /** Has the owner answer. False if the vCPU is to end first. */
  #ask(exit: Exit, data: Uint8Array): boolean {
    const words = this.#words;
    words[this.#base + mailboxWords.gpaLow] = exit.gpa | 0;
    words[this.#base + mailboxWords.gpaHigh] = exit.gpa / 2 ** 32;
    words[this.#base + mailboxWords.size] = exit.size;
    words[this.#base + mailboxWords.write] = exit.write ? 1 : 0;
    const shared = this.#arena.octets.subarray(
      (this.#base + mailboxWords.data) * 4,
      (this.#base + mailboxWords.data) * 4 + exit.size,
    );
    shared.set(data);
    if (!this.#tell({ kind: 'mmio' })) return false;
    if (!exit.write) data.set(shared);
    return true;
  }

  /** Sleeps until the owner has dealt with `message`. False if the vCPU is to end first. */
  #tell(message: VcpuMessage): boolean {
    const words = this.#words;
    const mailbox = this.#base + lineWords.mailbox;
    Atomics.store(words, mailbox, 1);
    this.#send(message);
    while (Atomics.load(words, mailbox) === 1) {
      if (Atomics.load(words, this.#base) & gateBits.closed) return false;
      Atomics.wait(words, mailbox, 1, mailboxPatience);
    }
    return true;
  }
}

/** Word of the control line that says that updates are naive: then nothing is made good. */
export const naiveWord = 8;
