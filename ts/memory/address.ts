import { hex } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';

/**
 * A guest-physical address, an offset, or a size, in bytes, exact up to 2^64: a `number` wherever that is exact
 * (up to 2^53 − 1), a `bigint` above. Because each value has only one such form, `===` and `<` compare two of them
 * exactly, and maps that stay below 2^53 never pay for big integers. Values in between, such as the base of an alias
 * target, may be negative.
 */
export type Address = number | bigint;

/** 2^64: the end of every address space. */
export const addressSpaceEnd: Address = 1n << 64n;

const mostExact = Number.MAX_SAFE_INTEGER;

/** The one form of `value`, which must be an integer. */
export function address(value: Address): Address {
  if (typeof value === 'number') return value;
  return value <= mostExact && value >= -mostExact ? Number(value) : value;
}

/** `a + b`, exact. */
export function add(a: Address, b: Address): Address {
  if (typeof a === 'number' && typeof b === 'number') {
    // A sum of two exact numbers that lands in the exact range hasn't been rounded.
    const sum = a + b;
    if (sum <= mostExact && sum >= -mostExact) return sum;
  }
  return address(BigInt(a) + BigInt(b));
}

/** `a − b`, exact. */
export function subtract(a: Address, b: Address): Address {
  if (typeof a === 'number' && typeof b === 'number') {
    const difference = a - b;
    if (difference <= mostExact && difference >= -mostExact) return difference;
  }
  return address(BigInt(a) - BigInt(b));
}

/** The lower of two addresses. */
export function lower(a: Address, b: Address): Address {
  return a < b ? a : b;
}

/** The higher of two addresses. */
export function higher(a: Address, b: Address): Address {
  return a > b ? a : b;
}

/** An integer from `least` to `most` in its one form, or an `INVALID` error that names `what` and the value. */
export function mustBeAddress(what: string, value: Address, least: Address, most: Address): Address {
  const exact = typeof value === 'bigint' || Number.isSafeInteger(value);
  if (!exact || value < least || value > most) {
    const shown = exact || Number.isInteger(value) ? hex(value) : String(value);
    const hint = !exact && Number.isInteger(value) ? ' (a number above 2^53 - 1 is inexact: pass a bigint)' : '';
    throw new MemorySlotsError(
      'INVALID',
      `${what} must be an integer from ${hex(least)} to ${hex(most)}, not ${shown}${hint}`,
    );
  }
  return address(value);
}
