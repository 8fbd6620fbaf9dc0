import { closeSync, openSync } from 'node:fs';
import type { Arena } from '../core/arena.js';
import { formatSize, hex } from '../core/checks.js';
import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import { addressOf, loadNativeLibrary, type NativeLibrary } from '../core/native.js';
import {
  type AllocateOptions,
  type Backend,
  type Capabilities,
  type GuestProgram,
  HostMemory,
  type VcpuSetup,
} from './backend.js';
import { LinuxDirtyRings } from './dirty-rings.js';
import { lineWords } from './gate.js';
import { slotAlignments } from './simulated-profiles.js';
import { initialState } from './x86.js';

/** Requests of the KVM API (linux/kvm.h), with the size of their argument in the number where they have one. */
const requests = {
  getApiVersion: 0xae00,
  createVm: 0xae01,
  checkExtension: 0xae03,
  getVcpuMapSize: 0xae04,
  createVcpu: 0xae41,
  getDirtyLog: 0x4010ae42,
  run: 0xae80,
  enableCapability: 0x4068aea3,
  clearDirtyLog: 0xc018aec0,
  resetDirtyRings: 0xaec7,
  createGuestMemfd: 0xc040aed4,
  setRegisters: 0x4090ae82,
  getSpecialRegisters: 0x8138ae83,
  setSpecialRegisters: 0x4138ae84,
} as const;

/** Capability numbers of KVM_CHECK_EXTENSION. */
const extensions = {
  userMemory: 3,
  slots: 10,
  vcpus: 66,
  readonlyMemory: 81,
  addressSpaces: 118,
  immediateExit: 136,
  manualDirtyLog: 168,
  dirtyRing: 192,
  /** The same, where processors may reorder stores and user space knows. */
  dirtyRingOrdered: 223,
  guestMemfdFlags: 244,
} as const;

/** KVM_DIRTY_LOG_PAGE_OFFSET: where in a vCPU's file its dirty ring is, in pages. */
const ringPage = 64;

/** KVM_CREATE_GUEST_MEMFD's flags for memory that the VMM maps too: MMAP and INIT_SHARED. */
const sharedGuestMemfd = 3;

/** The functions of csrc/kvm.h. */
export interface KvmLibrary {
  readonly native: NativeLibrary;
  ioctl(fd: number, request: number, argument: number): number;
  apply(vm: number, operations: number, count: number): number;
  kick(run: number, thread: number): number;
  mapMemory(size: number, fd: number, offset?: number): number;
  unmapMemory(address: number, size: number): number;
}

/** Loads the native library and looks up what a KVM host needs. Throws `UNSUPPORTED`. */
export function loadKvmLibrary(): KvmLibrary {
  const native = loadNativeLibrary();
  const map = native.function('int32_t memslots_memory_map(double, int32_t, double, void *)');
  const address = new BigUint64Array(1);
  return {
    native,
    ioctl: native.function('int32_t memslots_ioctl(int32_t, uint32_t, uintptr_t)'),
    apply: native.function('int32_t memslots_kvm_apply(int32_t, uintptr_t, uint32_t)'),
    kick: native.function('int32_t memslots_kvm_kick(uintptr_t, int32_t)'),
    mapMemory(size, fd, offset = 0) {
      const result = map(size, fd, offset, address);
      return result < 0 ? result : Number(address[0]);
    },
    unmapMemory: native.function('int32_t memslots_memory_unmap(uintptr_t, double)'),
  };
}

/** Opens /dev/kvm, or throws an `UNSUPPORTED` error that says why not and what to do. */
export function openKvm(path = '/dev/kvm'): number {
  try {
    return openSync(path, 'r+');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const reasons: Record<string, string> = {
      ENOENT: `there is no ${path}: the kvm module isn't loaded, or this machine has no virtualisation`,
      EACCES: `${path} may not be opened: join its group (usually kvm), or ask for read and write permission`,
      EPERM: `${path} may not be opened: a sandbox or container forbids it`,
    };
    const message = reasons[code ?? ''] ?? `${path} can't be opened: ${(error as Error).message}`;
    throw new MemorySlotsError('UNSUPPORTED', message, { cause: error });
  }
}

