import { closeSync, openSync } from 'node:fs';
import { loadNativeLibrary } from '../../ts/core/native.js';
import type { ProfileName } from '../../ts/kvm/simulated-profiles.js';
import type { RegionRequest, U64 } from '../../ts/kvm/simulated-request.js';

/** _IO, _IOW and _IOWR of KVM's ioctls: direction, bytes of the argument, number. */
const request = (direction: number, bytes: number, number: number): number =>
  ((direction << 30) | (bytes << 16) | (0xae << 8) | number) >>> 0;

const ioctls = {
  createVm: request(0, 0, 0x01),
  createVcpu: request(0, 0, 0x41),
  checkExtension: request(0, 0, 0x03),
  setUserMemoryRegion: request(1, 32, 0x46),
  setUserMemoryRegion2: request(1, 160, 0x49),
  getDirtyLog: request(1, 16, 0x42),
  clearDirtyLog: request(3, 24, 0xc0),
  enableCapability: request(1, 104, 0xa3),
  createGuestMemfd: request(3, 64, 0xd4),
} as const;

const capabilities = {
  readonlyMemory: 81,
  slots: 10,
  addressSpaces: 118,
  manualDirtyLog: 168,
  userMemory2: 231,
  guestMemfd: 234,
} as const;

/** An address that no process maps. */
const unmapped = 0x10;

/** Memory at a fixed address, in which arguments are put together: an ordinary array's bytes don't move. */
class Argument {
  readonly bytes: Uint8Array;
  readonly address: number;
  readonly #view: DataView;

  constructor(bytes: number) {
    this.bytes = new Uint8Array(new ArrayBuffer(bytes));
    this.#view = new DataView(this.bytes.buffer);
    this.address = Number(loadNativeLibrary().koffi.address(this.bytes));
  }

  u32(offset: number, value: number): void {
    this.#view.setUint32(offset, value >>> 0, true);
  }

  u64(offset: number, value: U64): void {
    if (typeof value === 'number') {
      this.u32(offset, value % 2 ** 32);
      this.u32(offset + 4, Math.floor(value / 2 ** 32));
    } else this.#view.setBigUint64(offset, value, true);
  }
}

/** Options of a SimulatedBackend that make it follow the rules of this host. */
export interface HostOptions {
  readonly profile: ProfileName;
  readonly slots: number;
  readonly physicalAddressBits: number;
  readonly hostLimit: number;
}

/** Why the real KVM can't be used here, or undefined if it can. */
export function kvmMissing(): string | undefined {
  try {
    closeSync(openSync('/dev/kvm', 'r+'));
    loadNativeLibrary();
    return undefined;
  } catch (error) {
    return `no usable KVM here: ${(error as Error).message}`;
  }
}

/**
 * The memory slots of a real VM, with the methods of SimulatedKernel: each makes one ioctl. Nothing maps the host
 * addresses, and nothing runs.
 */
export class RealKernel {
  readonly kvm = openSync('/dev/kvm', 'r+');
  readonly vm: number;
  readonly #ioctl = loadNativeLibrary().function('int32_t memslots_ioctl(int32_t, uint32_t, uintptr_t)');
  readonly #argument = new Argument(256);
  /** Bitmaps of slots up to 64 GiB. */
  readonly #bitmap = new Argument(2 ** 21);

  readonly #vcpus: number[] = [];

  constructor() {
    this.vm = this.#ioctl(this.kvm, ioctls.createVm, 0);
    if (this.vm < 0) throw new Error(`KVM_CREATE_VM failed with errno ${-this.vm}`);
  }

  checkExtension(name: keyof typeof capabilities): number {
    return this.#ioctl(this.vm, ioctls.checkExtension, capabilities[name]);
  }

  setUserMemoryRegion(region: RegionRequest | null, fd = this.vm): number {
    return this.#setRegion(fd, ioctls.setUserMemoryRegion, region);
  }

