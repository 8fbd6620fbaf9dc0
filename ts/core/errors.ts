/**
 * Every error this library throws on purpose is a {@link MemorySlotsError}: `code` is stable and meant for programs,
 * `message` says what was asked, what stood in the way, and what holds now.
 */

/** What went wrong, for programs. */
export type ErrorCode =
  /** An argument or a file is malformed: the message names the value. */
  | 'INVALID'
  /** The operation isn't allowed in the present state (wrong thread, disposed machine, nested inhibit). */
  | 'STATE'
  /** The host lacks something (KVM, a capability, permission, the native library). */
  | 'UNSUPPORTED'
  /** A system call failed: `errno` and `errnoName` say how. */
  | 'IOCTL'
  /** The map needs more memory slots, or a table more entries, than there are. */
  | 'CAPACITY'
  /** Something didn't happen before its deadline. */
  | 'TIMEOUT'
  /** The caller cancelled. */
  | 'CANCELLED';

/** An error with a stable code. Thrown on the thread that made the call. */
export class MemorySlotsError extends Error {
  override readonly name = 'MemorySlotsError';
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
