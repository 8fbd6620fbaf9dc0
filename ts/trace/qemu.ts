import { onlyVm, type SlotUpdate, type TraceEvent } from './event.js';
import { type Literal, literal, matches } from './literal.js';
import { type LineParser, MalformedLine } from './parser.js';
import { LinePrefix } from './qemu-prefix.js';

const [newline, carriageReturn, space, quote, dash, zero, colon, equals] = [10, 13, 32, 34, 45, 48, 58, 61];

/** The value of each byte as a digit of a base, 255 for all others. */
function digitTable(base: number): Uint8Array {
  const table = new Uint8Array(256).fill(255);
  for (let value = 0; value < base; value++) {
    table[value.toString(16).charCodeAt(0)] = value;
    table[value.toString(16).toUpperCase().charCodeAt(0)] = value;
  }
  return table;
}

const decimalDigits = digitTable(10);
const hexDigits = digitTable(16);

/** What stands before a number, and how the number is written. */
interface Field {
  readonly before: Literal;
  readonly base: 10 | 16;
  readonly digits: Uint8Array;
  /** How many fields are left out together where this one is missing; 0 for one that must be there. */
  readonly optional: number;
}

function decimal(before: string, optional = 0): Field {
  return { before: literal(before), base: 10, digits: decimalDigits, optional };
}

function hex(before: string): Field {
  return { before: literal(before), base: 16, digits: hexDigits, optional: 0 };
}

/** An event of one name: its fields, and what their values make (NaN for those left out). */
interface Form {
  readonly name: Literal;
  readonly fields: readonly Field[];
  make(values: Float64Array, line: number, time: number | undefined, thread: number | undefined): TraceEvent;
}

function makeSlotUpdate(
  values: Float64Array,
  line: number,
  time: number | undefined,
  thread: number | undefined,
): SlotUpdate {
  let addressSpace = values[0]!;
  let slot = values[1]!;
  if (Number.isNaN(addressSpace)) {
    addressSpace = Math.floor(slot / 0x10000);
    slot %= 0x10000;
  }
  if (!(addressSpace >= 0 && addressSpace <= 0xffff && slot >= 0 && slot <= 0xffff)) {
    throw new MalformedLine(`there is no slot ${slot} of address space ${addressSpace}`);
  }
  const fd = values[6]!;
  return {
    kind: 'slot',
    line,
    time,
    thread,
    vm: onlyVm,
    addressSpace,
    slot,
    flags: values[2]!,
    gpa: values[3]!,
    size: values[4]!,
    hostAddress: values[5]!,
    guestMemfd: fd >= 0 ? { fd, offset: values[7]! } : undefined,
    result: values[8]!,
  };
}

const guestMemfdOffset = hex(' guest_memfd_offset=0x');

const addressSpaceField = decimal(' AddrSpace#', 1);
const slotField = decimal(' Slot#');
const memoryFields = [hex(' flags=0x'), hex(' gpa=0x'), hex(' size=0x'), hex(' ua=0x')];
const resultField = decimal(' ret=');
/** What QEMU 9.1 and later print where there is no guest_memfd; the offset behind it means nothing. */
const noGuestMemfd = literal(' guest_memfd=-1 guest_memfd_offset=0x');

const setUserMemory: Form = {
  name: literal('kvm_set_user_memory'),
  fields: [addressSpaceField, slotField, ...memoryFields, decimal(' guest_memfd=', 2), guestMemfdOffset, resultField],
  make: makeSlotUpdate,
};

function mark(kind: 'commit' | 'window-begin' | 'window-end', name: string): Form {
  return {
    name: literal(name),
    fields: [decimal(' transaction=')],
    make: (values, line, time, thread) => ({ kind, line, time, thread, transaction: values[0]! }),
  };
}

