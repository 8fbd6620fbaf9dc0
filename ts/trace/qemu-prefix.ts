const [space, dash, dot, zero, colon, at, letterZ] = [32, 45, 46, 48, 58, 64, 90];
const longestSecond = 32;
const isoLength = '2025-07-21T18:43:28'.length;

/** Reads the time and thread that QEMU puts before an event: `THREAD@SECONDS.MICROSECONDS:` or `2025-07-21T18:43:28.089797Z `. */
export class LinePrefix {
  /** What the last line said: microseconds since the epoch. */
  time: number | undefined;
  thread: number | undefined;
  /** The last line's `THREAD@SECONDS.` or ISO time: its bytes, their number, and what they say (microseconds). */
  readonly #second = new DataView(new ArrayBuffer(longestSecond));
  #secondLength = 0;
  #secondStart = 0;
  #secondThread: number | undefined;

  /** Reads what begins the line at `start`; the place behind it or, without it, `start`. */
  read(bytes: Uint8Array, view: DataView, start: number): number {
    this.time = undefined;
    this.thread = undefined;
    let length = this.#secondLength;
    if (length === 0 || !same(view, start, this.#second, length)) {
      length = this.#readSecond(bytes, start) || this.#readIsoSecond(bytes, start);
      if (length === 0) return this.#wholeSecond(bytes, start);
    }
    const place = start + length;
    const micros = sixDigits(bytes, place);
    if (micros < 0) return start;
    if (this.#secondThread === undefined) {
      if (bytes[place + 6] !== letterZ || bytes[place + 7] !== space) return start;
      this.time = this.#secondStart + micros;
      return place + 8;
    }
    if (bytes[place + 6] !== colon) return start;
    this.time = this.#secondStart + micros;
    this.thread = this.#secondThread;
    return place + 7;
  }

  /**
   * Reads `THREAD@SECONDS.`, and remembers it: mostly the next lines begin alike. Its length, or 0 if the line begins
   * otherwise.
   */
  #readSecond(bytes: Uint8Array, start: number): number {
    let place = start;
    let thread = 0;
    let digit = bytes[place]! - zero;
    while (digit >= 0 && digit <= 9) {
      thread = thread * 10 + digit;
      digit = bytes[++place]! - zero;
    }
    if (place === start || bytes[place] !== at) return 0;
    let seconds = 0;
    digit = bytes[++place]! - zero;
    while (digit >= 0 && digit <= 9) {
      seconds = seconds * 10 + digit;
      digit = bytes[++place]! - zero;
    }
    const length = place + 1 - start;
    if (bytes[place] !== dot || length > longestSecond || seconds > 9e9) return 0;
    this.#secondStart = seconds * 1e6;
    this.#secondThread = thread;
    return this.#rememberSecond(bytes, start, length);
  }

  /** Reads and remembers `2025-07-21T18:43:28.`. */
  #readIsoSecond(bytes: Uint8Array, start: number): number {
    const time = this.#isoTime(bytes, start);
    if (Number.isNaN(time) || bytes[start + isoLength] !== dot) return 0;
    this.#secondStart = time;
    this.#secondThread = undefined;
    return this.#rememberSecond(bytes, start, isoLength + 1);
  }

  #rememberSecond(bytes: Uint8Array, start: number, length: number): number {
    for (let index = 0; index < length; index++) this.#second.setUint8(index, bytes[start + index]!);
    this.#secondLength = length;
    return length;
  }

  /** `2025-07-21T18:43:28Z `: at a whole second, the fraction is left out. */
  #wholeSecond(bytes: Uint8Array, start: number): number {
    const time = this.#isoTime(bytes, start);
    const end = start + isoLength;
    if (Number.isNaN(time) || bytes[end] !== letterZ || bytes[end + 1] !== space) return start;
    this.time = time;
    return end + 2;
  }

  /** `2025-07-21T18:43:28` in microseconds since the epoch; NaN for anything else. */
  #isoTime(bytes: Uint8Array, start: number): number {
    if (bytes[start + 4] !== dash) return Number.NaN;
    const text = String.fromCharCode(...bytes.subarray(start, start + isoLength));
    return /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$/.test(text) ? Date.parse(`${text}Z`) * 1000 : Number.NaN;
  }
}

/** Whether the first `length` bytes of `text`, all ASCII, stand at a place (compared as in {@link matches}). */
function same(view: DataView, at: number, text: DataView, length: number): boolean {
  if (length < 8) {
    for (let index = 0; index < length; index++) {
      if (view.getUint8(at + index) !== text.getUint8(index)) return false;
    }
    return true;
  }
  for (let index = 0; index < length - 8; index += 8) {
    if (view.getFloat64(at + index) !== text.getFloat64(index)) return false;
  }
  return view.getFloat64(at + length - 8) === text.getFloat64(length - 8);
}

/** Six decimal digits as a number; −1 if there are fewer. */
function sixDigits(bytes: Uint8Array, at: number): number {
  let value = 0;
  for (let index = 0; index < 6; index++) {
    const digit = bytes[at + index]! - zero;
    if (digit < 0 || digit > 9) return -1;
    value = value * 10 + digit;
  }
  return value;
}
