import { MemorySlotsError } from './errors.js';

/** `0x`-prefixed lower-case hexadecimal, as the kernel and QEMU print addresses. */
export function hex(value: number | bigint): string {
  return value < 0 ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`;
}

/** A byte range as `[0x1000, 0x3000) (8 KiB)`. `gpa` and `size` are in bytes. */
export function formatRange(gpa: number | bigint, size: number | bigint): string {
  const start = BigInt(gpa);
  return `[${hex(start)}, ${hex(start + BigInt(size))}) (${formatSize(size)})`;
}

const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** A size in bytes in the largest unit that divides it exactly, or with one decimal: `768 MiB`, `1.5 GiB`. */
export function formatSize(size: number | bigint): string {
  let value = Number(size);
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`;
}

/** Any integer from 0 to 2^53 − 1, or an `INVALID` error that names `what` and the value. */
export function mustBeCount(what: string, value: number): number {
  if (!Number.isSafeInteger(value) || value < 0) {
    const shown = Number.isInteger(value) ? hex(value) : String(value);
    throw new MemorySlotsError('INVALID', `${what} must be an integer from 0 to 2^53 - 1, not ${shown}`);
  }
  return value;
}

/** A count that is a multiple of `alignment` (a power of two, in bytes). */
export function mustBeAligned(what: string, value: number, alignment: number): number {
  mustBeCount(what, value);
  if (value % alignment !== 0) {
    throw new MemorySlotsError('INVALID', `${what} must be a multiple of ${hex(alignment)}, not ${hex(value)}`);
  }
  return value;
}
