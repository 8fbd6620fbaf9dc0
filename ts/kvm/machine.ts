import { channel } from 'node:diagnostics_channel';
import { availableParallelism } from 'node:os';
import type { Arena } from '../core/arena.js';
import { mustBeAligned } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import { chooseCore, createArena } from '../core/node.js';
import { AddressSpace, MemoryMap } from '../memory/address-space.js';
import { type FlatRange, isBacked, isWritable, rangeEnd } from '../memory/flat-view.js';
import { MemoryRegion } from '../memory/region.js';
import { SectionMap } from '../memory/section-map.js';
import type { LoggedEvent } from '../trace/format.js';
import type { AllocateOptions, Backend, Capabilities, GuestProgram, HostMemory } from './backend.js';
import { DirtyLog } from './dirty-log.js';
import { type GateHandle, gateLineBytes } from './gate.js';
import { type CommitCanceller, Inhibitor, type InhibitorOptions } from './inhibitor.js';
import { LinuxBackend } from './linux.js';
import { Plan } from './plan.js';
import { type Operation, Planner, type PlannerOptions, type Policy, pcSplitPoints } from './planner.js';
import { SimulatedBackend, type SimulatedOptions } from './simulated.js';
import { type CommitRecord, Rehearsed, SlotsListener } from './slots-listener.js';
import { naiveWord } from './vcpu.js';
import { cancelledError, Vcpu } from './vcpu-owner.js';

/** How to make a {@link Machine}. */
export interface MachineOptions {
  /**
   * `auto` (the default): real KVM where /dev/kvm works, else the simulated one. Or a function that makes a backend of
   * the caller's own, which the machine closes.
   */
  readonly backend?: 'auto' | 'kvm' | 'simulated' | ((arena: Arena) => Backend);
  readonly simulated?: SimulatedOptions;
  /** Default `stable`. */
  readonly policy?: Policy;
  /** Where `stable` cuts new slots; default what a PC's firmware reshapes. */
  readonly splitPoints?: readonly number[];
  /** Slots per address space to use at most; default what KVM has. */
  readonly slots?: number;
  /**
   * How KVM logs dirty pages: a `bitmap` for each slot (the default), or a `ring` for each vCPU, which names only pages
   * that were written. See docs/dirty-logging.md. `UNSUPPORTED` where KVM has no ring, as the simulated one. A backend of
   * the caller's own decides for itself.
   */
  readonly dirtyLog?: 'bitmap' | 'ring';
  /** Dirty bits of logged slots that go away aren't wanted, so that no window is taken for them. Default false. */
  readonly discardDirty?: boolean;
  readonly inhibitor?: InhibitorOptions;
  /** Told after each commit that changed slots, before `transaction` returns. */
  readonly onCommit?: (record: CommitRecord) => void;
  /** Told of every slot call, commit, window and rollback: see SlotsListenerOptions.onEvent. */
  readonly onEvent?: (event: LoggedEvent) => void;
}

/** A memory slot as KVM has it. Bytes. */
export interface Slot {
  readonly id: number;
  readonly gpa: number;
  readonly size: number;
  /** KVM's: 1 dirty logging, 2 read-only, 4 guest_memfd. */
  readonly flags: number;
  /** What backs it, and from where in it. */
  readonly memory: HostMemory;
  readonly offset: number;
}

/** What is published of each commit that changed slots, on diagnostics channel `kvm-memslots:commit`. */
export interface PublishedCommit extends Omit<CommitRecord, 'calls'> {
  readonly calls: readonly Operation[];
  readonly machine: Machine;
}

/**
 * What is published of each time that vCPUs were kept out, also for nothing, on diagnostics channel
 * `kvm-memslots:window`: once they may go on, and before the commit that it was for.
 */
export interface PublishedWindow {
  readonly machine: Machine;
  /** From shutting the first gate to having opened the last. */
  readonly microseconds: number;
  /** Why it came to nothing: what the commit, or {@link Machine.takeDirtyPages}, throws. Undefined if all went well. */
  readonly error: unknown;
}

const commits = channel('kvm-memslots:commit');
const windows = channel('kvm-memslots:window');

/** How long leaving the process waits for vCPUs to end, in milliseconds. */
const exitPatience = 2_000;

/**
 * A virtual machine whose memory map can be edited while it runs: a KVM, a tree of memory regions shown in one address
 * space (two where KVM has system management mode), the listener that keeps its memory slots, and vCPUs, each in a
 * worker thread of its own.
 *
 * Everything belongs to the thread that made it. Edits go into {@link transaction}: what is in one transaction happens
 * at one instant to every vCPU.
 */
