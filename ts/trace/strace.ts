import { errnoNumber } from './errno.js';
import { GUEST_MEMFD, LOG_DIRTY_PAGES, READONLY, type TraceEvent } from './event.js';
import { type LineParser, MalformedLine, noEvent } from './parser.js';
import { StraceVms } from './strace-vms.js';

/** `PID `, `[pid N] `, then the time that -t, -tt, -ttt or -r print, or -r beside another. */
const prefix =
  /^(?:\[pid +(\d+)\] +|(\d+) +(?=\S))?(?: *(?:(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?|(\d{1,12})(?:\.(\d{1,9}))?) +)?(?:\(\+ *(?:\d+\.\d+|\d+)\) +)?/;
const interesting = /^(?:ioctl|close|clone3?|fork|vfork)\(|^<\.\.\. (?:ioctl|clone3?|fork|vfork) resumed>|^\+\+\+ /;
const call = /^ioctl\((\d+)(?:<.*?>)?, (.*)$/;
const setRegion = /^(?:0x[0-9a-f]+ \/\* )?KVM_SET_USER_MEMORY_REGION(2?)(?: \*\/)?, (.*)$/;
/** The same calls as printed by versions that don't know their names, or are told to print none. */
const setRegionUnnamed = /^(?:_IOC\(_IOC_WRITE, 0xae, 0x(?:46, 0x20|49, 0xa0)\)|0x4020ae46|0x40a0ae49), /;
const region =
  /^\{slot=(\d+), flags=([^,]*), guest_phys_addr=(0x[0-9a-f]+|0), memory_size=(0x[0-9a-f]+|\d+), userspace_addr=(0x[0-9a-f]+|0|NULL)(?:, guest_memfd_offset=(0x[0-9a-f]+|\d+), guest_memfd=(-?\d+))?[^}]*\}\) +=/;
const result = /\) += (-?\d+|\?)(?:<[^>]*>+)?(?: (E[A-Z0-9]+))?/;
const unfinished = / ?<unfinished \.\.\.>$/;
const resumed = /^<\.\.\. \w+ resumed> ?(.*)$/;
const flagValues = new Map([
  ['KVM_MEM_LOG_DIRTY_PAGES', LOG_DIRTY_PAGES],
  ['KVM_MEM_READONLY', READONLY],
  ['KVM_MEM_GUEST_MEMFD', GUEST_MEMFD],
]);
const createVm = /^(?:0xae01 \/\* )?KVM_CREATE_VM\b/;
const attached = /strace: Process \d+ (?:attached|detached)$/;
const longestBroken = 1 << 16;
const day = 86400e6;
const newline = 10;

/** A call whose end comes on a later line. */
interface Pending {
  readonly text: string;
  readonly time: number | undefined;
}

/**
 * strace's output: `KVM_SET_USER_MEMORY_REGION` with any of its prefixes and decorations. Events come in the order in
 * which calls end; their time is when the call began, as strace prints it.
 */
export class StraceParser implements LineParser {
  readonly format = 'strace';
  end = 0;
  unreadable = 0;
  readonly #vms = new StraceVms();
  readonly #pending = new Map<number, Pending>();
  readonly #decoder = new TextDecoder();
  /** The beginning of a line that strace broke to say that it attached to a process. */
  #broken = '';
  /** The sum of the relative times so far, in nanoseconds. */
  #elapsed = 0;
  /** Added to times of day: whole days, in microseconds. */
  #days = 0;
  #timeOfDay = 0;

  parse(bytes: Uint8Array, start: number, line: number): TraceEvent | typeof noEvent | undefined {
    this.end = bytes.indexOf(newline, start);
    const text = this.#broken + this.#decoder.decode(bytes.subarray(start, this.end)).trimEnd();
    this.#broken = '';
    const note = attached.exec(text);
    if (note !== null && note.index > 0 && note.index < longestBroken) {
      this.#broken = text.slice(0, note.index);
      return noEvent;
    }
    const parts = prefix.exec(text)!;
    let thread = parts[1] ?? parts[2];
    let seconds = parts[7];
    // A lone number is a thread's, but for one too large: --absolute-timestamps may leave out the fraction.
    if (parts[2] !== undefined && parts[3] === undefined && seconds === undefined && Number(parts[2]) >= 1e8) {
      [thread, seconds] = [undefined, parts[2]];
    }
    const time = this.#time(parts, seconds);
    const rest = text.slice(parts[0].length);
    if (!interesting.test(rest)) return undefined;
    return this.#call(rest, line, time, thread === undefined ? undefined : Number(thread));
  }

