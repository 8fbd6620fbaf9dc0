/**
 * What the C core offers, by name, whichever build answers. See csrc/slots.h for what each function does; the names
 * here are the same without the prefix.
 *
 * Parameter kinds: `offset` is a place in the arena (bytes from its start), `count` an unsigned 32-bit number, `gpa`
 * a guest-physical address as a double, exact to 2^53. All functions return a 32-bit integer: 0, a count, an id, or a
 * negative errno.
 */
export const signatures = {
  table_size: ['count'],
  table_init: ['offset', 'count'],
  find: ['offset', 'gpa'],
  find_at_or_above: ['offset', 'gpa'],
  match: ['offset', 'offset'],
  find_batch: ['offset', 'offset', 'offset', 'count', 'count'],
  best_path: [],
  overlap: ['offset', 'offset'],
  insert: ['offset', 'offset'],
  remove: ['offset', 'count'],
  free_id: ['offset'],
  list: ['offset', 'offset'],
  map_size: ['count'],
  map_init: ['offset', 'count'],
  map_lookup: ['offset', 'gpa', 'offset'],
  map_apply: ['offset', 'offset', 'count', 'offset', 'count'],
  map_commit: ['offset', 'offset', 'count', 'offset', 'count', 'offset', 'count'],
  plan: ['offset', 'offset', 'offset', 'offset', 'offset', 'offset', 'offset', 'offset', 'offset'],
  apply: ['offset', 'offset', 'offset', 'count'],
  gate_enter: ['offset', 'count'],
  gate_leave: ['offset'],
  layout: ['offset', 'count'],
  nothing: [],
} as const satisfies Record<string, readonly ParameterKind[]>;

/** What a parameter of the C core is. */
export type ParameterKind = 'offset' | 'count' | 'gpa';

/** A C core over one arena. Any thread may hold one; which calls may run at once is in csrc/slots.h. */
export type Core = {
  /** Which build answers. */
  readonly build: 'native' | 'wasm';
} & { readonly [Name in keyof typeof signatures]: (...parameters: Numbers<(typeof signatures)[Name]>) => number };

type Numbers<Kinds extends readonly unknown[]> = { [Index in keyof Kinds]: number };

/** Errno numbers that the core returns, negated. Linux's, in both builds. */
export const errno = {
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  EBADF: 9,
  ENOMEM: 12,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EINVAL: 22,
  ENOSPC: 28,
  ENXIO: 6,
  ENOTTY: 25,
  ESRCH: 3,
  EACCES: 13,
  EAGAIN: 11,
  ENOSYS: 38,
  EPERM: 1,
  E2BIG: 7,
} as const;

/** The symbol of an errno, `EEXIST` for 17 or −17; `errno 99` for one that isn't known. */
export function errnoName(number: number): string {
  const positive = Math.abs(number);
  return Object.entries(errno).find(([, value]) => value === positive)?.[0] ?? `errno ${positive}`;
}
