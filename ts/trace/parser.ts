import type { TraceEvent, TraceFormat } from './event.js';

/** A line that is of a known kind but can't be read: the reader adds its number. */
export class MalformedLine extends Error {}

/** What a line that was understood, but makes no event by itself, is answered with. */
export const noEvent = Symbol('understood, but no event');

/** Reads one line after another of one format; what it must remember between lines it owns. */
export interface LineParser {
  readonly format: TraceFormat;
  /** Where the newline of the line last parsed stands. */
  readonly end: number;
  /** Calls understood as such whose arguments the log doesn't show. */
  readonly unreadable?: number;
  /**
   * The event that the line at `start` makes, `noEvent`, or `undefined` for a foreign line. `bytes` has a newline at
   * or after `start`, and `slack` bytes behind it (literal.ts). Throws {@link MalformedLine}, after which `end` means nothing.
   */
  parse(bytes: Uint8Array, start: number, line: number): TraceEvent | typeof noEvent | undefined;
  /** The event that only the end of the log completes. */
  close?(): TraceEvent | undefined;
}