  close(): undefined {
    this.unreadable += [...this.#pending.values()].filter(({ text }) => setsRegion(text)).length;
    this.#pending.clear();
  }

  /** Microseconds of what a prefix says. */
  #time(parts: RegExpExecArray, seconds: string | undefined): number | undefined {
    if (parts[3] !== undefined) {
      const whole = (Number(parts[3]) * 60 + Number(parts[4])) * 60 + Number(parts[5]);
      const time = whole * 1e6 + Math.floor(nanoseconds(parts[6]) / 1000);
      // Past midnight; but clocks are also set back by a little.
      if (time < this.#timeOfDay - day / 2) this.#days += day;
      this.#timeOfDay = time;
      return this.#days + time;
    }
    if (seconds === undefined) return undefined;
    if (Number(seconds) >= 1e8) return Number(seconds) * 1e6 + Math.floor(nanoseconds(parts[8]) / 1000);
    this.#elapsed += Number(seconds) * 1e9 + nanoseconds(parts[8]);
    return Math.floor(this.#elapsed / 1000);
  }

  #call(
    text: string,
    line: number,
    time: number | undefined,
    thread: number | undefined,
  ): TraceEvent | typeof noEvent | undefined {
    const key = thread ?? 0;
    if (unfinished.test(text)) {
      const known = setsRegion(text) || text.includes('KVM_CREATE_VM');
      this.#pending.set(key, { text: text.replace(unfinished, ''), time });
      return known ? noEvent : undefined;
    }
    const end = resumed.exec(text);
    if (end !== null) {
      const begun = this.#pending.get(key);
      this.#pending.delete(key);
      if (begun === undefined) return undefined;
      return this.#whole(begun.text + end[1], line, begun.time, thread);
    }
    if (text.startsWith('+++')) {
      const begun = this.#pending.get(key);
      this.#pending.delete(key);
      if (begun !== undefined && setsRegion(begun.text)) this.unreadable++;
      this.#vms.exited(key);
      return undefined;
    }
    return this.#whole(text, line, time, thread);
  }

  /** A call with its arguments and its result. */
  #whole(
    text: string,
    line: number,
    time: number | undefined,
    thread: number | undefined,
  ): TraceEvent | typeof noEvent | undefined {
    const key = thread ?? 0;
    if (!text.startsWith('ioctl')) {
      const value = Number(result.exec(text)?.[1] ?? Number.NaN);
      if (!(value >= 0)) return undefined;
      if (!text.startsWith('close')) this.#vms.cloned(key, value, text.includes('CLONE_THREAD'));
      else if (value === 0) this.#vms.closed(key, Number.parseInt(text.slice('close('.length), 10));
      return undefined;
    }
    const [, descriptor, request] = call.exec(text) ?? [];
    if (descriptor === undefined || request === undefined) return undefined;
    if (createVm.test(request)) {
      const created = Number(result.exec(request)?.[1] ?? Number.NaN);
      if (created >= 0) this.#vms.created(key, created);
      return noEvent;
    }
    const set = setRegion.exec(request);
    if (set === null) {
      if (!setRegionUnnamed.test(request)) return undefined;
      this.unreadable++;
      return noEvent;
    }
    return this.#region(set[2]!, Number(descriptor), line, time, thread);
  }

  #region(
    text: string,
    descriptor: number,
    line: number,
    time: number | undefined,
    thread: number | undefined,
  ): TraceEvent | typeof noEvent {
    const outcome = result.exec(text);
    if (outcome === null) throw new MalformedLine('the call has no result');
    if (!text.startsWith('{') || outcome[1] === '?') {
      this.unreadable++;
      return noEvent;
    }
    const parts = region.exec(text);
    if (parts === null) throw new MalformedLine('the arguments of KVM_SET_USER_MEMORY_REGION have another form');
    const id = exact('slot', parts[1]!);
    if (id > 0xffffffff) throw new MalformedLine(`there is no slot ${id}`);
    const memfd = parts[7] === undefined ? -1 : Number(parts[7]);
    return {
      kind: 'slot',
      line,
      time,
      thread,
      vm: this.#vms.vm(thread ?? 0, descriptor),
      addressSpace: Math.floor(id / 0x10000),
      slot: id % 0x10000,
      flags: flags(parts[2]!),
      gpa: exact('guest_phys_addr', parts[3]!),
      size: exact('memory_size', parts[4]!),
      hostAddress: parts[5] === 'NULL' ? 0 : exact('userspace_addr', parts[5]!),
      guestMemfd: memfd >= 0 ? { fd: memfd, offset: exact('guest_memfd_offset', parts[6]!) } : undefined,
      result: outcome[1] === '-1' ? -errno(outcome[2]) : Number(outcome[1]),
    };
  }
}

function setsRegion(text: string): boolean {
  return text.startsWith('ioctl') && text.includes('KVM_SET_USER_MEMORY_REGION');
}

/** The digits after a decimal point in nanoseconds. */
function nanoseconds(fraction: string | undefined): number {
  return fraction === undefined ? 0 : Number(fraction.padEnd(9, '0'));
}

function exact(name: string, digits: string): number {
  const number = Number(digits);
  if (Number.isSafeInteger(number)) return number;
  const value = BigInt(digits);
  if (value >= 1n << 64n || BigInt(number) !== value) {
    throw new MalformedLine(`${name}=${digits} is too large to be held exactly`);
  }
  return number;
}

/** `KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY`, `0x8 /* KVM_MEM_??? *\/`, `0`. */
function flags(text: string): number {
  let sum = 0;
  for (const word of text.replace(/ *\/\*.*?\*\//g, '').split('|')) {
    const value = flagValues.get(word) ?? Number(word);
    if (!Number.isInteger(value)) throw new MalformedLine(`flags=${text} has a name that isn't known`);
    sum += value;
  }
  return sum;
}

function errno(name: string | undefined): number {
  const number = name === undefined ? undefined : errnoNumber(name);
  if (number === undefined) throw new MalformedLine(`the call failed with ${name ?? 'no errno'}, which isn't known`);
  return number;
}
