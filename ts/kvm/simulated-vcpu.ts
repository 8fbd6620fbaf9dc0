import type { Arena } from '../core/arena.js';
import { hex } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import type { Exit, ExitReason, GuestStep, VcpuRunner, VcpuSetup } from './backend.js';
import { lineWords } from './gate.js';
import { markDirty } from './simulated-dirty.js';
import { type MemoryHandle, SimulatedMemory } from './simulated-memory.js';
import { enterAccess, invalidSlot, leaveAccess, slotFlags } from './simulated-readers.js';

/** What a worker needs to run a simulated vCPU, beside the arena. Structured-cloneable. */
export type SimulatedSetup = {
  readonly kind: 'simulated';
  /** Arena offset of the map of the address space that the guest runs in. */
  readonly map: number;
  /** Arena offset of this vCPU's own 128 bytes: the reader word, then at 64 room for one range. */
  readonly scratch: number;
  readonly memory: MemoryHandle;
  readonly dirty: ArrayBufferLike;
  readonly pageSize: number;
  readonly steps: readonly GuestStep[];
};

/** Of KVM's numbers (KVM_EXIT_*, and the suberror of an instruction that can't be fetched). */
const detail: Partial<Record<ExitReason, number>> = {
  halt: 5,
  mmio: 6,
  interrupted: 10,
  'internal-error': 1,
};

/** The worker's side of a simulated vCPU. `line` is the arena offset of its words (gate.ts). Imports nothing of Node. */
export function simulatedRunner(arena: Arena, setup: VcpuSetup, line: number): SimulatedRunner {
  if (setup.kind !== 'simulated') {
    throw new MemorySlotsError('INVALID', `a vCPU of kind '${setup.kind}' can't be run by the simulated KVM`);
  }
  return new SimulatedRunner(arena, setup as SimulatedSetup, line);
}

/**
 * Interprets a guest's steps. Each access looks its slot up anew, so it sees whatever the kernel has published last. One
 * thread only, which may also be the owner's: {@link step} then makes every interleaving reproducible.
 */
export class SimulatedRunner implements VcpuRunner {
  readonly #arena: Arena;
  readonly #words: Int32Array;
  readonly #line: number;
  readonly #setup: SimulatedSetup;
  readonly #range: number;
  readonly #reader: number;
  readonly #memory: SimulatedMemory;
  readonly #dirty: Int32Array;
  /** The bytes of the access under way, little-endian, and how many are done. */
  readonly #value = new DataView(new ArrayBuffer(8));
  #done = 0;
  /** Bytes of an MMIO exit that the next run completes. */
  #pending = 0;
  #next = 0;
  readonly #exit: Exit = { reason: 'unknown', gpa: 0, size: 0, write: false, data: new Uint8Array(8), detail: 0 };

  constructor(arena: Arena, setup: SimulatedSetup, line: number) {
    this.#arena = arena;
    this.#words = arena.words;
    this.#line = line >>> 2;
    this.#setup = setup;
    this.#reader = setup.scratch >>> 2;
    this.#range = setup.scratch + 64;
    this.#memory = new SimulatedMemory(setup.memory);
    this.#dirty = new Int32Array(setup.dirty);
  }

  /** Index of the step that {@link step} takes next. */
  get position(): number {
    return this.#next;
  }

