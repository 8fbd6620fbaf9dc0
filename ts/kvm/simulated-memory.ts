import { formatRange, formatSize, hex, mustBeAligned, mustBeCount } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import { HostMemory } from './backend.js';

/** Where simulated host memory starts: looks like a user-space address, and is page-aligned on every architecture. */
const hostBase = 0x7000_0000_0000;
const chunkBytes = 2 ** 30;

/** Shared between threads where the platform can; a page that isn't isolated has one thread only. */
export function sharedBuffer(bytes: number): ArrayBufferLike {
  return typeof SharedArrayBuffer === 'undefined' ? new ArrayBuffer(bytes) : new SharedArrayBuffer(bytes);
}

/** What other threads need to reach the same memory. Structured-cloneable. */
export interface MemoryHandle {
  /** Buffers of 1 GiB, the last one smaller; none if nothing backs the addresses. */
  readonly chunks: readonly ArrayBufferLike[];
  /** Bytes in all. */
  readonly size: number;
}

/** All host memory of a simulated machine: one range of simulated host addresses. Any thread. */
export class SimulatedMemory {
  readonly handle: MemoryHandle;
  readonly #bytes: readonly Uint8Array[];
  readonly #views: readonly DataView[];

  constructor(handle: MemoryHandle) {
    this.handle = handle;
    this.#bytes = handle.chunks.map((chunk) => new Uint8Array(chunk));
    this.#views = handle.chunks.map((chunk) => new DataView(chunk));
  }

  /** `size` bytes of memory, which the operating system commits as they are touched. Not `backed`: addresses only. */
  static create(size: number, backed: boolean): SimulatedMemory {
    const chunks: ArrayBufferLike[] = [];
    for (let at = 0; backed && at < size; at += chunkBytes) chunks.push(sharedBuffer(Math.min(chunkBytes, size - at)));
    return new SimulatedMemory({ chunks, size });
  }

  /** The chunk that holds the `size` bytes at host address `host`, or undefined if they aren't backed, or straddle. */
  view(host: number, size: number): DataView | undefined {
    const offset = host - hostBase;
    if (!(offset >= 0 && offset + size <= this.handle.size)) return undefined;
    const view = this.#views[Math.floor(offset / chunkBytes)];
    return view !== undefined && (offset % chunkBytes) + size <= view.byteLength ? view : undefined;
  }

  /** Where in its chunk host address `host` lies. */
  within(host: number): number {
    return (host - hostBase) % chunkBytes;
  }

  /** The bytes at `host`, shared with the guest. Throws `INVALID` if they aren't within one chunk of memory. */
  bytes(host: number, length: number): Uint8Array {
    if (this.view(host, length) === undefined) throw this.#outside(host, length);
    const within = this.within(host);
    return this.#bytes[Math.floor((host - hostBase) / chunkBytes)]!.subarray(within, within + length);
  }

  /** Copies between `data` and the memory at `host`, which may lie in several chunks. */
  copy(host: number, data: Uint8Array, write: boolean): void {
    for (let done = 0; done < data.length; ) {
      const length = Math.min(data.length - done, chunkBytes - this.within(host + done));
      const memory = this.bytes(host + done, length);
      const part = data.subarray(done, done + length);
      if (write) memory.set(part);
      else part.set(memory);
      done += length;
    }
  }

  #outside(host: number, length: number): MemorySlotsError {
    const held = formatRange(hostBase, this.handle.size);
    if (this.handle.chunks.length === 0) {
      return new MemorySlotsError('UNSUPPORTED', `the simulated memory ${held} was reserved without backing`);
    }
    const reason = `aren't within one ${formatSize(chunkBytes)} chunk of the simulated memory ${held}`;
    return new MemorySlotsError('INVALID', `host addresses ${formatRange(host, length)} ${reason}`);
  }
}

/** Hands out a {@link SimulatedMemory} from its start. Nothing is freed before the machine is. */
export class SimulatedAllocator {
  readonly #memory: SimulatedMemory;
  readonly #pageSize: number;
  readonly #alignment: number;
  #used = 0;

  /** Both in bytes. `alignment`: what the host addresses of slots must be aligned to on this architecture. */
  constructor(memory: SimulatedMemory, pageSize: number, alignment: number) {
    this.#memory = memory;
    this.#pageSize = pageSize;
    this.#alignment = alignment;
  }

  /** Throws `INVALID` unless `size` is whole pages, `CAPACITY` if less is left. */
  allocate(size: number, guestMemfd = -1): HostMemory {
    mustBeAligned('the size of guest memory', size, this.#pageSize);
    const offset = Math.ceil(this.#used / this.#alignment) * this.#alignment;
    const total = this.#memory.handle.size;
    if (offset + size > total) {
      const message = `${formatSize(size)} of simulated memory can't be had: ${formatSize(offset)} of`;
      throw new MemorySlotsError('CAPACITY', `${message} ${formatSize(total)} are in use (option memoryBytes)`);
    }
    this.#used = offset + size;
    return new SimulatedHostMemory(this.#memory, hostBase + offset, size, guestMemfd);
  }
}

class SimulatedHostMemory extends HostMemory {
  readonly size: number;
  readonly hostAddress: number;
  override readonly guestMemfd: number;
  readonly #memory: SimulatedMemory;

  constructor(memory: SimulatedMemory, hostAddress: number, size: number, guestMemfd: number) {
    super();
    this.guestMemfd = guestMemfd;
    this.#memory = memory;
    this.hostAddress = hostAddress;
    this.size = size;
  }

  bytes(offset: number, length: number): Uint8Array {
    if (!(mustBeCount('an offset', offset) + mustBeCount('a length', length) <= this.size)) {
      const message = `${length} bytes from offset ${hex(offset)} lie outside memory of ${formatSize(this.size)}`;
      throw new MemorySlotsError('INVALID', message);
    }
    return this.#memory.bytes(this.hostAddress + offset, length);
  }
}
