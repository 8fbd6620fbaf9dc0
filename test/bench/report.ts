import type { Sample } from './sampler.js';

/** One line of the report. `ratio` is ours / rival, `reach` the largest ratio that counts as reached. */
export interface Row {
  readonly name: string;
  readonly ours: number;
  readonly rival: number;
  readonly ratio: number;
  readonly reach: number;
  readonly reached: boolean;
}

/** What couldn't be measured here, and why. */
export interface Skipped {
  readonly name: string;
  readonly why: string;
}

/** Something that grows: one line a series, points of (x, y). Drawn with logarithmic axes. */
export interface Curve {
  readonly title: string;
  readonly x: string;
  readonly y: string;
  readonly series: Readonly<Record<string, readonly (readonly [number, number])[]>>;
}

/** Collects what the groups of the benchmark find. */
export class Report {
  readonly rows: Row[] = [];
  readonly skipped: Skipped[] = [];
  readonly curves: Curve[] = [];
  /** Measure briefly. */
  readonly quick: boolean;
  readonly #say: (line: string) => void;

  /** `say` is told each line of the report, and what is being done. */
  constructor(quick: boolean, say: (line: string) => void) {
    this.quick = quick;
    this.#say = say;
  }

  /** `full`, or less when time is short. Milliseconds, or a count. */
  budget(full: number, quick: number): number {
    return this.quick ? quick : full;
  }

  /**
   * Adds a line. `name` says what is measured and in which unit. `reach` bounds ours / rival; where the bound is on
   * ours alone, give it as a function of the rival's value.
   */
  add(name: string, ours: number | Sample, rival: number | Sample, reach: number | ((rival: number) => number)): void {
    const [mine, other] = [figureOf(ours), figureOf(rival)];
    const ratio = mine / other;
    const bound = typeof reach === 'number' ? reach : reach(other) / other;
    const row = { name, ours: mine, rival: other, ratio, reach: bound, reached: ratio <= bound };
    this.rows.push(row);
    this.#say(lineOf(row, [ours, rival]));
  }

  skip(name: string, why: string): void {
    this.skipped.push({ name, why });
    this.#say(`  -  ${name}: skipped, ${why}`);
  }

  heading(text: string): void {
    this.#say(`\n${text}`);
    this.#say(
      `${' '.repeat(nameWidth + 5)}${['ours', 'rival', 'ratio', 'reach'].map((word) => word.padStart(11)).join('')}`,
    );
  }

  note(text: string): void {
    this.#say(`     ${text}`);
  }

  get json(): { rows: Row[]; skipped: Skipped[] } {
    return { rows: this.rows, skipped: this.skipped };
  }
}

const nameWidth = 88;

function figureOf(value: number | Sample): number {
  return typeof value === 'number' ? value : value.median;
}

function lineOf(row: Row, samples: readonly (number | Sample)[]): string {
  const cells = [row.ours, row.rival, row.ratio, row.reach].map((value) => format(value).padStart(11));
  const spread = samples
    .map((sample) => {
      if (typeof sample === 'number') return '';
      return `±${Math.round(((sample.high - sample.low) / 2 / sample.median) * 100)}%`;
    })
    .join(' ');
  return `${row.reached ? ' yes ' : ' NO  '}${row.name.padEnd(nameWidth)}${cells.join('')}  ${spread}`;
}

/** Three or four digits that matter. */
export function format(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value >= 1000) return Math.round(value).toLocaleString('en');
  return value.toPrecision(3).replace(/e-(\d)$/, 'e-$1');
}
