import type { Core } from './core.js';
import { MemorySlotsError } from './errors.js';
import { type Layout, parseLayout } from './layout.js';
import { wasmCore } from './wasm.js';

/** One range of guest-physical addresses: `struct memslots_range` of csrc/slots.h. Sizes and addresses in bytes. */
export interface MemoryRange {
  gpa: number;
  size: number;
  /** Host-virtual address behind `gpa`; for a range that nothing backs, 0. */
  host: number;
  /** Slot: offset into the guest_memfd. Map entry: offset into the region. */
  offset: number;
  /** Slot or entry id. */
  id: number;
  /** KVM's flags and `BACKED`. */
  flags: number;
  /** The memory region's number. */
  region: number;
  /** Map entry: the commit since which every address of it has been backed. */
  since: number;
  addressSpace: number;
  /** File descriptor, −1 for none. */
  guestMemfd: number;
}

/** What a worker needs to use an arena in place. Structured-cloneable. */
export interface ArenaHandle {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  /** Where this worker's WASM stack ends (it grows down). */
  readonly stackTop: number;
}

const headerOffset = 0x100000;
const stackBytes = 0x4000;
const layoutBytes = 0x1000;
const pageBytes = 0x10000;
const twoTo32 = 2 ** 32;

/**
 * One block of memory that the native build, the WASM build, and every worker use in place: slot tables, transactions,
 * plans and lock words live here, at u32 byte offsets. This is the one file that knows its layout, which comes from C.
 *
 * Below 1 MiB lie the WASM module's own data and the owner's stack. At 1 MiB is a header (magic, version, bytes in
 * use), then whatever {@link allocate} handed out. Only the thread that created the arena allocates; nothing is freed.
 */
export class Arena {
  readonly memory: WebAssembly.Memory;
  readonly module: WebAssembly.Module;
  /** Total size in bytes. */
  readonly bytes: number;
  readonly layout: Layout;
  /** The WASM core of this thread. */
  readonly wasm: Core;
  /** The arena's bytes as signed words: what Atomics work on. */
  readonly words: Int32Array;
  readonly unsigned: Uint32Array;
  readonly octets: Uint8Array;
  #attached = false;

