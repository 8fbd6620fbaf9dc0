import type { Arena, MemoryRange } from '../core/arena.js';
import { hex } from '../core/checks.js';
import { errno } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import { bitmapWords, DirtyBitmaps } from './simulated-dirty.js';
import { type BoundRange, type FileTable, unbind } from './simulated-files.js';
import type { Profile } from './simulated-profiles.js';
import { awaitAccesses, invalidSlot, slotFlags } from './simulated-readers.js';

/** A u64: a number as long as it is exact, a bigint above 2^53. */
export type U64 = number | bigint;

/** struct kvm_userspace_memory_region, and with the last two fields struct kvm_userspace_memory_region2. */
export interface RegionRequest {
  /** Slot id in the low 16 bits, address space above. */
  readonly slot: number;
  /** KVM_MEM_*: 1 log dirty pages, 2 read-only, 4 guest_memfd. */
  readonly flags: number;
  /** Bytes. */
  readonly gpa: U64;
  /** Bytes; 0 deletes. */
  readonly size: U64;
  /** Host-virtual address, in bytes. */
  readonly host: U64;
  readonly guestMemfd?: number;
  /** Bytes. */
  readonly guestMemfdOffset?: U64;
}

/** A slot as the kernel holds it. Sizes and addresses in bytes. */
export interface SlotState {
  readonly addressSpace: number;
  readonly id: number;
  readonly gpa: number;
  readonly size: number;
  readonly host: number;
  readonly flags: number;
  /** Into the guest_memfd; 0 without one. */
  readonly guestMemfdOffset: number;
}

/** What a successful call does to slots. */
export type Change = 'create' | 'delete' | 'move' | 'flags' | 'nothing';

/** One call, as hooks see it. */
export interface KernelCall {
  /** 1 for the first call of this kernel. Calls of both region ioctls count, and only they. */
  readonly number: number;
  readonly name: 'KVM_SET_USER_MEMORY_REGION' | 'KVM_SET_USER_MEMORY_REGION2';
  readonly request: RegionRequest | null;
}

/** Code that runs in the middle of calls, on the owner's thread. */
export interface CallHooks {
  /** Before anything is checked. A positive errno makes the call fail with it, having done nothing. */
  before?(call: KernelCall): number | undefined;
  /**
   * Each time vCPUs see other slots than before: once in a create or a change of flags, twice in a delete or a move,
   * the first time with the slot marked invalid, which makes vCPUs that touch it wait.
   */
  published?(call: KernelCall, change: Change): void;
  /** `result` is 0 or a negative errno. */
  after?(call: KernelCall, result: number): void;
}

/** How a simulated kernel behaves. */
export interface KernelOptions {
  readonly profile: Profile;
  /** How long a call takes that changes something, in microseconds. */
  readonly callMicroseconds: number;
  /** Bytes for dirty bitmaps; a slot that would need more can't be logged (ENOMEM). */
  readonly dirtyLogBytes: number;
  readonly files: FileTable;
}

const { logDirty, readonly, guestMemfd } = slotFlags;
/** The pages of a slot are counted in 31 bits. */
const mostPages = 2 ** 31 - 1;

/** One slot and what hangs on it. */
interface Slot extends SlotState {
  /** Place of its dirty bitmap, undefined if it isn't logged. */
  readonly bitmap: number | undefined;
  readonly bound: BoundRange | undefined;
}

interface AddressSpace {
  readonly slots: Map<number, Slot>;
  /** Arena offset of a plain table of the same slots, in which C looks for overlaps. */
  readonly table: number;
  /** Arena offset of the map that vCPUs look slots up in. */
  readonly map: number;
  generation: number;
}

/** A u64 argument; anything else is a mistake of the caller that no kernel would ever see. */
function mustBeU64(what: string, value: U64): U64 {
  const valid = typeof value === 'bigint' ? value >= 0n && value < 1n << 64n : Number.isInteger(value) && value >= 0;
  if (valid && value < 2 ** 64) return value;
  throw new MemorySlotsError('INVALID', `${what} must be an integer from 0 to 2^64 - 1, not ${value}`);
}

function mustBeU32(what: string, value: number): number {
  if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) return value;
  throw new MemorySlotsError('INVALID', `${what} must be an integer from 0 to 2^32 - 1, not ${value}`);
}

/**
 * The memory slots of a simulated KVM virtual machine. Answers KVM_SET_USER_MEMORY_REGION and its kin with the errno
 * the kernel gives, found by the same checks in the same order, and shows vCPUs the same states in between. All calls
 * return 0 or a negative errno, and throw only for arguments that C couldn't express. Owner thread only.
 */
