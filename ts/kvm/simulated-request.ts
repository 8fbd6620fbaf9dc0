import { errno } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import type { Profile } from './simulated-profiles.js';
import { slotFlags } from './simulated-readers.js';

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

/** The pages of a slot are counted in 31 bits. */
const mostPages = 2 ** 31 - 1;

/** A u64 argument; anything else is a mistake of the caller that no kernel would ever see. */
export function mustBeU64(what: string, value: U64): U64 {
  const valid = typeof value === 'bigint' ? value >= 0n && value < 1n << 64n : Number.isInteger(value) && value >= 0;
  if (valid && value < 2 ** 64) return value;
  throw new MemorySlotsError('INVALID', `${what} must be an integer from 0 to 2^64 - 1, not ${value}`);
}

export function mustBeU32(what: string, value: number): number {
  if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) return value;
  throw new MemorySlotsError('INVALID', `${what} must be an integer from 0 to 2^32 - 1, not ${value}`);
}

/** Whether `value` is a multiple of `unit`, however large it is. */
export function isAligned(value: U64, unit: number): boolean {
  return typeof value === 'bigint' ? value % BigInt(unit) === 0n : value % unit === 0;
}

/**
 * What KVM says to a request before it looks at any slot: 0 or a negative errno, by the first check that fails. `first`:
 * the older of the two calls. Throws `INVALID` for fields that aren't of their C type.
 */
export function checkRequest(profile: Profile, request: RegionRequest, first: boolean): number {
  mustBeU32('the slot', request.slot);
  mustBeU32('the flags', request.flags);
  mustBeU64('the GPA', request.gpa);
  mustBeU64('the size', request.size);
  mustBeU64('the host address', request.host);
  const offset = mustBeU64('the guest_memfd offset', request.guestMemfdOffset ?? 0);
  const { flags } = request;
  const { logDirty, readonly, guestMemfd } = slotFlags;

  if (first && flags & ~(logDirty | readonly)) return -errno.EINVAL;
  if ((request.slot & 0xffff) >= profile.slots) return -errno.EINVAL;
  const known = flags & guestMemfd ? guestMemfd : logDirty | (profile.readonlyMemory ? readonly : 0);
  if (flags & ~known || (flags & guestMemfd && !profile.guestMemfd)) return -errno.EINVAL;
  for (const value of [request.size, request.gpa, request.host]) {
    if (!isAligned(value, profile.pageSize)) return -errno.EINVAL;
  }
  // Multiples of the page size, and sums of two, are exact as numbers all the way to 2^65.
  const size = Number(request.size);
  if (Number(request.host) + size > profile.hostLimit) return -errno.EINVAL;
  if (flags & guestMemfd && !isAligned(offset, profile.pageSize)) return -errno.EINVAL;
  if (flags & guestMemfd && Number(offset) + size >= 2 ** 64) return -errno.EINVAL;
  if (request.slot >>> 16 >= profile.addressSpaces) return -errno.EINVAL;
  if (Number(request.gpa) + size >= 2 ** 64) return -errno.EINVAL;
  if (size / profile.pageSize > mostPages) return -errno.EINVAL;
  return 0;
}