/** The other events that are understood. */
const neighbours: readonly Form[] = [
  {
    name: literal('kvm_run_exit'),
    fields: [decimal(' cpu_index '), decimal(', reason ')],
    make: (values, line, time, thread) => {
      return { kind: 'run-exit', line, time, thread, vcpu: values[0]!, reason: values[1]! };
    },
  },
  {
    name: literal('kvm_slots_grow'),
    fields: [decimal(' '), decimal(' -> ')],
    make: (values, line, time, thread) => {
      return { kind: 'slots-grow', line, time, thread, from: values[0]!, to: values[1]! };
    },
  },
  {
    name: literal('kvm_clear_dirty_log'),
    fields: [decimal(' slot#'), hex(' start 0x'), hex(' size 0x')],
    make: (values, line, time, thread) => {
      const [slot, start, size] = [values[0]!, values[1]!, values[2]!];
      return { kind: 'clear-dirty-log', line, time, thread, slot, start, size };
    },
  },
  mark('commit', 'memslots_commit'),
  mark('window-begin', 'memslots_window_begin'),
  mark('window-end', 'memslots_window_end'),
  {
    name: literal('memslots_rollback'),
    fields: [decimal(' transaction='), decimal(' ret=')],
    make: (values, line, time, thread) => {
      return { kind: 'rollback', line, time, thread, transaction: values[0]!, result: values[1]! };
    },
  },
];

const forms = [setUserMemory, ...neighbours];
const mostFields = Math.max(...forms.map(({ fields }) => fields.length));

/**
 * QEMU's log of `kvm_set_user_memory` and the events beside it, and this library's own log, which has the same form.
 * All forms from QEMU 2.12 on are read, with each prefix: none, `PID@SECONDS.MICROSECONDS:`, an ISO 8601 time (10.1),
 * and, since logs pass through other hands, anything before the event's name that holds no quotation mark.
 */
export class QemuParser implements LineParser {
  readonly format = 'qemu';
  end = 0;
  readonly #prefix = new LinePrefix();
  readonly #values = new Float64Array(mostFields);
  #bytes: Uint8Array = new Uint8Array(0);
  #view: DataView = new DataView(new ArrayBuffer(0));

  parse(bytes: Uint8Array, start: number, line: number): TraceEvent | undefined {
    if (this.#bytes !== bytes) {
      this.#bytes = bytes;
      this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    }
    const name = this.#prefix.read(bytes, this.#view, start);
    const event = this.#commonCall(name, line);
    if (event !== undefined) return event;
    const form = this.#formAt(name);
    return form === undefined ? this.#search(name, line) : this.#fields(form, name, line);
  }