export class Machine implements AsyncDisposable {
  /** `kvm` or `simulated`. */
  readonly backend: Backend['kind'];
  /** Why that one: for people. */
  readonly why: string;
  readonly capabilities: Capabilities;
  readonly map: MemoryMap;
  /** The root of address space "memory". */
  readonly system: MemoryRegion;
  readonly memory: AddressSpace;
  /** System management mode's map, where KVM has it. Starts empty: most callers put an alias of {@link system} in it. */
  readonly smm: AddressSpace | undefined;
  readonly #arena: Arena;
  readonly #kvm: Backend;
  readonly #inhibitor: Inhibitor;
  readonly #listener: SlotsListener;
  readonly #planner: Planner;
  readonly #sections: SectionMap;
  readonly #dirtyLog: DirtyLog;
  readonly #vcpus = new Map<number, Vcpu>();
  readonly #indexes = new Set<number>();
  readonly #freeLines: number[] = [];
  readonly #exitHook = () => this.#leaveProcess();
  #closed = false;

  private constructor(options: MachineOptions) {
    this.#arena = createArena(arenaBytes);
    const { backend, why } = openBackend(this.#arena, options);
    this.#kvm = backend;
    this.backend = backend.kind;
    this.why = why;
    this.capabilities = backend.capabilities;
    try {
      const inhibitorOptions = { processors: availableParallelism(), ...options.inhibitor };
      this.#inhibitor = new Inhibitor(this.#arena, inhibitorOptions, (microseconds, error) => {
        if (!windows.hasSubscribers) return;
        windows.publish({ machine: this, microseconds, error } satisfies PublishedWindow);
      });
      this.#sections = new SectionMap(this.#arena, sectionCapacity);
      const core = chooseCore(this.#arena, backend.kind === 'kvm' ? 'native' : 'wasm');
      this.#planner = new Planner(this.#arena, core, plannerOptions(options, backend.capabilities));
      this.#dirtyLog = new DirtyLog(backend, this.#planner);
      const parts = [this.#arena, backend, this.#inhibitor, this.#planner, this.#sections, this.#dirtyLog] as const;
      this.#listener = new SlotsListener(...parts, {
        onCommit: (record) => {
          options.onCommit?.(record);
          if (!commits.hasSubscribers) return;
          commits.publish({ ...record, calls: record.calls(), machine: this } satisfies PublishedCommit);
        },
        ...(options.onEvent === undefined ? {} : { onEvent: options.onEvent }),
      });
      this.map = new MemoryMap();
      this.system = MemoryRegion.container(this.map, 'system', 2n ** 64n);
      this.memory = new AddressSpace(this.map, 'memory', this.system);
      this.smm =
        backend.capabilities.addressSpaces > 1
          ? new AddressSpace(this.map, 'smm', MemoryRegion.container(this.map, 'smm', 2n ** 64n))
          : undefined;
      const spaces = this.smm === undefined ? [this.memory] : [this.memory, this.smm];
      this.map.addListener(this.#listener, spaces);
      // Asked before the listener that would call KVM; edits needn't go through transaction().
      this.map.addListener({ priority: this.#listener.priority - 1, commit: () => this.#assertOpen() }, spaces);
    } catch (error) {
      backend.close();
      throw error;
    }
    process.on('exit', this.#exitHook);
  }

  /** Makes a machine. Throws `UNSUPPORTED` if the backend that was asked for can't be had. */
  static async create(options: MachineOptions = {}): Promise<Machine> {
    return new Machine(options);
  }

  /** Runs `edit`, which changes regions; then KVM follows, at one instant for every vCPU. See MemoryMap.transaction. */
  transaction<Result>(edit: () => Result): Result {
    this.#assertOpen();
    return this.map.transaction(edit);
  }

  /**
   * What {@link transaction} of the same `edit` would do to the slots. Nothing is done: the tree is as it was. Throws
   * what planning throws, and `STATE` inside a transaction.
   */
  plan(edit: () => void): Plan {
    this.#assertOpen();
    if (this.map.inTransaction) {
      throw new MemorySlotsError('STATE', "a plan can't be made inside a transaction, which would go on with the edit");
    }
    this.#listener.rehearsing = true;
    try {
      this.map.transaction(edit);
      // Nobody was told of anything, so nothing changed.
      return new Plan(this.#planner.nothing(), [], []);
    } catch (error) {
      if (error instanceof Rehearsed) return error.plan;
      throw error;
    } finally {
      this.#listener.rehearsing = false;
    }
  }

  /**
   * The offsets in bytes, ascending, of the pages of `memory` that were written since the last call: by guests through
   * logged regions (MemoryRegion.setLogging), by HostMemory.write, or as {@link markDirty} says; each is reported once.
   * No page is lost when slots go away in between. A write that is under way may be reported now or by the next call; if
   * now, its bytes are there when this returns. See docs/dirty-logging.md. Throws `IOCTL`, and, with rings,
   * `TIMEOUT` if a vCPU doesn't come out of KVM_RUN, and `STATE` in a commit; nothing is lost then either.
   */
  takeDirtyPages(memory: HostMemory): number[] {
    this.#assertOpen();
    const end = memory.hostAddress + memory.size;
    const mapped = this.#planner.logged().filter(({ host, size }) => host < end && host + size > memory.hostAddress);
    const harvest = () => this.#dirtyLog.harvest(mapped);
    // Processors hand over what they noted for a ring when their vCPUs leave KVM_RUN.
    if (this.#kvm.dirtyRings === undefined) harvest();
    else this.#inhibitor.window(harvest);
    return this.#dirtyLog.take(memory);
  }

  /** Marks what was written through HostMemory.bytes as dirty, logged or not: `length` bytes at `offset`. */
  markDirty(memory: HostMemory, offset: number, length: number): void {
    this.#assertOpen();
    memory.bytes(offset, length);
    this.#dirtyLog.mark(memory, offset, length);
  }

  /**
   * `bytes` bytes of zeroed memory, a multiple of the page size, for regions of this machine; freed with it. Throws
   * `INVALID` or `CAPACITY`.
   */
  allocate(bytes: number, options?: AllocateOptions): HostMemory {
    this.#assertOpen();
    const size = mustBeAligned('the size of guest memory', bytes, this.capabilities.slotAlignment);
    const memory = this.#kvm.allocate(size, options);
    this.#dirtyLog.add(memory);
    return memory;
  }

  /** Whether updates are atomic, which is the default, or naive: never inhibited. For control experiments. */
  get updates(): 'atomic' | 'naive' {
    return this.#listener.updates;
  }

  set updates(updates: 'atomic' | 'naive') {
    this.#listener.updates = updates;
    const word = (this.#inhibitor.control >>> 2) + naiveWord;
    Atomics.store(this.#arena.words, word, updates === 'naive' ? 1 : 0);
  }

  /** Memory slots in use, over all address spaces. */
  get slotsInUse(): number {
    return this.#planner.count();
  }

  /** The slots of an address space (0: normal, 1: system management mode), by ascending address. */
  slots(addressSpace = 0): Slot[] {
    return this.#planner.list(addressSpace).map(({ id, gpa, size, flags, host }) => {
      const memory = this.#dirtyLog.memoryAt(host)!;
      return { id, gpa, size, flags, memory, offset: host - memory.hostAddress };
    });
  }

  /**
   * Adds a vCPU that will run `guest`, paused: {@link Vcpu.resume} starts it. Resolves once its thread has started;
   * `signal` gives up until then. Throws `CANCELLED`, and `UNSUPPORTED` if the thread can't start.
   */
  async addVcpu(guest: GuestProgram, { signal }: { readonly signal?: AbortSignal } = {}): Promise<Vcpu> {
    this.#assertOpen();
    // Taken before the thread has started: another may be added meanwhile.
    let index = 0;
    while (this.#indexes.has(index)) index++;
    if (signal?.aborted) throw cancelledError(index, signal);
    this.#indexes.add(index);
    const line = this.#freeLines.pop() ?? this.#inhibitor.allocateLine();
    const parts = {
      arena: this.#arena,
      backend: this.#kvm,
      inhibitor: this.#inhibitor,
      map: this.#sections.offset,
      answer: (gpa: number, data: Uint8Array, write: boolean) => this.#answer(gpa, data, write),
      drainDirtyRings: () => this.#dirtyLog.drain(),
      onGone: (vcpu: Vcpu) => {
        this.#vcpus.delete(vcpu.index);
        this.#indexes.delete(vcpu.index);
        this.#freeLines.push(vcpu.line);
      },
    };
    try {
      const vcpu = await Vcpu.start(parts, index, line, guest, signal);
      this.#vcpus.set(index, vcpu);
      return vcpu;
    } catch (error) {
      this.#indexes.delete(index);
      throw error;
    }
  }

  /** What another thread needs to cancel a commit that waits for vCPUs: see cancelCommit. */
  get canceller(): CommitCanceller {
    return { memory: this.#arena.memory, control: this.#inhibitor.control };
  }

  /**
   * What another thread needs to make VM ioctls of its own without one of them running inside an inhibit window: it
   * makes its gate with Gate.attach, and goes through it for each. One handle for one thread; handles aren't freed.
   */
  ioctlGate(): GateHandle {
    this.#assertOpen();
    const { control, commonLine } = this.#inhibitor;
    return { arena: this.#arena.handle(), control, line: commonLine };
  }

  get vcpus(): readonly Vcpu[] {
    return [...this.#vcpus.values()];
  }

  /** Ends all vCPUs and frees everything. Again is harmless. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await Promise.all(this.vcpus.map((vcpu) => vcpu.end()));
    process.removeListener('exit', this.#exitHook);
    this.#kvm.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Makes an access of a guest's, as the map is now: it may have changed since the exit. */
  #answer(gpa: number, data: Uint8Array, write: boolean): void {
    for (let done = 0; done < data.length; ) {
      const at = gpa + done;
      const range = this.memory.view.find(at);
      const left = range === undefined ? 1 : Number(rangeEnd(range)) - at;
      const part = data.subarray(done, done + left);
      done += part.length;
      if (range !== undefined) access(range, at - Number(range.gpa), part, write);
      else if (!write) part.fill(0xff);
    }
  }

  /** A thread inside KVM_RUN would keep Node from ending. */
  #leaveProcess(): void {
    const deadline = performance.now() + exitPatience;
    const pause = new Int32Array(new SharedArrayBuffer(4));
    for (const vcpu of this.vcpus) vcpu.close();
    while (this.vcpus.some((vcpu) => !vcpu.hasEnded) && performance.now() < deadline) {
      for (const vcpu of this.vcpus) this.#kvm.kick(vcpu.index);
      Atomics.wait(pause, 0, 0, 1);
    }
  }

  #assertOpen(): void {
    if (this.#closed) throw new MemorySlotsError('STATE', 'this machine is closed');
  }
}

/** An access at `from` bytes from the start of `range`, within it. */
function access(range: FlatRange, from: number, data: Uint8Array, write: boolean): void {
  const { handlers } = range.region;
  const offset = Number(range.offset) + from;
  if (isBacked(range) && (isWritable(range) || !write)) {
    const memory = range.region.memory as HostMemory;
    const memoryOffset = range.region.memoryOffset + offset;
    if (write) memory.write(memoryOffset, data);
    else data.set(memory.bytes(memoryOffset, data.length));
  } else if (write) {
    handlers?.write?.(offset, data);
  } else if (handlers?.read === undefined) {
    data.fill(0xff);
  } else {
    handlers.read(offset, data);
  }
}

/** Sections that one flat view may have, split ones included. */
const sectionCapacity = 65_536;
/** Most of it is never touched, and so never takes memory. */
const arenaBytes = 128 * 1024 * 1024 + 256 * gateLineBytes;

function plannerOptions(options: MachineOptions, capabilities: Capabilities): PlannerOptions {
  return {
    policy: options.policy ?? 'stable',
    slots: Math.min(options.slots ?? capabilities.slots, capabilities.slots),
    pageSize: capabilities.slotAlignment,
    largestSlot: capabilities.largestSlot,
    splitPoints: options.splitPoints ?? (process.arch === 'x64' ? pcSplitPoints : []),
    discardDirty: options.discardDirty ?? false,
  };
}

function openBackend(arena: Arena, options: MachineOptions): { backend: Backend; why: string } {
  const wanted = options.backend ?? 'auto';
  if (typeof wanted === 'function') return { backend: wanted(arena), why: "it is the caller's own" };
  if (wanted === 'simulated') return openSimulated(arena, options, 'it was asked for');
  try {
    const backend = new LinuxBackend(arena, options.dirtyLog === undefined ? {} : { dirtyLog: options.dirtyLog });
    return { backend, why: wanted === 'kvm' ? 'it was asked for' : '/dev/kvm works' };
  } catch (error) {
    if (wanted === 'kvm' || !(error instanceof MemorySlotsError) || error.code !== 'UNSUPPORTED') throw error;
    return openSimulated(arena, options, error.message);
  }
}

function openSimulated(arena: Arena, options: MachineOptions, why: string): { backend: Backend; why: string } {
  if (options.dirtyLog === 'ring') {
    const message = `the simulated KVM (${why}) has no dirty ring, which dirtyLog 'ring' asks for: use 'bitmap'`;
    throw new MemorySlotsError('UNSUPPORTED', message);
  }
  return { backend: new SimulatedBackend(arena, options.simulated), why };
}
