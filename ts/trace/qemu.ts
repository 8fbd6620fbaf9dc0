import { ascii, Cursor } from './cursor.js';
import type { SlotUpdate, TraceEvent } from './event.js';
import { type LineParser, MalformedLine } from './parser.js';

const text = (words: string) => ascii(words);
const setUserMemory = text('kvm_set_user_memory ');
const addressSpaceField = text('AddrSpace#');
const slotField = text('Slot#');
const slotAfterAddressSpace = text(' Slot#');
const flagsField = text(' flags=0x');
const gpaField = text(' gpa=0x');
const sizeField = text(' size=0x');
const hostAddressField = text(' ua=0x');
const guestMemfdField = text(' guest_memfd=');
const guestMemfdOffsetField = text(' guest_memfd_offset=0x');
const resultField = text(' ret=');
const transactionField = text('transaction=');
const [space, newline, carriageReturn, quote, zero, nine, at, dot, colon, dash] = [
  32, 10, 13, 34, 48, 57, 64, 46, 58, 45,
];
const [letterK, letterM, letterT, letterZ] = [107, 109, 84, 90];

/** The number of days from 1970-01-01 to a date of the Gregorian calendar, `month` from 1. */
function daysSinceEpoch(year: number, month: number, day: number): number {
  const fromMarch = month > 2 ? year : year - 1;
  const yearDay = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  return (
    fromMarch * 365 +
    Math.floor(fromMarch / 4) -
    Math.floor(fromMarch / 100) +
    Math.floor(fromMarch / 400) +
    yearDay -
    719468
  );
}

type Reader = (cursor: Cursor, line: number, time: number | undefined, thread: number | undefined) => TraceEvent;

/** The other events that are understood, by name; each reads what follows the name and a blank. */
const neighbours: readonly (readonly [name: Uint8Array, reader: Reader])[] = [
  [
    text('kvm_run_exit '),
    (cursor, line, time, thread) => {
      const vcpu = number(cursor, 'cpu_index ', 'decimal');
      return { kind: 'run-exit', line, time, thread, vcpu, reason: number(cursor, ', reason ', 'integer') };
    },
  ],
  [
    text('kvm_slots_grow '),
    (cursor, line, time, thread) => {
      const from = number(cursor, '', 'decimal');
      return { kind: 'slots-grow', line, time, thread, from, to: number(cursor, ' -> ', 'decimal') };
    },
  ],
  [
    text('kvm_clear_dirty_log '),
    (cursor, line, time, thread) => {
      const slot = number(cursor, 'slot#', 'decimal');
      const start = number(cursor, ' start 0x', 'hex');
      return { kind: 'clear-dirty-log', line, time, thread, slot, start, size: number(cursor, ' size 0x', 'hex') };
    },
  ],
  [
    text('memslots_commit '),
    (cursor, line, time, thread) => ({ kind: 'commit', line, time, thread, transaction: transaction(cursor) }),
  ],
  [
    text('memslots_window_begin '),
    (cursor, line, time, thread) => ({ kind: 'window-begin', line, time, thread, transaction: transaction(cursor) }),
  ],
  [
    text('memslots_window_end '),
    (cursor, line, time, thread) => ({ kind: 'window-end', line, time, thread, transaction: transaction(cursor) }),
  ],
  [
    text('memslots_rollback '),
    (cursor, line, time, thread) => {
      const of = transaction(cursor);
      return { kind: 'rollback', line, time, thread, transaction: of, result: number(cursor, ' ret=', 'integer') };
    },
  ],
];

function number(cursor: Cursor, before: string, how: 'decimal' | 'integer' | 'hex'): number {
  if (!cursor.pass(text(before))) throw new MalformedLine(`'${before.trim()}' is missing`);
  return exact(cursor, cursor[how](), before.trim());
}

function exact(cursor: Cursor, value: number, field: string): number {
  if (Number.isNaN(value)) throw new MalformedLine(`${field} has ${cursor.fault}`);
  return value;
}

function transaction(cursor: Cursor): number {
  if (!cursor.pass(transactionField)) throw new MalformedLine("'transaction=' is missing");
  return exact(cursor, cursor.decimal(), 'transaction=');
}

/**
 * QEMU's log of `kvm_set_user_memory` and the events beside it, and this library's own log, which has the same form.
 * All forms from QEMU 2.12 on are read, with each prefix: none, `PID@SECONDS.MICROSECONDS:`, an ISO 8601 time (10.1),
 * and, since logs pass through other hands, anything before the event's name that holds no quotation mark.
 */
export class QemuParser implements LineParser {
  readonly format = 'qemu';
  readonly #cursor = new Cursor();
  #time: number | undefined;
  #thread: number | undefined;

  end = 0;

  parse(bytes: Uint8Array, start: number, line: number): TraceEvent | undefined {
    const cursor = this.#cursor;
    cursor.bytes = bytes;
    cursor.at = start;
    this.#prefix();
    let event = this.#event(line);
    if (event === undefined && this.#findName()) event = this.#event(line);
    if (event === undefined) this.end = bytes.indexOf(newline, cursor.at);
    else this.#finish();
    return event;
  }

  /** Reads the time and thread that begin the line, and leaves the cursor behind them or, without them, in place. */
  #prefix(): void {
    const cursor = this.#cursor;
    const start = cursor.at;
    this.#time = undefined;
    this.#thread = undefined;
    const first = cursor.peek();
    if (first < zero || first > nine) return;
    const number = cursor.decimal();
    const next = cursor.peek();
    if (next === at) {
      cursor.at++;
      const seconds = cursor.decimal();
      const micros = this.#fraction();
      if (cursor.peek() === colon) {
        cursor.at++;
        this.#thread = number;
        this.#time = seconds * 1e6 + micros;
        return;
      }
    } else if (next === dash && cursor.at - start === 4) {
      const time = this.#isoTime(number);
      if (!Number.isNaN(time)) {
        this.#time = time;
        return;
      }
    }
    cursor.at = start;
  }

