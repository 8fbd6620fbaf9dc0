import { Painter } from './draw.js';
import { element, oncePerFrame } from './element.js';
import { paletteOf, sharpContext } from './palette.js';
import type { Timeline } from './timeline.js';
import { counted } from './words.js';

const inset = 10;

/**
 * The scrubber: over all transactions, the slots in use, the bytes torn down, and where holes and windows were; with a
 * native slider over it, so that it is moved by pointer, touch and keys alike.
 */
export class Strip {
  readonly element: HTMLElement;
  readonly slider: HTMLInputElement;
  readonly #canvas: HTMLCanvasElement;
  readonly #schedule = oncePerFrame(() => this.draw());
  readonly #observer: ResizeObserver;
  #timeline: Timeline | undefined;
  #position = 0;

  /** `select` is told the transaction that the user moves to. */
  constructor(select: (transaction: number) => void) {
    this.#canvas = element('canvas', { attributes: { 'aria-hidden': 'true' } });
    this.slider = element('input', {
      attributes: { type: 'range', min: '0', max: '0', step: '1', 'aria-label': 'Transaction' },
    });
    this.slider.addEventListener('input', () => select(Number(this.slider.value)));
    this.element = element('div', { class: 'strip', children: [this.#canvas, this.slider] });
    this.#observer = new ResizeObserver(() => this.draw());
    this.#observer.observe(this.element);
  }

  close(): void {
    this.#observer.disconnect();
  }

  /** Shows transaction `position` of `timeline`; `text` is what is read aloud. */
  show(timeline: Timeline, position: number, text: string): void {
    this.#timeline = timeline;
    this.#position = position;
    this.slider.max = `${Math.max(0, timeline.length - 1)}`;
    this.slider.value = `${position}`;
    this.slider.setAttribute('aria-valuetext', text);
    this.#schedule();
  }

  recolour(): void {
    this.#schedule();
  }

  draw(): void {
    const timeline = this.#timeline;
    const [width, height] = [this.element.clientWidth, this.element.clientHeight];
    if (timeline === undefined || width === 0) return;
    const palette = paletteOf(this.element);
    const context = sharpContext(this.#canvas, width, height);
    const painter = new Painter(context);
    painter.rectangle(0, 0, width, height, palette.background);
    const columns = columnsOf(timeline, Math.max(1, width - 2 * inset));
    const base = height - 16;
    const rise = base - 16;
    for (const [x, column] of columns.entries()) {
      if (column === undefined) continue;
      const slots = (column.slots / columns.mostSlots) * rise;
      painter.rectangle(inset + x, base - slots, 1, slots, palette.line);
      painter.rectangle(inset + x, base - slots - 1, 1, 2, palette.muted);
    }
    // Over all of them: what is wide reaches into the columns that follow.
    for (const [x, column] of columns.entries()) {
      if (column === undefined) continue;
      if (column.tornDown > 0) {
        const torn = (Math.log2(1 + column.tornDown / 4096) / columns.mostTornDown) * rise * 0.8;
        painter.rectangle(inset + x, base - torn, column.wide, torn, palette.deleted);
      }
      if (column.holes > 0) painter.rectangle(inset + x - 1, base + 3, Math.max(2, column.wide), 8, palette.danger);
      else if (column.windows > 0)
        painter.rectangle(inset + x - 1, base + 3, Math.max(2, column.wide), 8, palette.held);
    }
    const last = Math.max(1, timeline.length - 1);
    const x = inset + (this.#position / last) * (width - 2 * inset);
    painter.rectangle(x - 1, 15, 2, height - 15, palette.focus);
    context.font = '11px system-ui, sans-serif';
    context.textBaseline = 'top';
    painter.text(`up to ${counted(columns.mostSlots, 'slot')} in use`, inset, 1, palette.muted);
    let right = width - inset;
    const seen = (figure: 'windows' | 'holes' | 'tornDown') => columns.some((column) => (column?.[figure] ?? 0) > 0);
    for (const [figure, name, colour, room] of [
      ['windows', 'vCPUs held', palette.held, 70],
      ['holes', 'holes', palette.danger, 42],
      ['tornDown', 'bytes torn down', palette.deleted, 100],
    ] as const) {
      if (!seen(figure)) continue;
      painter.text(name, right, 1, colour, 'right');
      right -= room;
    }
  }
}

interface StripColumn {
  slots: number;
  tornDown: number;
  holes: number;
  windows: number;
  /** Pixels up to the next transaction's column, less a gap. */
  wide: number;
}

interface StripColumns extends Array<StripColumn | undefined> {
  mostSlots: number;
  mostTornDown: number;
}

/** What happened in each pixel column. */
function columnsOf(timeline: Timeline, width: number): StripColumns {
  const { slots, tornDown, window, holes } = timeline.transactions;
  const columns = Object.assign(new Array<StripColumn | undefined>(width).fill(undefined), {
    mostSlots: 1,
    mostTornDown: 1,
  });
  const last = Math.max(1, timeline.length - 1);
  const wide = Math.max(1, Math.min(8, Math.floor(width / timeline.length) - 1));
  let before = 0;
  for (let index = 0; index < timeline.length; index++) {
    const x = Math.min(width - 1, Math.floor((index / last) * (width - 1)));
    const nextHole = index + 1 < timeline.length ? holes.at(index + 1) : timeline.holes.gpa.length;
    columns[x] ??= { slots: 0, tornDown: 0, holes: 0, windows: 0, wide };
    const column = columns[x]!;
    column.slots = Math.max(column.slots, slots.at(index));
    column.tornDown = Math.max(column.tornDown, tornDown.at(index));
    if (Number.isNaN(window.at(index))) column.holes += nextHole - holes.at(index);
    else column.windows++;
    columns.mostSlots = Math.max(columns.mostSlots, slots.at(index));
    columns.mostTornDown = Math.max(columns.mostTornDown, Math.log2(1 + tornDown.at(index) / 4096));
    // Slots stay in use until the next transaction.
    for (let gap = before + 1; gap < x; gap++)
      columns[gap] ??= { slots: columns[before]!.slots, tornDown: 0, holes: 0, windows: 0, wide };
    before = x;
  }
  return columns;
}
