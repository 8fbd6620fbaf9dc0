import type { Arena } from '../core/arena.js';
import { hex, mustBeAligned, mustBeCount } from '../core/checks.js';
import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import type {
  AllocateOptions,
  Backend,
  Capabilities,
  GuestProgram,
  GuestStep,
  HostMemory,
  VcpuSetup,
} from './backend.js';
import { lineWords } from './gate.js';
import { FileTable } from './simulated-files.js';
import { type CallHooks, SimulatedKernel } from './simulated-kernel.js';
import { SimulatedAllocator, SimulatedMemory } from './simulated-memory.js';
import { type Profile, type ProfileName, profileOf } from './simulated-profiles.js';
import { slotFlags } from './simulated-readers.js';
import type { SimulatedSetup } from './simulated-vcpu.js';

/** How a simulated KVM behaves. All sizes in bytes. */
export interface SimulatedOptions {
  /** Whose rules apply. Default `x86`, which has one address space; `x86-smm` has two. */
  readonly profile?: ProfileName;
  /** Slots an address space may hold, to stand for older kernels (509). Default: the profile's, about 32,000. */
  readonly slots?: number;
  /** Width of guest-physical addresses, 32 to 52. Default: the profile's. */
  readonly physicalAddressBits?: number;
  /** Host ranges may not reach beyond this address. Default: the profile's. */
  readonly hostLimit?: number;
  /** All host memory that {@link SimulatedBackend.allocate} may hand out, committed as it is touched. Default 1 GiB. */
  readonly memoryBytes?: number;
  /** False reserves host addresses without memory behind them, for layouts that no guest runs in. Default true. */
  readonly backed?: boolean;
  /**
   * How long a call takes that changes something, in microseconds. Default 15, as on a real host: a hole much shorter
   * than that is hardly ever seen.
   */
  readonly callMicroseconds?: number;
  /** Room for dirty bitmaps, one bit a page; without room, logging a slot fails with ENOMEM. Default 64 MiB. */
  readonly dirtyLogBytes?: number;
  /** Machines that share a table can be handed each other's guest_memfds. Default: one of its own. */
  readonly files?: FileTable;
  /** Run in all calls from the start; see {@link SimulatedKernel.addHooks}. */
  readonly hooks?: readonly CallHooks[];
}

/** The named profile with the host's own values, where options give them. */
function profileFor(options: SimulatedOptions): Profile {
  const profile = profileOf(options.profile ?? 'x86');
  const slots = options.slots ?? profile.slots;
  const physicalAddressBits = options.physicalAddressBits ?? profile.physicalAddressBits;
  const hostLimit = options.hostLimit ?? profile.hostLimit;
  if (!(slots >= 1 && slots <= profile.slots && Number.isInteger(slots))) {
    throw new MemorySlotsError('INVALID', `slots must be an integer from 1 to ${profile.slots}, not ${slots}`);
  }
  if (!(physicalAddressBits >= 32 && physicalAddressBits <= 52 && Number.isInteger(physicalAddressBits))) {
    const message = `physicalAddressBits must be an integer from 32 to 52, not ${physicalAddressBits}`;
    throw new MemorySlotsError('INVALID', message);
  }
  return { ...profile, slots, physicalAddressBits, hostLimit };
}

/** A copy of `step`, which goes to another thread. */
function mustBeStep(step: GuestStep, index: number): GuestStep {
  if (step.kind === 'halt') return { ...step };
  mustBeCount(`the GPA of step ${index}`, step.gpa);
  if (step.kind !== 'fetch' && ![1, 2, 4, 8].includes(step.size)) {
    const message = `step ${index} at GPA ${hex(step.gpa)} must have a size of 1, 2, 4 or 8 bytes, not ${step.size}`;
    throw new MemorySlotsError('INVALID', message);
  }
  return { ...step };
}

/** Bytes of a vCPU's own lines, see {@link SimulatedSetup.scratch}. */
const scratchBytes = 128;

/**
 * A KVM virtual machine that is all simulated, and runs anywhere. Its kernel, `kernel`, gives the errno and shows the
 * states in between that a real one does; vCPUs are interpreters of {@link GuestProgram.steps}, each in a worker
 * (simulated-vcpu.ts). With the default 32,764 slots it takes 8 MiB of the arena for each address space.
 */
export class SimulatedBackend implements Backend {
  readonly kind = 'simulated';
  readonly capabilities: Capabilities;
  /** The ioctls themselves, their hooks and the state behind them. */
  readonly kernel: SimulatedKernel;
  readonly #arena: Arena;
  /** As in linux.ts: the log is cleared by a call of its own where there is one. */
  readonly #manualDirtyLog: boolean;
  readonly #memory: SimulatedMemory;
  readonly #allocator: SimulatedAllocator;
  /** By vCPU index: its line, and its own lines, which outlive it. */
  readonly #vcpus = new Map<number, { readonly line: number; readonly scratch: number }>();
  readonly #spareScratch: number[] = [];

