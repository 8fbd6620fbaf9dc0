type Cells = Float64Array | Uint32Array | Uint16Array | Uint8Array;

/** A list of numbers in a typed array that grows. */
export class Column<Array extends Cells> {
  /** The numbers; what lies behind {@link length} has no meaning. */
  cells: Array;
  length = 0;
  readonly #make: (length: number) => Array;

  /** `make` gives a zeroed array of a length: `(length) => new Uint32Array(length)`. */
  constructor(make: (length: number) => Array) {
    this.#make = make;
    this.cells = make(1024);
  }

  /** Appends a number and returns its index. */
  push(value: number): number {
    if (this.length === this.cells.length) {
      const larger = this.#make(2 * this.length);
      larger.set(this.cells);
      this.cells = larger;
    }
    this.cells[this.length] = value;
    return this.length++;
  }

  at(index: number): number {
    return this.cells[index]!;
  }

  set(index: number, value: number): void {
    this.cells[index] = value;
  }
}

export const float64 = () => new Column((length) => new Float64Array(length));
export const uint32 = () => new Column((length) => new Uint32Array(length));
export const uint16 = () => new Column((length) => new Uint16Array(length));
export const uint8 = () => new Column((length) => new Uint8Array(length));

/** Index of the first of `cells[0..length)`, which ascend, that is above `value`; `length` if none is. */
export function upperBound(cells: ArrayLike<number>, length: number, value: number): number {
  let [low, high] = [0, length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (cells[middle]! <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Index of the first of `cells[from..length)`, which ascend, that is not below `value`; `length` if none is. */
export function lowerBound(cells: ArrayLike<number>, length: number, value: number, from = 0): number {
  let [low, high] = [from, length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (cells[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** As {@link lowerBound}, for an answer that is probably not far behind `from`. */
export function lowerBoundNear(cells: ArrayLike<number>, length: number, value: number, from: number): number {
  let step = 1;
  let low = from;
  while (low + step < length && cells[low + step]! < value) {
    low += step;
    step *= 2;
  }
  return lowerBound(cells, Math.min(length, low + step + 1), value, low);
}