export class SimulatedKernel {
  readonly profile: Profile;
  readonly files: FileTable;
  readonly #arena: Arena;
  readonly #spaces: readonly AddressSpace[];
  readonly #bitmaps: DirtyBitmaps;
  readonly #callMicroseconds: number;
  /** Arena offsets of one range to remove and one to add. */
  readonly #old: number;
  readonly #new: number;
  readonly #hooks = new Set<CallHooks>();
  readonly #readers = new Set<number>();
  #calls = 0;
  #dead = false;
  #manualProtect = 0;

  constructor(arena: Arena, options: KernelOptions) {
    const { profile } = options;
    const { wasm } = arena;
    this.#arena = arena;
    this.profile = profile;
    this.files = options.files;
    this.#callMicroseconds = options.callMicroseconds;
    this.#bitmaps = new DirtyBitmaps(options.dirtyLogBytes);
    this.#old = arena.allocate(arena.layout.range.bytes);
    this.#new = arena.allocate(arena.layout.range.bytes);
    this.#spaces = Array.from({ length: profile.addressSpaces }, () => {
      const table = arena.allocate(wasm.table_size(profile.slots));
      const map = arena.allocate(wasm.map_size(profile.slots));
      wasm.table_init(table, profile.slots);
      wasm.map_init(map, profile.slots);
      return { slots: new Map(), table, map, generation: 0 };
    });
  }

  /** Arena offsets of the maps that vCPUs read, by address space. @internal */
  get maps(): readonly number[] {
    return this.#spaces.map(({ map }) => map);
  }

  /** The buffer with all dirty bitmaps. @internal */
  get dirtyBuffer(): ArrayBufferLike {
    return this.#bitmaps.buffer;
  }

  /** Registers a vCPU's word, see simulated-readers.ts. @internal */
  addReader(word: number): void {
    this.#readers.add(word);
  }

  /** @internal */
  removeReader(word: number): void {
    this.#readers.delete(word);
  }

  /** Runs `hooks` in all calls from now on. The function returned takes them out again. */
  addHooks(hooks: CallHooks): () => void {
    this.#hooks.add(hooks);
    return () => this.#hooks.delete(hooks);
  }

  /** Makes every later call fail with EIO, as for a caller that isn't the process that made the machine. */
  kill(): void {
    this.#dead = true;
  }

  /** The slots of one address space, by ascending GPA. */
  layout(addressSpace = 0): SlotState[] {
    const slots = [...this.#space(addressSpace).slots.values()].sort((a, b) => a.gpa - b.gpa);
    return slots.map(({ bitmap, bound, ...state }) => state);
  }

  /** How often the set of slots of `addressSpace` was swapped: the kernel's own measure of what a call did. */
  generation(addressSpace = 0): number {
    return this.#space(addressSpace).generation;
  }

  /**
   * KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: bit 0 makes {@link getDirtyLog} leave the log as it is, so that
   * only {@link clearDirtyLog} clears; bit 1, allowed with bit 0, starts logs all dirty.
   */
  enableManualDirtyLog(value: number): number {
    if (this.#dead) return -errno.EIO;
    if (!this.profile.manualDirtyLog || (value !== 0 && value !== 1 && value !== 3)) return -errno.EINVAL;
    this.#manualProtect = value;
    return 0;
  }

  /** KVM_CREATE_GUEST_MEMFD with no flags, `size` in bytes: a file descriptor, or a negative errno. */
  createGuestMemfd(size: U64): number {
    mustBeU64('the size', size);
    if (this.#dead) return -errno.EIO;
    if (!this.profile.guestMemfd) return -errno.ENOTTY;
    if (size <= 0 || size >= 2 ** 63 || !this.#aligned(size)) return -errno.EINVAL;
    return this.files.createGuestMemfd(this, Number(size));
  }

  /** KVM_SET_USER_MEMORY_REGION. `null` stands for an argument that can't be read. */
  setUserMemoryRegion(request: RegionRequest | null): number {
    return this.#call('KVM_SET_USER_MEMORY_REGION', request);
  }

  /** KVM_SET_USER_MEMORY_REGION2, which knows guest_memfds. */
  setUserMemoryRegion2(request: RegionRequest | null): number {
    return this.#call('KVM_SET_USER_MEMORY_REGION2', request);
  }

  /**
   * KVM_GET_DIRTY_LOG: `slot` as in a request; `bitmap` holds whole 64-bit words, one bit a page, or is null for an
   * address that can't be written.
   */
  getDirtyLog(slot: number, bitmap: Uint8Array | null): number {
    const found = this.#loggedSlot(slot);
    if (typeof found === 'number') return found;
    const pages = found.size / this.profile.pageSize;
    const clear = (this.#manualProtect & 1) === 0;
    // A write and its bit are one access: none is to be harvested without the other.
    awaitAccesses(this.#arena.words, this.#readers);
    // Bits are cleared before they are copied out: an address that can't be written loses them.
    const out = bitmap ?? new Uint8Array(bitmapWords(pages) * 8);
    this.#mustHold(out, pages);
    this.#bitmaps.read(found.bitmap!, pages, out, clear);
    return bitmap === null ? -errno.EFAULT : 0;
  }

  /**
   * KVM_CLEAR_DIRTY_LOG: makes those of the `pageCount` pages from `firstPage` clean whose bit is set in `bitmap`, the
   * first bit being that of `firstPage`. The count may fall short of a multiple of 64 only at the slot's end.
   */
  clearDirtyLog(slot: number, firstPage: U64, pageCount: number, bitmap: Uint8Array | null): number {
    if (!this.profile.manualDirtyLog) return this.#dead ? -errno.EIO : -errno.ENOTTY;
    mustBeU64('the first page', firstPage);
    mustBeU32('the number of pages', pageCount);
    const aligned = typeof firstPage === 'bigint' ? firstPage % 64n === 0n : firstPage % 64 === 0;
    const found = this.#loggedSlot(slot, aligned);
    if (typeof found === 'number') return found;
    const left = found.size / this.profile.pageSize - Number(firstPage);
    if (left < 0 || pageCount > left || (pageCount < left && pageCount % 64 !== 0)) return -errno.EINVAL;
    if (bitmap === null) return bitmapWords(pageCount) > 0 ? -errno.EFAULT : 0;
    this.#mustHold(bitmap, pageCount);
    this.#bitmaps.clear(found.bitmap!, Number(firstPage), pageCount, bitmap);
    return 0;
  }

  #loggedSlot(slot: number, aligned = true): Slot | number {
    mustBeU32('the slot', slot);
    if (this.#dead) return -errno.EIO;
    const space = this.#spaces[slot >>> 16];
    const id = slot & 0xffff;
    if (space === undefined || id >= this.profile.slots || !aligned) return -errno.EINVAL;
    const found = space.slots.get(id);
    return found?.bitmap === undefined ? -errno.ENOENT : found;
  }

  #mustHold(bitmap: Uint8Array, pages: number): void {
    const bytes = bitmapWords(pages) * 8;
    if (bitmap.length >= bytes) return;
    const message = `a bitmap of ${pages} pages takes ${bytes} bytes, and there is room for ${bitmap.length}`;
    throw new MemorySlotsError('INVALID', message);
  }

  #space(addressSpace: number): AddressSpace {
    const space = this.#spaces[addressSpace];
    if (space === undefined) throw new MemorySlotsError('INVALID', `there is no address space ${addressSpace}`);
    return space;
  }

  #call(name: KernelCall['name'], request: RegionRequest | null): number {
    const call: KernelCall = { number: ++this.#calls, name, request };
    let result = 0;
    for (const hooks of this.#hooks) {
      const fault = hooks.before?.(call) ?? 0;
      if (result === 0 && fault !== 0) result = -fault;
    }
    if (result === 0) result = this.#perform(call);
    for (const hooks of this.#hooks) hooks.after?.(call, result);
    return result;
  }

  #perform(call: KernelCall): number {
    const { request } = call;
    if (this.#dead) return -errno.EIO;
    if (request === null) return -errno.EFAULT;
    const refused = this.#check(request, call.name === 'KVM_SET_USER_MEMORY_REGION');
    if (refused !== 0) return refused;
    const space = this.#spaces[request.slot >>> 16]!;
    const old = space.slots.get(request.slot & 0xffff);
    // Page-aligned u64s are exact as numbers, all the way up.
    const [gpa, size, host] = [Number(request.gpa), Number(request.size), Number(request.host)];
    if (size === 0) return old === undefined ? -errno.EINVAL : this.#delete(call, space, old);
    if (old === undefined) return this.#create(call, space, request);
    if (request.flags & guestMemfd || (request.flags ^ old.flags) & (readonly | guestMemfd)) return -errno.EINVAL;
    if (host !== old.host || size !== old.size) return -errno.EINVAL;
    if (gpa !== old.gpa) return this.#move(call, space, old, gpa, request.flags);
    return request.flags === old.flags ? 0 : this.#changeFlags(call, space, old, request.flags);
  }

  /** The checks that need no slot, in the kernel's order. */
  #check(request: RegionRequest, first: boolean): number {
    const { profile } = this;
    mustBeU32('the slot', request.slot);
    mustBeU32('the flags', request.flags);
    mustBeU64('the GPA', request.gpa);
    mustBeU64('the size', request.size);
    mustBeU64('the host address', request.host);
    const offset = mustBeU64('the guest_memfd offset', request.guestMemfdOffset ?? 0);
    const { flags } = request;

    if (first && flags & ~(logDirty | readonly)) return -errno.EINVAL;
    if ((request.slot & 0xffff) >= profile.slots) return -errno.EINVAL;
    const known = flags & guestMemfd ? guestMemfd : logDirty | (profile.readonlyMemory ? readonly : 0);
    if (flags & ~known || (flags & guestMemfd && !profile.guestMemfd)) return -errno.EINVAL;
    if (![request.size, request.gpa, request.host].every((value) => this.#aligned(value))) return -errno.EINVAL;
    const size = Number(request.size);
    if (Number(request.host) + size > profile.hostLimit) return -errno.EINVAL;
    if (flags & guestMemfd && (!this.#aligned(offset) || Number(offset) + size >= 2 ** 64)) return -errno.EINVAL;
    if (request.slot >>> 16 >= profile.addressSpaces) return -errno.EINVAL;
    if (Number(request.gpa) + size >= 2 ** 64) return -errno.EINVAL;
    if (size / profile.pageSize > mostPages) return -errno.EINVAL;
    return 0;
  }

  #aligned(value: U64): boolean {
    const { pageSize } = this.profile;
    return typeof value === 'bigint' ? value % BigInt(pageSize) === 0n : value % pageSize === 0;
  }

  #create(call: KernelCall, space: AddressSpace, request: RegionRequest): number {
    const [gpa, size, host] = [Number(request.gpa), Number(request.size), Number(request.host)];
    const { flags } = request;
    const offset = flags & guestMemfd ? Number(request.guestMemfdOffset ?? 0) : 0;
    const state: SlotState = {
      addressSpace: request.slot >>> 16,
      id: request.slot & 0xffff,
      gpa,
      size,
      host,
      flags,
      guestMemfdOffset: offset,
    };
    if (this.#overlaps(space, state)) return -errno.EEXIST;
    let bound: BoundRange | undefined;
    if (flags & guestMemfd) {
      const result = this.files.bind(request.guestMemfd ?? -1, this, offset, size);
      if (typeof result === 'number') return result;
      bound = result;
    }
    const bitmap = flags & logDirty ? this.#allocateBitmap(size) : undefined;
    let refused = flags & logDirty && bitmap === undefined ? -errno.ENOMEM : 0;
    refused ||= this.profile.refuses(gpa, size, host, this.profile.physicalAddressBits);
    const slot: Slot = { ...state, bitmap, bound };
    if (refused !== 0) {
      this.#free(slot);
      return refused;
    }
    this.#swap(call, 'create', space, undefined, slot);
    this.#record(space, undefined, slot);
    this.#takeTime(this.#callMicroseconds);
    return 0;
  }

  #delete(call: KernelCall, space: AddressSpace, old: Slot): number {
    this.#swap(call, 'delete', space, old, old, invalidSlot);
    // Half before the hole and half in it, so that a hole lasts about as long as on a real host.
    this.#takeTime(this.#callMicroseconds / 2);
    this.#swap(call, 'delete', space, old, undefined);
    this.#record(space, old, undefined);
    this.#free(old);
    this.#takeTime(this.#callMicroseconds / 2);
    return 0;
  }

  #move(call: KernelCall, space: AddressSpace, old: Slot, gpa: number, flags: number): number {
    if (this.#overlaps(space, { ...old, gpa })) return -errno.EEXIST;
    this.#swap(call, 'move', space, old, old, invalidSlot);
    this.#takeTime(this.#callMicroseconds / 2);
    const slot = this.#relogged({ ...old, gpa, flags });
    const refused =
      typeof slot === 'number'
        ? slot
        : this.profile.refuses(gpa, slot.size, slot.host, this.profile.physicalAddressBits);
    if (typeof slot === 'number' || refused !== 0) {
      this.#swap(call, 'move', space, old, old);
      if (typeof slot !== 'number' && slot.bitmap !== old.bitmap) this.#free({ ...slot, bound: undefined });
      return refused;
    }
    this.#swap(call, 'move', space, old, slot);
    this.#record(space, old, slot);
    if (old.bitmap !== slot.bitmap) this.#free({ ...old, bound: undefined });
    this.#takeTime(this.#callMicroseconds / 2);
    return 0;
  }

  #changeFlags(call: KernelCall, space: AddressSpace, old: Slot, flags: number): number {
    const slot = this.#relogged({ ...old, flags });
    if (typeof slot === 'number') return slot;
    this.#swap(call, 'flags', space, old, slot);
    this.#record(space, old, slot);
    if (old.bitmap !== slot.bitmap) this.#free({ ...old, bound: undefined });
    this.#takeTime(this.#callMicroseconds);
    return 0;
  }

  /** `slot` with the bitmap that its flags call for: none, the one it has, or a new one; -ENOMEM. */
  #relogged(slot: Slot): Slot | number {
    if (!(slot.flags & logDirty)) return { ...slot, bitmap: undefined };
    if (slot.bitmap !== undefined) return slot;
    const bitmap = this.#allocateBitmap(slot.size);
    return bitmap === undefined ? -errno.ENOMEM : { ...slot, bitmap };
  }

  #allocateBitmap(size: number): number | undefined {
    return this.#bitmaps.allocate(size / this.profile.pageSize, (this.#manualProtect & 2) !== 0);
  }

  #free(slot: Slot): void {
    if (slot.bitmap !== undefined) this.#bitmaps.free(slot.bitmap, slot.size / this.profile.pageSize);
    if (slot.bound !== undefined) unbind(slot.bound);
  }

  /** Whether `state` overlaps a slot of another id. */
  #overlaps(space: AddressSpace, state: SlotState): boolean {
    const { wasm } = this.#arena;
    const own = space.slots.get(state.id);
    this.#write(this.#new, state, undefined, 0);
    if (own !== undefined) wasm.remove(space.table, own.id);
    const found = wasm.overlap(space.table, this.#new);
    if (own !== undefined) {
      this.#write(this.#old, own, undefined, 0);
      wasm.insert(space.table, this.#old);
    }
    return found >= 0;
  }

  /** Shows vCPUs `slot` (or nothing) in the place of `old` (or nothing), at one instant, and waits for the last reader. */
  #swap(
    call: KernelCall,
    change: Change,
    space: AddressSpace,
    old: Slot | undefined,
    slot: Slot | undefined,
    flags = 0,
  ): void {
    if (old !== undefined) this.#write(this.#old, old, old.bitmap, 0);
    if (slot !== undefined) this.#write(this.#new, slot, slot.bitmap, flags);
    const { wasm } = this.#arena;
    // A slot that moves over its own old place, or stays, is replaced: the map wants the delete by its present place.
    const result = wasm.map_apply(space.map, this.#old, old ? 1 : 0, this.#new, slot ? 1 : 0);
    if (result !== 0) {
      const shown = [old, slot].map((state) => (state === undefined ? 'nothing' : hex(state.gpa))).join(' by ');
      throw new MemorySlotsError('STATE', `the simulated kernel's map refused to replace ${shown}: ${result}`);
    }
    space.generation++;
    awaitAccesses(this.#arena.words, this.#readers);
    for (const hooks of this.#hooks) hooks.published?.(call, change);
  }

  /** Brings the kernel's own books up to date. */
  #record(space: AddressSpace, old: Slot | undefined, slot: Slot | undefined): void {
    const { wasm } = this.#arena;
    if (old !== undefined) {
      wasm.remove(space.table, old.id);
      space.slots.delete(old.id);
    }
    if (slot !== undefined) {
      this.#write(this.#new, slot, undefined, 0);
      wasm.insert(space.table, this.#new);
      space.slots.set(slot.id, slot);
    }
  }

  /** A published slot's `region` is the place of its dirty bitmap. */
  #write(offset: number, slot: SlotState, bitmap: number | undefined, flags: number): void {
    const range: MemoryRange = {
      gpa: slot.gpa,
      size: slot.size,
      host: slot.host,
      offset: slot.guestMemfdOffset,
      id: slot.id,
      flags: slot.flags | flags,
      region: bitmap ?? 0,
      since: 0,
      addressSpace: slot.addressSpace,
      guestMemfd: -1,
    };
    this.#arena.writeRange(offset, range);
  }

  #takeTime(microseconds: number): void {
    if (microseconds === 0) return;
    const end = performance.now() + microseconds / 1000;
    while (performance.now() < end);
  }
}