  private constructor(module: WebAssembly.Module, memory: WebAssembly.Memory, stackTop: number) {
    this.module = module;
    this.memory = memory;
    // The type says ArrayBuffer; a shared memory's is a SharedArrayBuffer. The views work the same.
    const buffer: ArrayBufferLike = memory.buffer;
    this.bytes = buffer.byteLength;
    this.words = new Int32Array(buffer);
    this.unsigned = new Uint32Array(buffer);
    this.octets = new Uint8Array(buffer);
    this.wasm = wasmCore(module, memory, stackTop);
    this.layout = parseLayout(this.#layoutText(this.wasm, stackTop - stackBytes));
  }

  /** A new arena of at least `bytes` bytes beyond the first MiB, zeroed. `shared` must say how `module` was built. */
  static create(module: WebAssembly.Module, bytes: number, shared: boolean): Arena {
    const pages = Math.ceil((headerOffset + bytes) / pageBytes) + 16;
    let memory: WebAssembly.Memory;
    try {
      memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared });
    } catch (error) {
      const message = `a${shared ? ' shared' : ''} memory of ${pages * pageBytes} bytes can't be had`;
      const hint = 'a limit on virtual memory (ulimit -v) is a common cause';
      throw new MemorySlotsError('UNSUPPORTED', `${message}: ${(error as Error).message}; ${hint}`, { cause: error });
    }
    const arena = new Arena(module, memory, headerOffset);
    arena.unsigned[headerOffset / 4] = arena.layout.constants.MAGIC;
    arena.unsigned[headerOffset / 4 + 1] = arena.layout.constants.ABI_VERSION;
    arena.unsigned[headerOffset / 4 + 2] = headerOffset + 128;
    return arena;
  }

  /** The arena of another thread, in this one. Throws `INVALID` if `handle` isn't one's. */
  static attach(handle: ArenaHandle): Arena {
    const header = new Uint32Array(handle.memory.buffer, headerOffset, 2);
    const arena = new Arena(handle.module, handle.memory, handle.stackTop);
    const { MAGIC, ABI_VERSION } = arena.layout.constants;
    if (header[0] !== MAGIC || header[1] !== ABI_VERSION) {
      throw new MemorySlotsError('INVALID', 'this memory is not an arena, or one of another version');
    }
    arena.#attached = true;
    return arena;
  }

  /** Whether another thread created it: then this one must not allocate. */
  get isAttached(): boolean {
    return this.#attached;
  }

  /** What another worker needs to attach. Reserves a stack for it. Creating thread only. */
  handle(): ArenaHandle {
    return { module: this.module, memory: this.memory, stackTop: this.allocate(stackBytes) + stackBytes };
  }

  /** Reserves `bytes` zeroed bytes at a multiple of `alignment` (a power of two). Creating thread only. */
  allocate(bytes: number, alignment = 128): number {
    const top = headerOffset / 4 + 2;
    const offset = Math.ceil(this.unsigned[top]! / alignment) * alignment;
    if (offset + bytes > this.bytes) {
      const message = `${bytes} bytes don't fit an arena of ${this.bytes} bytes of which ${offset} are in use`;
      throw new MemorySlotsError('CAPACITY', message);
    }
    this.unsigned[top] = offset + bytes;
    return offset;
  }

  /** Refuses a core whose layout differs from this arena's. */
  mustMatch(core: Core): void {
    if (this.#layoutText(core, headerOffset - stackBytes) !== this.layout.text) {
      const message = `the ${core.build} and ${this.wasm.build} builds of the core lay out memory differently`;
      throw new MemorySlotsError('UNSUPPORTED', `${message}: build both again`);
    }
  }

  /** Has C write its layout at the far end of a stack, which is free between calls. */
  #layoutText(core: Core, offset: number): string {
    const length = core.layout(offset, layoutBytes);
    if (length < 0) throw new MemorySlotsError('UNSUPPORTED', `the core's layout takes more than ${layoutBytes} bytes`);
    return new TextDecoder().decode(this.octets.slice(offset, offset + length));
  }

  /** The u64 at byte `offset`, which must be below 2^53. */
  u64(offset: number): number {
    const index = offset >>> 2;
    return this.unsigned[index + 1]! * twoTo32 + this.unsigned[index]!;
  }

  setU64(offset: number, value: number): void {
    const index = offset >>> 2;
    this.unsigned[index] = value >>> 0;
    this.unsigned[index + 1] = value / twoTo32;
  }

  u32(offset: number): number {
    return this.unsigned[offset >>> 2]!;
  }

  setU32(offset: number, value: number): void {
    this.unsigned[offset >>> 2] = value;
  }

  readRange(offset: number): MemoryRange {
    const { range } = this.layout;
    return {
      gpa: this.u64(offset + range.gpa),
      size: this.u64(offset + range.size),
      host: this.u64(offset + range.host),
      offset: this.u64(offset + range.offset),
      id: this.u32(offset + range.id),
      flags: this.u32(offset + range.flags),
      region: this.u32(offset + range.region),
      since: this.u32(offset + range.since),
      addressSpace: this.u32(offset + range.address_space),
      guestMemfd: this.words[(offset + range.guest_memfd) >>> 2]!,
    };
  }

  writeRange(offset: number, value: MemoryRange): void {
    const { range } = this.layout;
    this.setU64(offset + range.gpa, value.gpa);
    this.setU64(offset + range.size, value.size);
    this.setU64(offset + range.host, value.host);
    this.setU64(offset + range.offset, value.offset);
    this.setU32(offset + range.id, value.id);
    this.setU32(offset + range.flags, value.flags);
    this.setU32(offset + range.region, value.region);
    this.setU32(offset + range.since, value.since);
    this.setU32(offset + range.address_space, value.addressSpace);
    this.words[(offset + range.guest_memfd) >>> 2] = value.guestMemfd;
  }
}
