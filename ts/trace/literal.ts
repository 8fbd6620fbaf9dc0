/** How many bytes a buffer must have after the place where {@link matches} looks, beyond the end of its line. */
export const slack = 8;

/**
 * An ASCII text to be compared with. Eight bytes at a time are compared as one floating-point
 * number (ASCII never makes a NaN or a zero, so that equality is that of the bytes), the last eight overlapping.
 */
export interface Literal {
  readonly text: string;
  readonly length: number;
  /** The first four and the last four bytes, of texts shorter than eight bytes; zeroes behind still shorter ones. */
  readonly start: number;
  readonly end: number;
  /** Which bits of `start` count. */
  readonly mask: number;
  /** All bytes in eights but the last eight, of the other texts. */
  readonly eights: Float64Array;
  readonly last: number;
}

export function literal(text: string): Literal {
  const { length } = text;
  const view = new DataView(new ArrayBuffer(Math.max(length, 4)));
  new TextEncoder().encodeInto(text, new Uint8Array(view.buffer));
  const mask = length < 4 ? (1 << (length * 8)) - 1 : -1;
  if (length < 8) {
    const [start, end] = [view.getInt32(0, true), view.getInt32(Math.max(length - 4, 0), true)];
    return { text, length, start, end, mask, eights: new Float64Array(0), last: 0 };
  }
  const eights = Float64Array.from({ length: (length - 1) >> 3 }, (_, index) => view.getFloat64(index * 8, true));
  return { text, length, start: 0, end: 0, mask, eights, last: view.getFloat64(length - 8, true) };
}

/**
 * Whether `text` stands at a place. Since no text holds a newline, a line that ends earlier never matches, so that the
 * end of the buffer needs no look; but up to {@link slack} bytes behind the line are loaded.
 */
export function matches(view: DataView, at: number, text: Literal): boolean {
  const { length } = text;
  if (length < 4) return (view.getInt32(at, true) & text.mask) === text.start;
  if (length < 8) return view.getInt32(at, true) === text.start && view.getInt32(at + length - 4, true) === text.end;
  const { eights } = text;
  for (let index = 0; index < eights.length; index++) {
    if (view.getFloat64(at + index * 8, true) !== eights[index]) return false;
  }
  return view.getFloat64(at + length - 8, true) === text.last;
}