  /** `.` and digits as whole microseconds; 0 without them. */
  #fraction(): number {
    const cursor = this.#cursor;
    if (cursor.peek() !== dot) return 0;
    const start = ++cursor.at;
    const value = cursor.decimal();
    const length = cursor.at - start;
    return length === 6 ? value : Math.floor(value * 10 ** (6 - length));
  }

  /** The rest of `YEAR-MONTH-DAYTHOUR:MINUTE:SECONDZ ` in microseconds since the epoch; NaN if it is something else. */
  #isoTime(year: number): number {
    const month = this.#after(dash);
    const day = this.#after(dash);
    const hour = this.#after(letterT);
    const minute = this.#after(colon);
    const second = this.#after(colon);
    const micros = this.#fraction();
    const zone = this.#after(letterZ, false) + this.#after(space, false);
    return (((daysSinceEpoch(year, month, day) * 24 + hour) * 60 + minute) * 60 + second) * 1e6 + micros + zone;
  }

  #after(byte: number, decimal = true): number {
    const cursor = this.#cursor;
    if (cursor.peek() !== byte) return Number.NaN;
    cursor.at++;
    return decimal ? cursor.decimal() : 0;
  }

  #event(line: number): TraceEvent | undefined {
    const cursor = this.#cursor;
    if (cursor.pass(setUserMemory)) return this.#setUserMemory(line);
    const first = cursor.peek();
    if (first !== letterK && first !== letterM) return undefined;
    for (const [name, reader] of neighbours) {
      if (cursor.pass(name)) return reader(cursor, line, this.#time, this.#thread);
    }
    return undefined;
  }

  #setUserMemory(line: number): SlotUpdate {
    const cursor = this.#cursor;
    let addressSpace = -1;
    if (cursor.pass(addressSpaceField)) {
      addressSpace = exact(cursor, cursor.decimal(), 'AddrSpace#');
    }
    if (!cursor.pass(addressSpace < 0 ? slotField : slotAfterAddressSpace))
      throw new MalformedLine("'Slot#' is missing");
    let slot = exact(cursor, cursor.decimal(), 'Slot#');
    if (addressSpace < 0) {
      addressSpace = Math.floor(slot / 0x10000);
      slot %= 0x10000;
    }
    if (slot > 0xffff || addressSpace > 0xffff) throw new MalformedLine('Slot# has a number above its range');
    const flags = this.#hex(flagsField, 'flags=0x');
    const gpa = this.#hex(gpaField, 'gpa=0x');
    const size = this.#hex(sizeField, 'size=0x');
    const hostAddress = this.#hex(hostAddressField, 'ua=0x');
    let guestMemfd: SlotUpdate['guestMemfd'];
    if (cursor.pass(guestMemfdField)) {
      const fd = exact(cursor, cursor.integer(), 'guest_memfd=');
      if (!cursor.pass(guestMemfdOffsetField)) throw new MalformedLine("'guest_memfd_offset=0x' is missing");
      const offset = cursor.hex();
      if (fd >= 0) guestMemfd = { fd, offset: exact(cursor, offset, 'guest_memfd_offset=0x') };
    }
    if (!cursor.pass(resultField)) throw new MalformedLine("'ret=' is missing");
    const result = exact(cursor, cursor.integer(), 'ret=');
    return {
      kind: 'slot',
      line,
      time: this.#time,
      thread: this.#thread,
      vm: 'vm',
      addressSpace,
      slot,
      flags,
      gpa,
      size,
      hostAddress,
      guestMemfd,
      result,
    };
  }

  #hex(field: Uint8Array, name: string): number {
    const cursor = this.#cursor;
    if (!cursor.pass(field)) throw new MalformedLine(`'${name}' is missing`);
    const value = cursor.hex();
    if (Number.isNaN(value)) throw new MalformedLine(`${name} has ${cursor.fault}`);
    return value;
  }

  /** Goes to the end of the line, past the ` name=value` fields that forks append. */
  #finish(): void {
    const cursor = this.#cursor;
    while (cursor.peek() === space) {
      cursor.at++;
      cursor.skipField();
    }
    if (cursor.peek() === carriageReturn) cursor.at++;
    if (cursor.peek() !== newline) throw new MalformedLine('the line goes on after its last field');
    this.end = cursor.at;
  }

  /** Looks for an event's name behind a foreign prefix, and goes there. */
  #findName(): boolean {
    const cursor = this.#cursor;
    const { bytes } = cursor;
    let before = newline;
    for (let place = cursor.at; ; place++) {
      const byte = bytes[place]!;
      if (byte === newline || byte === quote) return false;
      if ((byte === letterK || byte === letterM) && (before === space || before === colon)) {
        cursor.at = place;
        const found = startsWithName(cursor);
        cursor.at = place;
        if (found) return true;
      }
      before = byte;
    }
  }
}

function startsWithName(cursor: Cursor): boolean {
  return cursor.pass(setUserMemory) || neighbours.some(([name]) => cursor.pass(name));
}