  constructor(arena: Arena, options: SimulatedOptions = {}) {
    const profile = profileFor(options);
    this.#arena = arena;
    this.capabilities = {
      slots: profile.slots,
      addressSpaces: profile.addressSpaces,
      pageSize: profile.pageSize,
      slotAlignment: profile.slotAlignment,
      largestSlot: (2 ** 31 - 1) * profile.pageSize,
      readonlyMemory: profile.readonlyMemory,
      manualDirtyLog: profile.manualDirtyLog,
      dirtyRing: 0,
      guestMemfd: profile.guestMemfd,
      maxVcpus: 1024,
    };
    this.kernel = new SimulatedKernel(arena, {
      profile,
      callMicroseconds: options.callMicroseconds ?? 15,
      dirtyLogBytes: mustBeCount('dirtyLogBytes', options.dirtyLogBytes ?? 2 ** 26),
      files: options.files ?? new FileTable(),
    });
    this.#manualDirtyLog = this.kernel.enableManualDirtyLog(1) === 0;
    for (const hooks of options.hooks ?? []) this.kernel.addHooks(hooks);
    const memoryBytes = mustBeAligned('memoryBytes', options.memoryBytes ?? 2 ** 30, profile.pageSize);
    this.#memory = SimulatedMemory.create(memoryBytes, options.backed ?? true);
    this.#allocator = new SimulatedAllocator(this.#memory, profile.pageSize, profile.slotAlignment);
  }

  apply(operations: number, count: number): number {
    const { operation, constants } = this.#arena.layout;
    for (let done = 0; done < count; done++) {
      const at = operations + done * operation.bytes;
      const slot = this.#arena.readRange(at + operation.slot);
      const deletes = this.#arena.u32(at + operation.kind) === constants.DELETE;
      const flags = slot.flags & (slotFlags.logDirty | slotFlags.readonly | slotFlags.guestMemfd);
      const request = {
        slot: slot.addressSpace * 0x10000 + slot.id,
        flags: deletes ? 0 : flags,
        gpa: slot.gpa,
        size: deletes ? 0 : slot.size,
        host: slot.host,
        guestMemfd: slot.guestMemfd,
        guestMemfdOffset: slot.offset,
      };
      const result =
        request.flags & slotFlags.guestMemfd
          ? this.kernel.setUserMemoryRegion2(request)
          : this.kernel.setUserMemoryRegion(request);
      this.#arena.words[(at + operation.result) >>> 2] = result;
      if (result < 0) return done;
    }
    return count;
  }

  getDirtyLog(addressSpace: number, id: number, pages: number, bitmap: Uint8Array): number {
    const slot = addressSpace * 0x10000 + id;
    const result = this.kernel.getDirtyLog(slot, bitmap);
    return result < 0 || !this.#manualDirtyLog ? result : this.kernel.clearDirtyLog(slot, 0, pages, bitmap);
  }

  allocate(bytes: number, options: AllocateOptions = {}): HostMemory {
    if (!options.guestMemfd) return this.#allocator.allocate(bytes);
    const fd = this.kernel.createGuestMemfd(bytes);
    if (fd < 0) throw new MemorySlotsError('UNSUPPORTED', `a guest_memfd can't be had: ${errnoName(fd)}`);
    return this.#allocator.allocate(bytes, fd);
  }

  createVcpu(index: number, line: number, guest: GuestProgram): VcpuSetup {
    if (guest.steps === undefined) {
      throw new MemorySlotsError('INVALID', `vCPU ${index} needs steps to run on the simulated KVM`);
    }
    if (this.#vcpus.has(index)) throw new MemorySlotsError('STATE', `there is a vCPU ${index} already`);
    const scratch = this.#spareScratch.pop() ?? this.#arena.allocate(scratchBytes);
    Atomics.store(this.#arena.words, scratch >>> 2, 0);
    this.#vcpus.set(index, { line, scratch });
    this.kernel.addReader(scratch >>> 2);
    const setup: SimulatedSetup = {
      kind: 'simulated',
      map: this.kernel.maps[0]!,
      scratch,
      memory: this.#memory.handle,
      dirty: this.kernel.dirtyBuffer,
      pageSize: this.capabilities.pageSize,
      steps: guest.steps.map(mustBeStep),
    };
    return setup;
  }

  kick(index: number): void {
    const vcpu = this.#vcpus.get(index);
    if (vcpu === undefined) return;
    Atomics.store(this.#arena.words, (vcpu.line >>> 2) + lineWords.immediateExit, 1);
  }

  destroyVcpu(index: number): void {
    const vcpu = this.#vcpus.get(index);
    if (vcpu === undefined) return;
    this.kernel.removeReader(vcpu.scratch >>> 2);
    this.#vcpus.delete(index);
    this.#spareScratch.push(vcpu.scratch);
  }

  /** Nothing outlives the object: its buffers go when the last thread lets go of them. */
  close(): void {
    this.#vcpus.clear();
  }
}