  clearKick(): void {
    Atomics.store(this.#words, this.#line + lineWords.immediateExit, 0);
  }

  /** Throws `IOCTL` for a slot whose host addresses aren't memory, where KVM_RUN fails with EFAULT. */
  run(): Exit {
    for (;;) {
      const exit = this.step();
      if (exit !== undefined) return exit;
    }
  }

  /**
   * As {@link run}, but gives up after one step of the guest: undefined if that caused no exit. A step into a slot that
   * is being deleted or moved changes nothing, and is taken again by the next call.
   */
  step(): Exit | undefined {
    if (this.#pending > 0) this.#complete();
    // Of an access that crosses pages, the rest is up next: a kick leaves between the two as between two steps.
    if (Atomics.load(this.#words, this.#line + lineWords.immediateExit) !== 0) return this.#leave('interrupted', 0);
    const step = this.#setup.steps[this.#next];
    // A guest without steps does nothing, for ever.
    if (step === undefined) return undefined;
    if (step.kind !== 'halt') return this.#access(step);
    this.#advance();
    return this.#leave('halt', 0);
  }

  access(host: number, data: Uint8Array, write: boolean): void {
    this.#memory.copy(host, data, write);
  }

  close(): void {}

  /** Takes what the exit's handler filled in. */
  #complete(): void {
    const step = this.#setup.steps[this.#next]!;
    if (step.kind === 'check') {
      for (let i = 0; i < this.#pending; i++) this.#value.setUint8(this.#done + i, this.#exit.data[i]!);
    }
    this.#done += this.#pending;
    this.#pending = 0;
    if (this.#done === sizeOf(step)) this.#finish(step);
  }

  /** What is left of `step`, page by page. */
  #access(step: Exclude<GuestStep, { kind: 'halt' }>): Exit | undefined {
    if (step.kind === 'write' && this.#done === 0) putNumber(this.#value, step.value);
    const size = sizeOf(step);
    while (this.#done < size) {
      const gpa = step.gpa + this.#done;
      const length = Math.min(size - this.#done, this.#setup.pageSize - (gpa % this.#setup.pageSize));
      enterAccess(this.#words, this.#reader);
      const outcome = this.#touch(step.kind, gpa, length);
      leaveAccess(this.#words, this.#reader);
      if (outcome === 'again') return undefined;
      if (outcome === 'unmapped') {
        const message = `KVM_RUN failed with EFAULT: nothing backs the slot at GPA ${hex(gpa)}`;
        throw new MemorySlotsError('IOCTL', `${message} at its host address`);
      }
      if (outcome !== 'done') {
        if (outcome === 'mmio') this.#pending = length;
        return this.#leave(outcome, gpa, length, step.kind === 'write');
      }
      this.#done += length;
    }
    this.#finish(step);
    return undefined;
  }

  /** One access within a page, between entering and leaving: what the slots of this instant make of it. */
  #touch(
    kind: 'check' | 'write' | 'fetch',
    gpa: number,
    length: number,
  ): 'done' | 'again' | 'unmapped' | 'mmio' | 'internal-error' {
    const { layout, words } = this.#arena;
    const range = this.#range;
    if (this.#arena.wasm.map_lookup(this.#setup.map, gpa, range) < 0)
      return kind === 'fetch' ? 'internal-error' : 'mmio';
    const flags = words[(range + layout.range.flags) >>> 2]!;
    if (flags & invalidSlot) return 'again';
    if (kind === 'write' && flags & slotFlags.readonly) return 'mmio';
    const from = gpa - this.#arena.u64(range + layout.range.gpa);
    const host = this.#arena.u64(range + layout.range.host) + from;
    const memory = this.#memory.view(host, length);
    if (memory === undefined) return 'unmapped';
    if (kind === 'check') copyBytes(memory, this.#memory.within(host), this.#value, this.#done, length);
    if (kind === 'write') {
      copyBytes(this.#value, this.#done, memory, this.#memory.within(host), length);
      const bitmap = this.#arena.u32(range + layout.range.region);
      // After the write: a harvest in between finds the bit the next time, where before it would lose the write.
      if (flags & slotFlags.logDirty) markDirty(this.#dirty, bitmap, Math.floor(from / this.#setup.pageSize));
    }
    return 'done';
  }

  #finish(step: GuestStep): void {
    if (step.kind === 'check') {
      Atomics.add(this.#words, this.#line + lineWords.guestReads, 1);
      if (!holdsNumber(this.#value, step.size, step.expected)) {
        Atomics.add(this.#words, this.#line + lineWords.guestWrongValues, 1);
      }
    }
    this.#done = 0;
    this.#advance();
  }

  #advance(): void {
    this.#next++;
    if (this.#next < this.#setup.steps.length) return;
    this.#next = 0;
    Atomics.add(this.#words, this.#line + lineWords.guestRounds, 1);
  }

  #leave(reason: ExitReason, gpa: number, size = 0, write = false): Exit {
    const exit = this.#exit;
    exit.reason = reason;
    exit.gpa = gpa;
    exit.size = size;
    exit.write = write;
    exit.detail = detail[reason] ?? 0;
    exit.data.fill(0);
    for (let i = 0; write && i < size; i++) exit.data[i] = this.#value.getUint8(this.#done + i);
    return exit;
  }
}

/** Bytes that a step touches; a fetch, one. */
function sizeOf(step: GuestStep): number {
  if (step.kind === 'halt') return 0;
  return step.kind === 'fetch' ? 1 : step.size;
}

/** Copies 1 to 8 bytes, as a single access where that is possible: the guest's reads and writes must not tear. */
function copyBytes(from: DataView, fromOffset: number, to: DataView, toOffset: number, length: number): void {
  if (length === 1) to.setUint8(toOffset, from.getUint8(fromOffset));
  else if (length === 2) to.setUint16(toOffset, from.getUint16(fromOffset, true), true);
  else if (length === 4) to.setUint32(toOffset, from.getUint32(fromOffset, true), true);
  else if (length === 8) to.setBigUint64(toOffset, from.getBigUint64(fromOffset));
  else for (let i = 0; i < length; i++) to.setUint8(toOffset + i, from.getUint8(fromOffset + i));
}

function putNumber(value: DataView, number: number): void {
  value.setUint32(0, number >>> 0, true);
  value.setUint32(4, Math.floor(number / 2 ** 32) >>> 0, true);
}

function holdsNumber(value: DataView, size: number, expected: number): boolean {
  if (size === 1) return value.getUint8(0) === expected;
  if (size === 2) return value.getUint16(0, true) === expected;
  if (size === 4) return value.getUint32(0, true) === expected >>> 0;
  return value.getUint32(4, true) * 2 ** 32 + value.getUint32(0, true) === expected;
}