  /**
   * The slot call that begins at a place, if it has the plain form that nearly all have; {@link #fields} reads the
   * others, and finds out what is wrong with those that can't be read. Its loops are written out: that takes a tenth
   * off the time of reading a log.
   */
  #commonCall(name: number, line: number): SlotUpdate | undefined {
    const bytes = this.#bytes;
    const view = this.#view;
    if (!matches(view, name, setUserMemory.name)) return undefined;
    let place = name + setUserMemory.name.length;
    let addressSpace = -1;
    if (matches(view, place, addressSpaceField.before)) {
      place += addressSpaceField.before.length;
      addressSpace = bytes[place++]! - zero;
      if (addressSpace < 0 || addressSpace > 9) return undefined;
    }
    if (!matches(view, place, slotField.before)) return undefined;
    place += slotField.before.length;
    let slot = bytes[place]! - zero;
    if (slot < 0 || slot > 9) return undefined;
    let digit = bytes[++place]! - zero;
    while (digit >= 0 && digit <= 9) {
      slot = slot * 10 + digit;
      digit = bytes[++place]! - zero;
    }
    if (addressSpace < 0) {
      addressSpace = Math.floor(slot / 0x10000);
      slot %= 0x10000;
    }
    if (slot > 0xffff || addressSpace > 0xffff) return undefined;
    const values = this.#values;
    for (let index = 0; index < memoryFields.length; index++) {
      const { before } = memoryFields[index]!;
      if (!matches(view, place, before)) return undefined;
      place += before.length;
      let value = hexDigits[bytes[place]!]!;
      if (value === 255) return undefined;
      let next = hexDigits[bytes[++place]!]!;
      while (next !== 255) {
        value = value * 16 + next;
        next = hexDigits[bytes[++place]!]!;
      }
      if (value > Number.MAX_SAFE_INTEGER) return undefined;
      values[index] = value;
    }
    if (matches(view, place, noGuestMemfd)) {
      place += noGuestMemfd.length;
      while (hexDigits[bytes[place]!]! !== 255) place++;
    }
    if (!matches(view, place, resultField.before)) return undefined;
    place += resultField.before.length;
    // A success ends in 0 and nothing else.
    if (bytes[place] !== zero || bytes[place + 1] !== newline) return undefined;
    this.end = place + 1;
    return {
      kind: 'slot',
      line,
      time: this.#prefix.time,
      thread: this.#prefix.thread,
      vm: onlyVm,
      addressSpace,
      slot,
      flags: values[0]!,
      gpa: values[1]!,
      size: values[2]!,
      hostAddress: values[3]!,
      guestMemfd: undefined,
      result: 0,
    };
  }

  #formAt(place: number): Form | undefined {
    return forms.find((form) => this.#isForm(place, form));
  }

  #fieldsBegin({ name, fields }: Form, place: number): boolean {
    const first = fields.findIndex(({ optional }) => optional === 0);
    return fields.slice(0, first + 1).some(({ before }) => matches(this.#view, place + name.length, before));
  }

  #isForm(place: number, { name }: Form): boolean {
    return matches(this.#view, place, name) && this.#bytes[place + name.length]! <= space;
  }

  /** Reads an event's fields, and the ` name=value` fields that forks append, up to the end of the line. */
  #fields(form: Form, name: number, line: number): TraceEvent {
    const bytes = this.#bytes;
    const view = this.#view;
    const values = this.#values;
    const { fields } = form;
    let place = name + form.name.length;
    for (let index = 0; index < fields.length; index++) {
      const field = fields[index]!;
      const { before } = field;
      if (!matches(view, place, before)) {
        const { optional } = field;
        if (optional === 0) throw new MalformedLine(`'${before.text.trim()}' is missing`);
        for (let left = 0; left < optional; left++) values[index + left] = Number.NaN;
        index += optional - 1;
        continue;
      }
      place += before.length;
      let first = place;
      let value = 0;
      // A loop for each base: the compiler then knows the factor.
      if (field.base === 16) {
        let digit = hexDigits[bytes[place]!]!;
        while (digit !== 255) {
          value = value * 16 + digit;
          digit = hexDigits[bytes[++place]!]!;
        }
      } else {
        if (bytes[place] === dash) first = ++place;
        let digit = bytes[place]! - zero;
        while (digit >= 0 && digit <= 9) {
          value = value * 10 + digit;
          digit = bytes[++place]! - zero;
        }
        if (bytes[first - 1] === dash) value = 0 - value;
      }
      if (place === first) throw new MalformedLine(`'${before.text.trim()}' has no number`);
      if (Math.abs(value) > Number.MAX_SAFE_INTEGER && !isExact(bytes, first, place, field.base)) {
        // Without a guest_memfd QEMU 9.1 to 10.0 print whatever the offset's field held.
        if (field !== guestMemfdOffset || !(values[index - 1]! < 0)) {
          throw new MalformedLine(`'${before.text.trim()}' has a number too large to be held exactly`);
        }
      }
      values[index] = value;
    }
    this.end = this.#lineEnd(place);
    return form.make(values, line, this.#prefix.time, this.#prefix.thread);
  }

  /** Where the newline is, behind nothing but ` name=value` fields. */
  #lineEnd(from: number): number {
    const bytes = this.#bytes;
    let place = from;
    while (bytes[place] === space) {
      const name = ++place;
      while (isLetter(bytes[place]!)) place++;
      if (place === name || bytes[place] !== equals) break;
      while (bytes[place]! > space) place++;
    }
    if (bytes[place] === carriageReturn) place++;
    if (bytes[place] !== newline) throw new MalformedLine('the line goes on after its last field');
    return place;
  }

  /** Looks for an event's name behind a foreign prefix. */
  #search(from: number, line: number): TraceEvent | undefined {
    const bytes = this.#bytes;
    let before = newline;
    for (let place = from; ; place++) {
      const byte = bytes[place]!;
      if (byte === newline || byte === quote) {
        this.end = bytes.indexOf(newline, place);
        return undefined;
      }
      if (before === space || before === colon) {
        const form = this.#formAt(place);
        // Messages may speak of an event: behind a foreign prefix, only one whose fields begin counts.
        if (form !== undefined && this.#fieldsBegin(form, place)) return this.#fields(form, place, line);
      }
      before = byte;
    }
  }
}

/** Whether the number that digits write is one that a JS number holds, and below 2^64. */
function isExact(bytes: Uint8Array, start: number, end: number, base: 10 | 16): boolean {
  if (end - start > 20) return false;
  const value = BigInt((base === 16 ? '0x' : '') + String.fromCharCode(...bytes.subarray(start, end)));
  return value < 1n << 64n && BigInt(Number(value)) === value;
}

/** Lower-case letters and `_`. */
function isLetter(byte: number): boolean {
  return (byte >= 97 && byte <= 122) || byte === 95;
}