  setUserMemoryRegion2(region: RegionRequest | null): number {
    return this.#setRegion(this.vm, ioctls.setUserMemoryRegion2, region);
  }

  #setRegion(fd: number, ioctl: number, region: RegionRequest | null): number {
    if (region === null) return this.#ioctl(fd, ioctl, unmapped);
    const argument = this.#argument;
    argument.u32(0, region.slot);
    argument.u32(4, region.flags);
    argument.u64(8, region.gpa);
    argument.u64(16, region.size);
    argument.u64(24, region.host);
    argument.u64(32, region.guestMemfdOffset ?? 0);
    argument.u32(40, region.guestMemfd ?? -1);
    return this.#ioctl(fd, ioctl, argument.address);
  }

  getDirtyLog(slot: number, bitmap: Uint8Array | null): number {
    if (bitmap !== null) this.#bitmap.bytes.set(bitmap);
    this.#argument.u32(0, slot);
    this.#argument.u64(8, bitmap === null ? unmapped : this.#bitmap.address);
    const result = this.#ioctl(this.vm, ioctls.getDirtyLog, this.#argument.address);
    if (bitmap !== null && result === 0) bitmap.set(this.#bitmap.bytes.subarray(0, bitmap.length));
    return result;
  }

  clearDirtyLog(slot: number, firstPage: U64, pageCount: number, bitmap: Uint8Array | null): number {
    if (bitmap !== null) this.#bitmap.bytes.set(bitmap);
    this.#argument.u32(0, slot);
    this.#argument.u32(4, pageCount);
    this.#argument.u64(8, firstPage);
    this.#argument.u64(16, bitmap === null ? unmapped : this.#bitmap.address);
    return this.#ioctl(this.vm, ioctls.clearDirtyLog, this.#argument.address);
  }

  enableManualDirtyLog(value: number): number {
    const argument = new Argument(104);
    argument.u32(0, capabilities.manualDirtyLog);
    argument.u64(8, value);
    return this.#ioctl(this.vm, ioctls.enableCapability, argument.address);
  }

  createGuestMemfd(size: U64): number {
    const argument = new Argument(64);
    argument.u64(0, size);
    return this.#ioctl(this.vm, ioctls.createGuestMemfd, argument.address);
  }

  /** A vCPU that never runs; it goes with the VM. */
  createVcpu(index: number): void {
    const fd = this.#ioctl(this.vm, ioctls.createVcpu, index);
    if (fd < 0) throw new Error(`KVM_CREATE_VCPU failed with errno ${-fd}`);
    this.#vcpus.push(fd);
  }

  /** What this host adds to the rules of its architecture, found by asking. */
  static hostOptions(): HostOptions {
    const kernel = new RealKernel();
    const creates = (gpa: number, host: number): boolean => {
      const region = { slot: 0, flags: 0, gpa, size: 4096, host };
      if (kernel.setUserMemoryRegion(region) !== 0) return false;
      kernel.setUserMemoryRegion({ ...region, size: 0 });
      return true;
    };
    try {
      let physicalAddressBits = 32;
      while (physicalAddressBits < 52 && creates(2 ** physicalAddressBits, 0)) physicalAddressBits++;
      const limits = [2 ** 63 - 4096, 2 ** 56 - 4096, 2 ** 47 - 4096];
      const hostLimit = limits.find((limit) => creates(0, limit - 4096));
      if (hostLimit === undefined) throw new Error('this host takes none of the known limits of user space');
      return {
        profile: kernel.checkExtension('addressSpaces') > 1 ? 'x86-smm' : 'x86',
        slots: kernel.checkExtension('slots'),
        physicalAddressBits,
        hostLimit,
      };
    } finally {
      kernel.close();
    }
  }

  close(): void {
    for (const fd of this.#vcpus) closeSync(fd);
    closeSync(this.vm);
    closeSync(this.kvm);
  }
}