class MappedMemory extends HostMemory {
  readonly size: number;
  readonly hostAddress: number;
  override readonly guestMemfd: number;
  readonly #native: NativeLibrary;
  #view: Uint8Array | undefined;

  constructor(native: NativeLibrary, address: number, size: number, guestMemfd: number) {
    super();
    this.guestMemfd = guestMemfd;
    this.#native = native;
    this.hostAddress = address;
    this.size = size;
  }

  bytes(offset: number, length: number): Uint8Array {
    if (!(offset >= 0 && length >= 0 && offset + length <= this.size)) {
      const asked = `${hex(length)} bytes at ${hex(offset)}`;
      throw new MemorySlotsError('INVALID', `${asked} lie outside guest memory of ${hex(this.size)} bytes`);
    }
    this.#view ??= new Uint8Array(this.#native.koffi.view(BigInt(this.hostAddress), this.size) as ArrayBuffer);
    return this.#view.subarray(offset, offset + length);
  }
}

/** A vCPU of the kernel. There is no way to destroy one before its VM, so what is given back is kept for reuse. */
interface Vcpu {
  readonly fd: number;
  readonly runAddress: number;
  /** `struct kvm_sregs` as after reset. */
  readonly pristine: Uint8Array;
}

/** How to make a {@link LinuxBackend}. */
export interface LinuxOptions {
  /** Default `/dev/kvm`. */
  readonly path?: string;
  /** Default `bitmap`; see MachineOptions.dirtyLog. */
  readonly dirtyLog?: 'bitmap' | 'ring';
}

/** A virtual machine of the Linux kernel's KVM. Owner thread only, but for `kick`. */
export class LinuxBackend implements Backend {
  readonly kind = 'kvm';
  readonly capabilities: Capabilities;
  readonly dirtyRings?: LinuxDirtyRings;
  readonly #arena: Arena;
  readonly #library: KvmLibrary;
  readonly #device: number;
  readonly #vm: number;
  readonly #runBytes: number;
  readonly #memories: MappedMemory[] = [];
  readonly #vcpus = new Map<number, Vcpu>();
  /** Arena offset of the line of each vCPU in use. */
  readonly #lines = new Map<number, number>();
  readonly #base: number;
  /** KVM_GET_DIRTY_LOG leaves the log as it is, and KVM_CLEAR_DIRTY_LOG clears what was read. */
  #manualDirtyLog = false;
  #closed = false;

