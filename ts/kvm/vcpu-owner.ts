import { Worker } from 'node:worker_threads';
import type { Arena } from '../core/arena.js';
import { MemorySlotsError } from '../core/errors.js';
import type { Backend, GuestProgram } from './backend.js';
import { lineWords, vcpuStates } from './gate.js';
import type { Inhibitor } from './inhibitor.js';
import { describeThread, threadExists } from './thread-state.js';
import { mailboxWords, type VcpuMessage } from './vcpu.js';
import type { VcpuWorkerData } from './vcpu-worker.js';

/** What a vCPU has counted since it was added. */
export interface VcpuCounters {
  /** Times it went into KVM_RUN. */
  readonly entries: number;
  readonly exits: number;
  readonly mmioExits: number;
  /** MMIO exits at addresses that were mapped before and after every commit since the vCPU entered. */
  readonly spuriousExits: number;
  /** Times KVM gave up on the guest: a fetch from unmapped memory, most often. */
  readonly internalErrors: number;
  /** Simulated guests only: what their steps counted. */
  readonly guestReads: number;
  readonly guestWrongValues: number;
  readonly guestRounds: number;
}

/**
 * Why a vCPU's guest stopped by itself; `crashed` if its thread ended without having been told to, `dirty-ring-overrun`
 * if KVM takes its dirty ring to be full for good.
 */
export interface VcpuStop {
  readonly reason: string;
  readonly gpa: number;
  readonly detail: number;
}

/** Answers an access that a vCPU's thread doesn't make by itself; `data` is to be filled in for a read. */
export type MmioAnswer = (gpa: number, data: Uint8Array, write: boolean) => void;

/** How long a vCPU's thread may take to start, in milliseconds. */
const startPatience = 20_000;
/** How often, in milliseconds, a vCPU that is to end is kicked again. */
const kickInterval = 20;

/** A worker can't load TypeScript: from sources (tests), the built file serves. */
const workerUrl = new URL(
  import.meta.url.endsWith('.ts') ? '../../dist/kvm/vcpu-worker.js' : './vcpu-worker.js',
  import.meta.url,
);

/** What a {@link Vcpu} is made of. */
export interface VcpuParts {
  readonly arena: Arena;
  readonly backend: Backend;
  readonly inhibitor: Inhibitor;
  /** Arena offset of the section map. */
  readonly map: number;
  readonly answer: MmioAnswer;
  /** Makes room in the dirty rings. False if that can't be done any more. */
  readonly drainDirtyRings: () => boolean;
  /** Called once the vCPU's thread is gone and its gate with it. */
  readonly onGone: (vcpu: Vcpu) => void;
}

/** What is thrown where `signal` is raised before a vCPU has started. */
export function cancelledError(index: number, signal: AbortSignal): MemorySlotsError {
  const message = `vCPU ${index} wasn't added: the caller cancelled; the machine is as it was`;
  return new MemorySlotsError('CANCELLED', message, { cause: signal.reason });
}

/** A vCPU as its owner sees it. Made by Machine.addVcpu. Owner thread only. */
export class Vcpu implements AsyncDisposable {
  readonly index: number;
  readonly line: number;
  /**
   * Resolves when the guest stops by itself (it halts, or KVM gives up on it, or its thread crashes: see {@link error})
   * or the vCPU ends: then undefined.
   */
  readonly stopped: Promise<VcpuStop | undefined>;
  /** What the vCPU's thread died of, if it did. */
  error: Error | undefined;
  readonly #parts: VcpuParts;
  readonly #worker: Worker;
  readonly #gone: Promise<void>;
  #isGone = false;
  #stop!: (stop: VcpuStop | undefined) => void;

