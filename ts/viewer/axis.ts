import { float64, lowerBound, upperBound } from './columns.js';

const pageSize = 4096;
/** Where the axis ends, if nothing lies above: no processor has more physical address bits. */
const usualEnd = 2 ** 52;

/** How wide a stretch is that no range ever covered, whatever its size. */
const breakWeight = 0.5;

/**
 * The axis of an address space: guest-physical addresses in stretches, each linear in itself. A stretch lies between
 * two addresses at which some range ever began or ended. Its width grows with the logarithm of its size and with the
 * time it was in use, so that 16 KiB of a BIOS can be seen beside gigabytes; what was never in use is a narrow break.
 * Positions on it are exact at every scale, because they are computed from the nearest stretch and not from 0.
 */
export class Axis {
  /** First address of each stretch, ascending from 0; the last is the axis's end. */
  readonly starts: Float64Array;
  /** Where each stretch begins on the axis, in units of width; the last is its whole width. */
  readonly positions: Float64Array;
  /** 1 for stretches that no range ever covered. */
  readonly empty: Uint8Array;
  /** Width units a byte, by stretch. */
  readonly slopes: Float64Array;

  /** Ranges of one address space by `gpa` and `size`, each weighted by the time it was in use, from 0 to 1. */
  constructor(gpas: ArrayLike<number>, sizes: ArrayLike<number>, use: ArrayLike<number>) {
    const count = gpas.length;
    const edges = new Float64Array(2 * count + 2);
    let end = usualEnd;
    for (let index = 0; index < count; index++) {
      edges[2 * index] = gpas[index]!;
      edges[2 * index + 1] = gpas[index]! + sizes[index]!;
      end = Math.max(end, edges[2 * index + 1]!);
    }
    edges[2 * count] = 0;
    edges[2 * count + 1] = end;
    this.starts = distinct(edges.sort());
    const stretches = this.starts.length - 1;
    const used = this.#used(gpas, sizes, use);
    this.positions = new Float64Array(stretches + 1);
    this.slopes = new Float64Array(stretches);
    this.empty = new Uint8Array(stretches);
    for (let stretch = 0; stretch < stretches; stretch++) {
      const size = this.starts[stretch + 1]! - this.starts[stretch]!;
      // A sum of shares may miss 0 by a rounding error; no real share of up to 10^9 transactions is that small.
      const isEmpty = used[stretch]! < 1e-12;
      const weight = isEmpty ? breakWeight : bySize(size) * byUse(used[stretch]!);
      this.empty[stretch] = isEmpty ? 1 : 0;
      this.positions[stretch + 1] = this.positions[stretch]! + weight;
      this.slopes[stretch] = weight / size;
    }
  }

  /** The share of time in which each stretch was in use. */
  #used(gpas: ArrayLike<number>, sizes: ArrayLike<number>, use: ArrayLike<number>): Float64Array {
    const used = new Float64Array(this.starts.length);
    for (let index = 0; index < gpas.length; index++) {
      const first = lowerBound(this.starts, this.starts.length, gpas[index]!);
      const end = lowerBound(this.starts, this.starts.length, gpas[index]! + sizes[index]!, first);
      used[first]! += use[index]!;
      used[end]! -= use[index]!;
    }
    for (let stretch = 1; stretch < used.length; stretch++) used[stretch]! += used[stretch - 1]!;
    return used;
  }

  /** Where the axis ends, in bytes. */
  get end(): number {
    return this.starts[this.starts.length - 1]!;
  }

  /** Its whole width, in its own units. */
  get width(): number {
    return this.positions[this.positions.length - 1]!;
  }

  /** The stretch that holds `gpa`. */
  stretch(gpa: number): number {
    return Math.max(0, Math.min(this.starts.length - 2, upperBound(this.starts, this.starts.length, gpa) - 1));
  }
}

/** What was in use only now and then is narrower, but never too narrow to be seen. */
function byUse(share: number): number {
  return 0.05 + 0.95 * Math.min(1, share) ** 0.75;
}

function bySize(bytes: number): number {
  return Math.max(0.25, 1 + Math.log2(Math.max(1, bytes / pageSize)) / 4);
}

/** The different ones of ascending numbers. */
function distinct(sorted: Float64Array): Float64Array {
  const result = float64();
  for (const value of sorted) {
    if (result.length === 0 || value !== result.at(result.length - 1)) result.push(value);
  }
  return result.cells.subarray(0, result.length);
}

/**
 * What part of an axis a drawing shows: it starts at address `left` (bytes, may have a fraction), and `scale` units of
 * width are one pixel. Immutable.
 */
export class Viewport {
  readonly axis: Axis;
  readonly left: number;
  readonly scale: number;
  /** Pixels. */
  readonly width: number;
  readonly #stretch: number;
  /** Width units from `left` to the end of its stretch. */
  readonly #rest: number;
  #columns: Float64Array | undefined;