  /** Opens the device and creates a VM. Throws `UNSUPPORTED` where that can't be, saying what is missing. */
  constructor(arena: Arena, { path, dirtyLog = 'bitmap' }: LinuxOptions = {}) {
    this.#arena = arena;
    this.#library = loadKvmLibrary();
    this.#base = addressOf(arena);
    this.#device = openKvm(path);
    try {
      const version = this.#library.ioctl(this.#device, requests.getApiVersion, 0);
      if (version !== 12) {
        throw new MemorySlotsError('UNSUPPORTED', `KVM's API version is ${version}; this library knows version 12`);
      }
      this.#installKick();
      this.#vm = this.#must('KVM_CREATE_VM', this.#library.ioctl(this.#device, requests.createVm, 0));
    } catch (error) {
      closeSync(this.#device);
      throw error;
    }
    try {
      this.capabilities = this.#readCapabilities();
      if (dirtyLog === 'ring') this.dirtyRings = this.#enableRings();
      else this.#manualDirtyLog = this.capabilities.manualDirtyLog && this.#enable(extensions.manualDirtyLog, 1);
      this.#runBytes = this.#library.ioctl(this.#device, requests.getVcpuMapSize, 0);
    } catch (error) {
      closeSync(this.#vm);
      closeSync(this.#device);
      throw error;
    }
  }

  #installKick(): void {
    const result = this.#library.native.function('int32_t memslots_kick_install()')();
    if (result < 0) {
      const why = `the kick signal (SIGRTMIN + 4) can't be had: ${errnoName(result)}`;
      throw new MemorySlotsError('UNSUPPORTED', `${why}; another part of this process handles it`);
    }
  }

  #readCapabilities(): Capabilities {
    const pageSize = this.#library.native.function('int32_t memslots_page_size()')();
    const check = (extension: number) => Math.max(0, this.#library.ioctl(this.#vm, requests.checkExtension, extension));
    for (const [name, number] of Object.entries({
      KVM_CAP_USER_MEMORY: extensions.userMemory,
      KVM_CAP_IMMEDIATE_EXIT: extensions.immediateExit,
    })) {
      if (!check(number)) throw new MemorySlotsError('UNSUPPORTED', `this KVM lacks ${name}, which is needed`);
    }
    return {
      slots: check(extensions.slots) || 32,
      addressSpaces: check(extensions.addressSpaces) || 1,
      pageSize,
      slotAlignment: Math.max(pageSize, slotAlignments[process.arch] ?? 0),
      largestSlot: (2 ** 31 - 1) * pageSize,
      readonlyMemory: check(extensions.readonlyMemory) > 0,
      manualDirtyLog: check(extensions.manualDirtyLog) > 0,
      dirtyRing: check(extensions.dirtyRingOrdered) || check(extensions.dirtyRing),
      guestMemfd: (check(extensions.guestMemfdFlags) & sharedGuestMemfd) === sharedGuestMemfd,
      maxVcpus: check(extensions.vcpus) || 4,
    };
  }

  /** Before any vCPU exists: KVM refuses it afterwards. */
  #enableRings(): LinuxDirtyRings {
    const { bytes } = LinuxDirtyRings;
    const kinds = [extensions.dirtyRingOrdered, extensions.dirtyRing];
    if (this.capabilities.dirtyRing < bytes || !kinds.some((kind) => this.#enable(kind, bytes))) {
      const asked = `this KVM has no dirty ring of ${formatSize(bytes)}, which dirtyLog 'ring' asks for`;
      throw new MemorySlotsError('UNSUPPORTED', `${asked} (KVM_CAP_DIRTY_LOG_RING, Linux 5.11): use 'bitmap'`);
    }
    const { native, ioctl, mapMemory, unmapMemory } = this.#library;
    const offset = ringPage * this.capabilities.pageSize;
    return new LinuxDirtyRings({
      collect: native.function('int32_t memslots_kvm_ring_collect(uintptr_t, uint32_t, void *, void *)'),
      reset: () => ioctl(this.#vm, requests.resetDirtyRings, 0),
      map: (vcpu, size) => this.#must('mapping a dirty ring', mapMemory(size, vcpu, offset)),
      unmap: unmapMemory,
    });
  }

  /** KVM_ENABLE_CAP: whether KVM took it. */
  #enable(capability: number, value: number): boolean {
    const argument = new BigUint64Array(13);
    argument[0] = BigInt(capability);
    argument[1] = BigInt(value);
    return this.#library.ioctl(this.#vm, requests.enableCapability, this.#address(argument)) === 0;
  }

  #must(what: string, result: number): number {
    if (result < 0) throw new MemorySlotsError('IOCTL', `${what} failed with ${errnoName(result)}`);
    return result;
  }

  apply(operations: number, count: number): number {
    return this.#library.apply(this.#vm, this.#base + operations, count);
  }

  getDirtyLog(addressSpace: number, id: number, pages: number, bitmap: Uint8Array): number {
    // struct kvm_dirty_log, and kvm_clear_dirty_log, whose first word and pointer are the same.
    const argument = new BigUint64Array(3);
    const words = new Uint32Array(argument.buffer);
    words[0] = addressSpace * 65536 + id;
    argument[1] = BigInt(this.#address(bitmap));
    const result = this.#library.ioctl(this.#vm, requests.getDirtyLog, this.#address(argument));
    if (result < 0 || !this.#manualDirtyLog) return result;
    words[1] = pages;
    argument[2] = argument[1];
    argument[1] = 0n;
    return this.#library.ioctl(this.#vm, requests.clearDirtyLog, this.#address(argument));
  }

  allocate(bytes: number, options: AllocateOptions = {}): HostMemory {
    const guestMemfd = options.guestMemfd ? this.#createGuestMemfd(bytes) : -1;
    const address = this.#library.mapMemory(bytes, guestMemfd);
    if (address < 0) {
      if (guestMemfd >= 0) closeSync(guestMemfd);
      throw new MemorySlotsError('CAPACITY', `${formatSize(bytes)} of guest memory: ${errnoName(address)}`);
    }
    const memory = new MappedMemory(this.#library.native, address, bytes, guestMemfd);
    this.#memories.push(memory);
    return memory;
  }

  #createGuestMemfd(bytes: number): number {
    if (!this.capabilities.guestMemfd) {
      throw new MemorySlotsError('UNSUPPORTED', 'this KVM has no guest_memfd that a VMM can map (Linux 6.18 has)');
    }
    const argument = new BigUint64Array(8);
    argument[0] = BigInt(bytes);
    argument[1] = BigInt(sharedGuestMemfd);
    const result = this.#library.ioctl(this.#vm, requests.createGuestMemfd, this.#address(argument));
    return this.#must('KVM_CREATE_GUEST_MEMFD', result);
  }

  createVcpu(index: number, line: number, guest: GuestProgram): VcpuSetup {
    if (guest.start === undefined) {
      throw new MemorySlotsError('INVALID', `vCPU ${index} needs a start state to run on real KVM`);
    }
    const vcpu = this.#vcpus.get(index) ?? this.#newVcpu(index);
    const special = vcpu.pristine.slice();
    const general = initialState(guest.start, special);
    this.#must('KVM_SET_SREGS', this.#library.ioctl(vcpu.fd, requests.setSpecialRegisters, this.#address(special)));
    this.#must('KVM_SET_REGS', this.#library.ioctl(vcpu.fd, requests.setRegisters, this.#address(general)));
    this.#lines.set(index, line);
    return { kind: 'kvm', fd: vcpu.fd, runAddress: vcpu.runAddress, runBytes: this.#runBytes };
  }

  #newVcpu(index: number): Vcpu {
    const fd = this.#must(`KVM_CREATE_VCPU ${index}`, this.#library.ioctl(this.#vm, requests.createVcpu, index));
    let runAddress = -1;
    try {
      const pristine = new Uint8Array(312);
      this.#must('KVM_GET_SREGS', this.#library.ioctl(fd, requests.getSpecialRegisters, this.#address(pristine)));
      runAddress = this.#must('mapping kvm_run', this.#library.mapMemory(this.#runBytes, fd));
      this.dirtyRings?.add(fd);
      const vcpu = { fd, pristine, runAddress };
      this.#vcpus.set(index, vcpu);
      return vcpu;
    } catch (error) {
      if (runAddress >= 0) this.#library.unmapMemory(runAddress, this.#runBytes);
      closeSync(fd);
      throw error;
    }
  }

  #address(view: ArrayBufferView): number {
    return Number(this.#library.native.koffi.address(view));
  }

  kick(index: number): void {
    const line = this.#lines.get(index);
    if (line === undefined) return;
    const thread = Atomics.load(this.#arena.words, (line >>> 2) + lineWords.thread);
    this.#library.kick(this.#vcpus.get(index)!.runAddress, thread);
  }

  /** Has the kernel finish what it was doing for the guest (an MMIO read that waits for its data), and lets go of it. */
  destroyVcpu(index: number): void {
    if (!this.#lines.delete(index)) return;
    const { fd, runAddress } = this.#vcpus.get(index)!;
    this.#library.kick(runAddress, 0);
    this.#library.ioctl(fd, requests.run, 0);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.dirtyRings?.close();
    for (const { fd, runAddress } of this.#vcpus.values()) {
      this.#library.unmapMemory(runAddress, this.#runBytes);
      closeSync(fd);
    }
    closeSync(this.#vm);
    closeSync(this.#device);
    for (const { hostAddress, size, guestMemfd } of this.#memories) {
      this.#library.unmapMemory(hostAddress, size);
      if (guestMemfd >= 0) closeSync(guestMemfd);
    }
  }
}
