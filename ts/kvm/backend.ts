import type { GuestMemory } from '../memory/guest-memory.js';
import type { DirtyRings } from './dirty-rings.js';

/** What a KVM, real or simulated, can do. */
export interface Capabilities {
  /** Slots an address space may hold (KVM_CAP_NR_MEMSLOTS). */
  readonly slots: number;
  /** 2 on x86 with system management mode, else 1 (KVM_CAP_MULTI_ADDRESS_SPACE). */
  readonly addressSpaces: number;
  readonly pageSize: number;
  /** Bytes: slots start and end at multiples of it, in guest and host. A page, but 1 MiB on s390. */
  readonly slotAlignment: number;
  /** Bytes: the largest slot, 2^31 − 1 pages. */
  readonly largestSlot: number;
  readonly readonlyMemory: boolean;
  /** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: KVM_CLEAR_DIRTY_LOG exists. */
  readonly manualDirtyLog: boolean;
  /** Bytes of the largest dirty ring, 0 for none. */
  readonly dirtyRing: number;
  readonly guestMemfd: boolean;
  readonly maxVcpus: number;
}

/**
 * Memory that a guest can be given: allocated by a backend, held by callers, freed with its machine. The host address
 * stays inside this library.
 */
export abstract class HostMemory implements GuestMemory {
  /** Bytes, a multiple of the page size. */
  abstract readonly size: number;
  /** Host-virtual address. For the planner and the backend only. @internal */
  abstract readonly hostAddress: number;
  /** Descriptor of the guest_memfd that this memory is, −1 if it is none. @internal */
  readonly guestMemfd: number = -1;
  /** Told of what {@link write} wrote: dirty logs know nothing of writes that no guest makes. @internal */
  onWrite: ((offset: number, length: number) => void) | undefined;
  /**
   * The bytes from `offset`, as a view that shares them with the guest. Throws `INVALID` outside the memory. A view
   * must not be used after the machine is closed.
   */
  abstract bytes(offset: number, length: number): Uint8Array;

  /**
   * Copies `data` into the memory at `offset` bytes and marks its pages dirty, as a guest's own write through a logged
   * region would. Writes through {@link bytes} are not marked: see Machine.markDirty. Owner thread only.
   */
  write(offset: number, data: Uint8Array): void {
    this.bytes(offset, data.length).set(data);
    this.onWrite?.(offset, data.length);
  }
}

/** What memory to allocate. */
export interface AllocateOptions {
  /**
   * Back it by a guest_memfd (KVM_CREATE_GUEST_MEMFD, Linux 6.18 for ordinary guests): slots then name the file too.
   * Read-only and logged sections of it become ordinary slots, since KVM allows neither flag with a guest_memfd.
   */
  readonly guestMemfd?: boolean;
}

/** Why a vCPU came out of KVM_RUN. */
export type ExitReason =
  | 'interrupted'
  | 'mmio'
  | 'port'
  | 'halt'
  | 'shutdown'
  | 'internal-error'
  | 'memory-fault'
  | 'fail-entry'
  | 'dirty-ring-full'
  | 'unknown';

/** One exit. The object is reused: what is to outlive the next run must be copied. */
export interface Exit {
  reason: ExitReason;
  /** MMIO and memory fault: the guest-physical address. Port: its number. */
  gpa: number;
  /** MMIO and port: bytes, 1 to 8. */
  size: number;
  write: boolean;
  /** MMIO and port: `size` bytes at the start; to be filled in for a read. */
  data: Uint8Array;
  /** The kernel's number: exit reason, or suberror of an internal error. */
  detail: number;
}

/**
 * One vCPU in the thread that runs it. Made by the backend's worker side from what {@link Backend.createVcpu} gave.
 */
export interface VcpuRunner {
  /** Clears immediate_exit with a sequentially consistent store; see Gate.startRun. */
  clearKick(): void;
  /** KVM_RUN: runs the guest until it exits. `interrupted` after a kick. */
  run(): Exit;
  /** Copies between `data` and host memory at address `host`, which a slot maps. */
  access(host: number, data: Uint8Array, write: boolean): void;
  close(): void;
}

/** A KVM virtual machine: the real one of linux.ts, or the simulated one. Owner thread only, but for `kick`. */
export interface Backend {
  readonly kind: 'kvm' | 'simulated';
  readonly capabilities: Capabilities;
  /** Where dirty pages are logged in rings; {@link getDirtyLog} fails then. */
  readonly dirtyRings?: DirtyRings;
  /**
   * Makes `count` calls of KVM_SET_USER_MEMORY_REGION as the operations at arena offset `operations` say, in order, and
   * stops at the first that fails: its `result` then is a negative errno. The number that succeeded.
   */
  apply(operations: number, count: number): number;
  /**
   * Takes the dirty log of slot `id` in address space `addressSpace`, which has `pages` pages: one bit a page, written
   * to `bitmap` (whole 64-bit words), and cleared in KVM. 0 or a negative errno.
   */
  getDirtyLog(addressSpace: number, id: number, pages: number, bitmap: Uint8Array): number;
  /** Throws `CAPACITY`, or `UNSUPPORTED` for a guest_memfd where there is none. `bytes`: a multiple of the page size. */
  allocate(bytes: number, options?: AllocateOptions): HostMemory;
  /**
   * Creates vCPU `index`, whose line of words (gate.ts) is at arena offset `line`. The result goes to the vCPU's worker
   * by structured clone. `guest` says what it runs: see GuestProgram.
   */
  createVcpu(index: number, line: number, guest: GuestProgram): VcpuSetup;
  /** Makes vCPU `index` leave KVM_RUN or not enter it: sets immediate_exit, then signals its thread. Any time. */
  kick(index: number): void;
  destroyVcpu(index: number): void;
  /** Frees everything. vCPU threads must have ended. */
  close(): void;
}

/** What a worker needs to run a vCPU, beside the arena. Structured-cloneable. */
export type VcpuSetup =
  | { readonly kind: 'kvm'; readonly fd: number; readonly runAddress: number; readonly runBytes: number }
  | { readonly kind: 'simulated'; readonly [name: string]: unknown };

/** What a vCPU executes: machine code for the real KVM, steps for the simulated one. A guest may have either or both. */
export interface GuestProgram {
  readonly start?: X86Start;
  readonly steps?: readonly GuestStep[];
}

/** The state in which an x86 vCPU starts; the code itself lies in guest memory. Addresses are guest-physical. */
export interface X86Start {
  /**
   * `real`: 16-bit, cs.base is the entry's page. `protected`: 32-bit, flat segments, no paging. `user`: 64-bit at
   * privilege level 3, with the page tables at `pageTable`.
   */
  readonly mode: 'real' | 'protected' | 'user';
  readonly entry: number;
  readonly stack?: number;
  /** `user` only: guest-physical address of the top-level page table. */
  readonly pageTable?: number;
}

/** A step of a simulated guest; after the last it starts over, having counted a round. Sizes are 1, 2, 4 or 8 bytes. */
export type GuestStep =
  /** Reads `size` bytes and counts a wrong value unless they are `expected` (little-endian; up to 4 bytes). */
  | { readonly kind: 'check'; readonly gpa: number; readonly size: number; readonly expected: number }
  | { readonly kind: 'write'; readonly gpa: number; readonly size: number; readonly value: number }
  | { readonly kind: 'fetch'; readonly gpa: number }
  | { readonly kind: 'halt' };
