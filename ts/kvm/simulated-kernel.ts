import type { Arena } from '../core/arena.js';
import { errno } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import { bitmapWords, DirtyBitmaps } from './simulated-dirty.js';
import { type BoundRange, type FileTable, unbind } from './simulated-files.js';
import type { Profile } from './simulated-profiles.js';
import { awaitAccesses, invalidSlot, slotFlags } from './simulated-readers.js';
import { checkRequest, isAligned, mustBeU32, mustBeU64, type RegionRequest, type U64 } from './simulated-request.js';
import { type Slot, SlotSpace, type SlotState } from './simulated-slots.js';

/** What a successful call does to slots. */
export type Change = 'create' | 'delete' | 'move' | 'flags' | 'nothing';

/** One call, as hooks see it. */
export interface KernelCall {
  /** 1 for the first call of this kernel. Calls of both region ioctls count, and only they. */
  readonly number: number;
  readonly name: 'KVM_SET_USER_MEMORY_REGION' | 'KVM_SET_USER_MEMORY_REGION2';
  readonly request: RegionRequest | null;
}

/**
 * Code that runs in the middle of calls, on the owner's thread. It must not make calls itself. What `published` throws
 * is thrown when the call has ended: the kernel stays consistent.
 */
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

/**
 * The memory slots of a simulated KVM virtual machine. Answers KVM_SET_USER_MEMORY_REGION and its kin with the errno
 * the kernel gives, found by the same checks in the same order, and shows vCPUs the same states in between. All calls
 * return 0 or a negative errno, and throw only for arguments that C couldn't express. Owner thread only.
 */
export class SimulatedKernel {
  readonly profile: Profile;
  readonly files: FileTable;
  readonly #arena: Arena;
  readonly #spaces: readonly SlotSpace[];
  readonly #bitmaps: DirtyBitmaps;
  readonly #callMicroseconds: number;
  readonly #hooks = new Set<CallHooks>();
  readonly #readers = new Set<number>();
  #calls = 0;
  /** Between the checks of a call and its end. */
  #busy = false;
  /** What hooks threw in the middle of the present call. */
  readonly #thrown: { readonly error: unknown }[] = [];
  #dead = false;
  #manualProtect = 0;

  constructor(arena: Arena, options: KernelOptions) {
    const { profile } = options;
    this.#arena = arena;
    this.profile = profile;
    this.files = options.files;
    this.#callMicroseconds = options.callMicroseconds;
    this.#bitmaps = new DirtyBitmaps(options.dirtyLogBytes);
    this.#spaces = Array.from({ length: profile.addressSpaces }, () => new SlotSpace(arena, profile.slots));
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
    return this.#space(addressSpace).list();
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
    if (size <= 0 || size >= 2 ** 63 || !isAligned(size, this.profile.pageSize)) return -errno.EINVAL;
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
    const found = this.#loggedSlot(slot, isAligned(firstPage, 64));
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
    const found = space.get(id);
    return found?.bitmap === undefined ? -errno.ENOENT : found;
  }

  #mustHold(bitmap: Uint8Array, pages: number): void {
    const bytes = bitmapWords(pages) * 8;
    if (bitmap.length >= bytes) return;
    const message = `a bitmap of ${pages} pages takes ${bytes} bytes, and there is room for ${bitmap.length}`;
    throw new MemorySlotsError('INVALID', message);
  }

  #space(addressSpace: number): SlotSpace {
    const space = this.#spaces[addressSpace];
    if (space === undefined) throw new MemorySlotsError('INVALID', `there is no address space ${addressSpace}`);
    return space;
  }

  #call(name: KernelCall['name'], request: RegionRequest | null): number {
    if (this.#busy) throw new MemorySlotsError('STATE', `${name} can't be called from inside another call`);
    const call: KernelCall = { number: ++this.#calls, name, request };
    let result = 0;
    for (const hooks of this.#hooks) {
      const fault = hooks.before?.(call) ?? 0;
      if (result === 0 && fault !== 0) result = -fault;
    }
    if (result === 0) {
      this.#busy = true;
      try {
        result = this.#perform(call);
      } finally {
        this.#busy = false;
      }
    }
    for (const hooks of this.#hooks) hooks.after?.(call, result);
    const [thrown] = this.#thrown.splice(0);
    if (thrown !== undefined) throw thrown.error;
    return result;
  }

  #perform(call: KernelCall): number {
    const { request } = call;
    if (this.#dead) return -errno.EIO;
    if (request === null) return -errno.EFAULT;
    const refused = checkRequest(this.profile, request, call.name === 'KVM_SET_USER_MEMORY_REGION');
    if (refused !== 0) return refused;
    const space = this.#spaces[request.slot >>> 16]!;
    const old = space.get(request.slot & 0xffff);
    // Page-aligned u64s are exact as numbers, all the way up.
    const [gpa, size, host] = [Number(request.gpa), Number(request.size), Number(request.host)];
    if (size === 0) return old === undefined ? -errno.EINVAL : this.#delete(call, space, old);
    if (old === undefined) return this.#create(call, space, request);
    if (request.flags & guestMemfd || (request.flags ^ old.flags) & (readonly | guestMemfd)) return -errno.EINVAL;
    if (host !== old.host || size !== old.size) return -errno.EINVAL;
    if (gpa !== old.gpa) return this.#move(call, space, old, gpa, request.flags);
    return request.flags === old.flags ? 0 : this.#changeFlags(call, space, old, request.flags);
  }

  #create(call: KernelCall, space: SlotSpace, request: RegionRequest): number {
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
    if (space.overlaps(state)) return -errno.EEXIST;
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
    space.record(undefined, slot);
    this.#takeTime(this.#callMicroseconds);
    return 0;
  }

  #delete(call: KernelCall, space: SlotSpace, old: Slot): number {
    this.#swap(call, 'delete', space, old, old, invalidSlot);
    // Half before the hole and half in it, so that a hole lasts about as long as on a real host.
    this.#takeTime(this.#callMicroseconds / 2);
    this.#swap(call, 'delete', space, old, undefined);
    space.record(old, undefined);
    this.#free(old);
    this.#takeTime(this.#callMicroseconds / 2);
    return 0;
  }

  #move(call: KernelCall, space: SlotSpace, old: Slot, gpa: number, flags: number): number {
    if (space.overlaps({ ...old, gpa })) return -errno.EEXIST;
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
    space.record(old, slot);
    if (old.bitmap !== slot.bitmap) this.#free({ ...old, bound: undefined });
    this.#takeTime(this.#callMicroseconds / 2);
    return 0;
  }

  #changeFlags(call: KernelCall, space: SlotSpace, old: Slot, flags: number): number {
    const slot = this.#relogged({ ...old, flags });
    if (typeof slot === 'number') return slot;
    this.#swap(call, 'flags', space, old, slot);
    space.record(old, slot);
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

  /** Shows vCPUs `slot` (or nothing) in the place of `old` (or nothing), at one instant, and waits for the last reader. */
  #swap(
    call: KernelCall,
    change: Change,
    space: SlotSpace,
    old: Slot | undefined,
    slot: Slot | undefined,
    flags = 0,
  ): void {
    space.publish(old, slot, flags);
    awaitAccesses(this.#arena.words, this.#readers);
    for (const hooks of this.#hooks) {
      try {
        hooks.published?.(call, change);
      } catch (error) {
        this.#thrown.push({ error });
      }
    }
  }

  #takeTime(microseconds: number): void {
    if (microseconds === 0) return;
    const end = performance.now() + microseconds / 1000;
    while (performance.now() < end);
  }
}
