const newline = 10;

/** The bytes of an ASCII text. */
export function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** The value of each byte as a hexadecimal digit, 255 for all others. */
const digits = new Uint8Array(256).fill(255);
for (let value = 0; value < 16; value++) {
  digits[value.toString(16).charCodeAt(0)] = value;
  digits[value.toString(16).toUpperCase().charCodeAt(0)] = value;
}

/** Why the last number was refused; a parser's error message ends with it. */
export type NumberFault = 'no number' | 'a number too large to be held exactly';

/**
 * A place in a buffer whose last byte is a newline: since nothing here accepts a newline, nothing here leaves its
 * line, and no method needs to look for the end of the buffer.
 */
export class Cursor {
  bytes: Uint8Array = new Uint8Array([newline]);
  at = 0;
  /** Set when {@link hex}, {@link decimal} or {@link integer} answers NaN. */
  fault: NumberFault = 'no number';

  /** Passes `text` if it comes next. */
  pass(text: Uint8Array): boolean {
    const { bytes, at } = this;
    const length = text.length;
    for (let index = 0; index < length; index++) {
      if (bytes[at + index] !== text[index]) return false;
    }
    this.at = at + length;
    return true;
  }

  /** The next byte; a newline at the end of the line. */
  peek(): number {
    return this.bytes[this.at]!;
  }

  /** Hexadecimal digits as a number, exactly; NaN if there are none or the value has no exact number. */
  hex(): number {
    const { bytes } = this;
    let at = this.at;
    let high = 0;
    let low = 0;
    let lost = 0;
    let digit = digits[bytes[at]!]!;
    if (digit === 255) return this.#refuse('no number');
    do {
      lost |= high >>> 28;
      high = (high << 4) | (low >>> 28);
      low = (low << 4) | digit;
      digit = digits[bytes[++at]!]!;
    } while (digit !== 255);
    this.at = at;
    if (high === 0 && lost === 0) return low >>> 0;
    const upper = (high >>> 0) * 0x1_0000_0000;
    const value = upper + (low >>> 0);
    return lost === 0 && value - upper === low >>> 0 ? value : this.#refuse('a number too large to be held exactly');
  }

  /** Decimal digits as a number below 10^15; NaN if there are none or more. */
  decimal(): number {
    const { bytes } = this;
    const start = this.at;
    let at = start;
    let value = 0;
    let digit = bytes[at]! - 48;
    while (digit >= 0 && digit <= 9) {
      value = value * 10 + digit;
      digit = bytes[++at]! - 48;
    }
    this.at = at;
    if (at === start) return this.#refuse('no number');
    return at - start <= 15 ? value : this.#refuse('a number too large to be held exactly');
  }

  /** A decimal number with an optional sign. */
  integer(): number {
    if (this.bytes[this.at] !== 45) return this.decimal();
    this.at++;
    const value = this.decimal();
    return value === 0 ? 0 : -value;
  }

  /** Goes past `name=value`, or stays. */
  skipField(): void {
    const { bytes } = this;
    let at = this.at;
    while (isLetter(bytes[at]!)) at++;
    if (at === this.at || bytes[at] !== 61) return;
    while (bytes[at]! > 32) at++;
    this.at = at;
  }

  #refuse(fault: NumberFault): number {
    this.fault = fault;
    return Number.NaN;
  }
}

/** Lower-case letters and `_`. */
function isLetter(byte: number): boolean {
  return (byte >= 97 && byte <= 122) || byte === 95;
}