  private constructor(axis: Axis, width: number, left: number, scale: number) {
    this.axis = axis;
    this.width = width;
    this.left = left;
    this.scale = scale;
    this.#stretch = axis.stretch(left);
    this.#rest = (axis.starts[this.#stretch + 1]! - left) * axis.slopes[this.#stretch]!;
  }

  /** All of an axis. */
  static whole(axis: Axis, width: number): Viewport {
    return new Viewport(axis, Math.max(1, width), 0, axis.width / Math.max(1, width));
  }

  /** As close as can be to showing [`gpa`, `gpa + size`) alone. */
  static range(axis: Axis, width: number, gpa: number, size: number): Viewport {
    const whole = Viewport.whole(axis, width);
    const distance = whole.distance(gpa, Math.min(axis.end, gpa + size));
    return whole.placed(gpa, 0, distance / whole.width);
  }

  /** The address at the right edge. */
  get right(): number {
    return this.gpa(this.width);
  }

  /** The address at the left edge of each pixel, and behind the last: found once for all that is drawn. */
  get columns(): Float64Array {
    if (this.#columns === undefined) {
      const columns = new Float64Array(Math.ceil(this.width) + 1);
      for (let x = 0; x < columns.length; x++) columns[x] = this.gpa(x);
      this.#columns = columns;
    }
    return this.#columns;
  }

  /** Width units from address `from` up to address `to`. */
  distance(from: number, to: number): number {
    const { axis } = this;
    const [first, last] = [axis.stretch(from), axis.stretch(to)];
    if (first === last) return (to - from) * axis.slopes[first]!;
    const rest = (axis.starts[first + 1]! - from) * axis.slopes[first]!;
    const between = axis.positions[last]! - axis.positions[first + 1]!;
    return rest + between + (to - axis.starts[last]!) * axis.slopes[last]!;
  }

  /** Pixels from the left edge to address `gpa`: negative to the left of it. */
  x(gpa: number): number {
    return this.xIn(this.axis.stretch(gpa), gpa);
  }

  /** As {@link x}, of an address that is known to lie in `stretch` or at its end. */
  xIn(stretch: number, gpa: number): number {
    const { axis } = this;
    if (stretch === this.#stretch) return ((gpa - this.left) * axis.slopes[stretch]!) / this.scale;
    if (gpa < this.left) return -this.distance(gpa, this.left) / this.scale;
    const between = axis.positions[stretch]! - axis.positions[this.#stretch + 1]!;
    const inside = (gpa - axis.starts[stretch]!) * axis.slopes[stretch]!;
    return (this.#rest + between + inside) / this.scale;
  }

  /** The address at `x` pixels from the left edge. */
  gpa(x: number): number {
    return this.#walk(this.left, x * this.scale, this.#stretch);
  }

  /** The address `distance` width units above `from`, which lies in `stretch`, or below it if that is negative. */
  #walk(from: number, distance: number, stretch = this.axis.stretch(from)): number {
    const { axis } = this;
    const slope = axis.slopes[stretch]!;
    const there = from + distance / slope;
    if (there >= axis.starts[stretch]! && there < axis.starts[stretch + 1]!) return there;
    const position =
      distance > 0
        ? axis.positions[stretch + 1]! + (distance - (axis.starts[stretch + 1]! - from) * slope)
        : axis.positions[stretch]! + (distance + (from - axis.starts[stretch]!) * slope);
    const other = Math.min(
      axis.slopes.length - 1,
      Math.max(0, upperBound(axis.positions, axis.positions.length, position) - 1),
    );
    const gpa = axis.starts[other]! + (position - axis.positions[other]!) / axis.slopes[other]!;
    return Math.max(0, Math.min(axis.end, gpa));
  }

  /** Shows address `gpa` at pixel `x`, at `scale`; within the axis, and no closer than one page. */
  placed(gpa: number, x: number, scale: number): Viewport {
    const { axis, width } = this;
    const closest = (axis.slopes[axis.stretch(gpa)]! * pageSize) / width;
    const bounded = Math.max(Math.min(closest, axis.width / width), Math.min(axis.width / width, scale));
    const left = Math.max(0, this.#walk(gpa, -x * bounded));
    const rest = this.distance(left, axis.end);
    if (rest >= width * bounded) return new Viewport(axis, width, left, bounded);
    return new Viewport(axis, width, this.#walk(axis.end, -width * bounded), bounded);
  }

  /** Closer by `factor` (further away below 1), with what is at pixel `x` staying there. */
  zoomed(x: number, factor: number): Viewport {
    return this.placed(this.gpa(x), x, this.scale / factor);
  }

  /** Moved so that what is `pixels` to the right comes to the left edge. */
  moved(pixels: number): Viewport {
    return this.placed(this.gpa(pixels), 0, this.scale);
  }

  /** The same addresses on another axis, or in another width. */
  on(axis: Axis, width: number): Viewport {
    if (this.scale * this.width >= this.axis.width * 0.999_999) return Viewport.whole(axis, width);
    return Viewport.range(axis, width, this.left, this.right - this.left);
  }
}