  private constructor(parts: VcpuParts, index: number, line: number, guest: GuestProgram) {
    const { arena, backend, inhibitor, map } = parts;
    this.#parts = parts;
    this.index = index;
    this.line = line;
    this.stopped = new Promise((resolve) => {
      this.#stop = resolve;
    });
    const thread = () => Atomics.load(arena.words, (line >>> 2) + lineWords.thread);
    inhibitor.add(index, line, {
      kick: () => backend.kick(index),
      describe: () => describeThread(thread()),
      isAlive: () => threadExists(thread()),
    });
    try {
      const setup = backend.createVcpu(index, line, guest);
      const scratch = arena.allocate(arena.layout.range.bytes);
      const workerData: VcpuWorkerData = {
        arena: arena.handle(),
        setup,
        control: inhibitor.control,
        line,
        map,
        scratch,
      };
      // Options of this process (`--input-type`, say) may not suit a worker.
      this.#worker = new Worker(workerUrl, { workerData, name: `vCPU ${index}`, execArgv: [] });
    } catch (error) {
      backend.destroyVcpu(index);
      inhibitor.remove(index);
      throw error;
    }
    this.#gone = new Promise((resolve) => {
      this.#worker.on('exit', (code) => {
        this.#onExit(code);
        resolve();
      });
    });
    this.#worker.on('error', (error) => {
      this.error = error as Error;
    });
    this.#worker.on('message', (message: VcpuMessage | { kind: 'ready' }) => {
      if (message.kind === 'mmio') this.#reply(() => this.#answer());
      else if (message.kind === 'dirty-ring-full') this.#reply(() => this.#drain());
      else if (message.kind === 'stopped') this.#stop(message);
    });
  }

  /** Creates the vCPU and starts its thread, paused. `signal` gives up while the thread starts. */
  static async start(
    parts: VcpuParts,
    index: number,
    line: number,
    guest: GuestProgram,
    signal?: AbortSignal,
  ): Promise<Vcpu> {
    const vcpu = new Vcpu(parts, index, line, guest);
    await vcpu.#ready(signal);
    return vcpu;
  }

  async #ready(signal?: AbortSignal): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<string>((resolve) => {
      timer = setTimeout(resolve, startPatience, `its thread didn't start within ${startPatience} ms`);
    });
    const ready = new Promise<undefined>((resolve) => {
      this.#worker.once('message', () => resolve(undefined));
    });
    const died = this.#gone.then(() => `its thread ended: ${this.error?.message ?? 'no error was given'}`);
    let cancel = () => {};
    const cancelled = new Promise<string>((resolve) => {
      cancel = () => resolve('the caller cancelled');
    });
    signal?.addEventListener('abort', cancel);
    const problem = await Promise.race([ready, died, late, cancelled]);
    signal?.removeEventListener('abort', cancel);
    clearTimeout(timer);
    if (problem !== undefined) {
      await this.#worker.terminate();
      if (signal?.aborted) throw cancelledError(this.index, signal);
      throw new MemorySlotsError('UNSUPPORTED', `vCPU ${this.index} can't run: ${problem}`, { cause: this.error });
    }
  }

  #onExit(code: number): void {
    const { arena, inhibitor, backend } = this.#parts;
    this.#isGone = true;
    if (Atomics.load(arena.words, (this.line >>> 2) + lineWords.state) !== vcpuStates.ended) {
      inhibitor.release(this.index);
      const message = `the thread of vCPU ${this.index} ended with exit code ${code} without having been told to`;
      this.error ??= new MemorySlotsError('STATE', message);
      this.#stop({ reason: 'crashed', gpa: 0, detail: code });
    }
    inhibitor.remove(this.index);
    backend.destroyVcpu(this.index);
    this.#stop(undefined);
    this.#parts.onGone(this);
  }

  /** Does what the vCPU waits for, and lets it go on whatever comes of it. */
  #reply(work: () => void): void {
    const { words } = this.#parts.arena;
    const mailbox = (this.line >>> 2) + lineWords.mailbox;
    try {
      work();
    } finally {
      Atomics.store(words, mailbox, 0);
      Atomics.notify(words, mailbox);
    }
  }

  /** A vCPU whose ring stays full would run in circles. */
  #drain(): void {
    if (this.#parts.drainDirtyRings()) return;
    this.#stop({ reason: 'dirty-ring-overrun', gpa: 0, detail: 0 });
    this.close();
  }

  #answer(): void {
    const { arena } = this.#parts;
    const base = this.line >>> 2;
    const word = (index: number) => arena.unsigned[base + index]!;
    const data = arena.octets.subarray(
      (base + mailboxWords.data) * 4,
      (base + mailboxWords.data) * 4 + word(mailboxWords.size),
    );
    const gpa = word(mailboxWords.gpaHigh) * 2 ** 32 + word(mailboxWords.gpaLow);
    this.#parts.answer(gpa, data, word(mailboxWords.write) === 1);
  }

  get counters(): VcpuCounters {
    const words = new Uint32Array(this.#parts.arena.memory.buffer, this.line, 32);
    const read = (index: number) => Atomics.load(words, index);
    return {
      entries: read(lineWords.entries),
      exits: read(lineWords.exits),
      mmioExits: read(lineWords.mmioExits),
      spuriousExits: read(lineWords.spuriousExits),
      internalErrors: read(lineWords.internalErrors),
      guestReads: read(lineWords.guestReads),
      guestWrongValues: read(lineWords.guestWrongValues),
      guestRounds: read(lineWords.guestRounds),
    };
  }

  /** The kernel's id of the vCPU's thread (as for sched_setaffinity), 0 before it runs and once it has ended. */
  get thread(): number {
    return Atomics.load(this.#parts.arena.words, (this.line >>> 2) + lineWords.thread);
  }

  /** Lets the guest run. */
  resume(): void {
    if (!this.#isGone) this.#parts.inhibitor.resume(this.index);
  }

  /** Makes the guest stand still from soon on, until it is resumed. */
  pause(): void {
    if (!this.#isGone) this.#parts.inhibitor.pause(this.index);
  }

  /** Tells the vCPU to end, at once, without waiting for it. */
  close(): void {
    if (!this.#isGone) this.#parts.inhibitor.close(this.index);
  }

  /** Ends the vCPU for good: resolves when its thread is gone. Kicks until it is. */
  async end(): Promise<void> {
    this.close();
    const timer = setInterval(() => this.#parts.backend.kick(this.index), kickInterval);
    await this.#gone;
    clearInterval(timer);
  }

  /** The same as {@link end}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
  }

  /** Whether the thread can't be inside KVM_RUN any more. */
  get hasEnded(): boolean {
    const state = Atomics.load(this.#parts.arena.words, (this.line >>> 2) + lineWords.state);
    return this.#isGone || state === vcpuStates.ended || state === vcpuStates.dead;
  }
}
