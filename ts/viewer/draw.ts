import type { Viewport } from './axis.js';
import { lowerBoundNear, upperBound } from './columns.js';
import { ioFill, type Lane, marks } from './lanes.js';

/** Colours of a drawing, as CSS colours. */
export interface Palette {
  readonly background: string;
  readonly lane: string;
  readonly ink: string;
  readonly muted: string;
  readonly line: string;
  readonly io: string;
  readonly danger: string;
  readonly created: string;
  readonly held: string;
  readonly deleted: string;
  readonly changed: string;
  readonly focus: string;
  /** Ink on a range's own colour. */
  readonly label: string;
  readonly memory: readonly string[];
}

/** The part of a 2D context that drawings use. */
export type Context = Pick<
  CanvasRenderingContext2D,
  'fillStyle' | 'strokeStyle' | 'lineWidth' | 'font' | 'textBaseline' | 'textAlign'
> & {
  fillRect(x: number, y: number, width: number, height: number): void;
  strokeRect(x: number, y: number, width: number, height: number): void;
  fillText(text: string, x: number, y: number): void;
  setLineDash(segments: number[]): void;
  beginPath(): void;
  moveTo(x: number, y: number): void;
  lineTo(x: number, y: number): void;
  stroke(): void;
};

/** A context that counts what it draws. */
export class Painter {
  readonly context: Context;
  /** Rectangles, strokes and texts drawn so far. */
  operations = 0;

  constructor(context: Context) {
    this.context = context;
  }

  rectangle(x: number, y: number, width: number, height: number, colour: string): void {
    this.operations++;
    this.context.fillStyle = colour;
    this.context.fillRect(x, y, width, height);
  }

  outline(x: number, y: number, width: number, height: number, colour: string, dash: number[] = [], line = 2): void {
    this.operations++;
    this.context.strokeStyle = colour;
    this.context.lineWidth = line;
    this.context.setLineDash(dash);
    this.context.strokeRect(x, y, width, height);
  }

  /** Slanted lines across a rectangle, as one stroke. */
  hatch(x: number, y: number, width: number, height: number, colour: string, gap: number, crossed = false): void {
    this.operations++;
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.setLineDash([]);
    context.beginPath();
    for (let at = x - height + gap; at < x + width; at += gap) {
      // Clipped by hand: [at, at + height] goes up from the lower edge.
      const [from, to] = [Math.max(x, at), Math.min(x + width, at + height)];
      if (from >= to) continue;
      context.moveTo(from, y + height - (from - at));
      context.lineTo(to, y + height - (to - at));
      if (!crossed) continue;
      context.moveTo(from, y + (from - at));
      context.lineTo(to, y + (to - at));
    }
    context.stroke();
  }

  text(text: string, x: number, y: number, colour: string, align: CanvasTextAlign = 'left'): void {
    this.operations++;
    this.context.fillStyle = colour;
    this.context.textAlign = align;
    this.context.fillText(text, x, y);
  }
}

/** Where a lane is drawn: pixels. */
export interface LaneBox {
  readonly y: number;
  readonly height: number;
}

/** Pixels of a character of the drawing's font. */
export const characterWidth = 7.25;
/** Characters that a label which doesn't fit must keep to be of use. */
const leastCut = 8;
/** From this mark on, there is nothing to be drawn but the mark. */
const firstHoleMark = marks.indexOf('hole');
const deletedMark = marks.indexOf('deleted');

/**
 * Draws a lane's ranges. What is narrower than two pixels is merged with its neighbours, so that the number of drawn
 * objects depends on the width and not on the number of ranges; with `merge` false, everything is drawn one by one.
 */
export function drawLane(
  painter: Painter,
  view: Viewport,
  lane: Lane,
  box: LaneBox,
  palette: Palette,
  merge = true,
): void {
  drawRanges(painter, view, lane, box, palette, merge);
  drawMarks(painter, view, lane, box, palette);
}

function drawRanges(
  painter: Painter,
  view: Viewport,
  { starts, ends, fills, marks: marked, readonly, label }: Lane,
  { y, height }: LaneBox,
  palette: Palette,
  merge: boolean,
): void {
  const count = starts.length;
  const { columns } = view;
  const last = columns.length - 1;
  const right = columns[last]!;
  let pending: { x: number; end: number; colour: string } | undefined;
  const flush = () => {
    if (pending !== undefined) painter.rectangle(pending.x, y, pending.end - pending.x, height, pending.colour);
    pending = undefined;
  };
  let index = upperBound(ends, count, view.left);
  let column = 0;
  while (index < count && starts[index]! < right) {
    while (column < last - 1 && columns[column + 1]! <= starts[index]!) column++;
    const colour = fills[index] === ioFill ? palette.io : palette.memory[fills[index]!]!;
    if (
      !merge ||
      ends[index]! > columns[Math.min(last, column + 2)]! ||
      (column === last - 1 && ends[index]! > right)
    ) {
      flush();
      const from = Math.max(0, view.x(starts[index]!));
      const to = Math.min(view.width, view.x(ends[index]!));
      if (marked[index]! < firstHoleMark) {
        painter.rectangle(from, y, Math.max(0.5, to - from - 1), height, colour);
        // Read-only memory has a bar along its lower edge.
        if (readonly[index] === 1 && to - from >= 4)
          painter.rectangle(from, y + height - 4, to - from - 1, 2, palette.label);
        // What is crossed out gets its label later, over the lines.
        if (marked[index] !== deletedMark) drawLabel(painter, label(index), from, to, y + height / 2, palette.label);
      }
      index++;
      continue;
    }
    if (pending !== undefined && pending.end >= column && pending.colour === colour) pending.end = column + 1;
    else {
      flush();
      pending = { x: column, end: column + 1, colour };
    }
    // Past all that begins in this pixel, and at least one.
    index = lowerBoundNear(starts, count, columns[column + 1]!, index + 1);
  }
  flush();
}

function drawLabel(painter: Painter, text: string, from: number, to: number, y: number, colour: string): void {
  const width = to - from - 8;
  if (text.length === 0) return;
  const room = Math.floor(width / characterWidth);
  if (room < text.length && room < leastCut) return;
  const shown = text.length <= room ? text : `${text.slice(0, room - 1)}…`;
  painter.text(shown, from + 5, y, colour);
}

/** What the transaction did to ranges of a lane, over them: at least three pixels wide, so that none is missed. */
function drawMarks(
  painter: Painter,
  view: Viewport,
  { starts, ends, marks: marked, changed, label }: Lane,
  { y, height }: LaneBox,
  palette: Palette,
): void {
  const right = view.right;
  let reached = Number.NEGATIVE_INFINITY;
  for (const index of changed) {
    if (ends[index]! <= view.left) continue;
    if (starts[index]! >= right) break;
    const from = Math.max(0, view.x(starts[index]!));
    const to = Math.min(view.width, view.x(ends[index]!));
    const [x, width] = [from, Math.max(3, to - from - 1)];
    // Each drawn one reaches at least a pixel further, however many share it.
    if (x + width < reached + 1) continue;
    reached = x + width;
    drawMark(painter, marks[marked[index]!]!, x, y, width, height, palette, label(index));
  }
}

function drawMark(
  painter: Painter,
  mark: (typeof marks)[number],
  x: number,
  y: number,
  width: number,
  height: number,
  palette: Palette,
  label: string,
): void {
  const wide = width >= 10;
  if (mark === 'hole' || mark === 'held') {
    const colour = mark === 'hole' ? palette.danger : palette.held;
    painter.rectangle(x, y - 3, width, height + 6, palette.background);
    if (wide) painter.hatch(x, y - 3, width, height + 6, colour, 7);
    painter.outline(x + 1, y - 2, Math.max(1, width - 2), height + 4, colour);
    if (width < 56) return;
    painter.rectangle(x + width / 2 - 24, y + height / 2 - 10, 48, 20, palette.background);
    painter.text(mark.toUpperCase(), x + width / 2, y + height / 2, colour, 'center');
  } else if (mark === 'deleted') {
    if (wide) painter.hatch(x, y, width, height, palette.deleted, 9, true);
    painter.outline(x + 1, y + 1, Math.max(1, width - 2), height - 2, palette.deleted, [5, 3]);
    const room = label.length * characterWidth + 10;
    if (width < room + 6) return;
    painter.rectangle(x + 4, y + height / 2 - 9, room, 18, palette.background);
    painter.text(label, x + 9, y + height / 2, palette.ink);
  } else if (mark === 'created') {
    painter.outline(x + 1, y + 1, Math.max(1, width - 2), height - 2, palette.created, [], 3);
    if (width >= 26) painter.text('+', x + width - 13, y + 10, palette.label);
  } else if (mark === 'changed') {
    painter.outline(x + 1, y + 1, Math.max(1, width - 2), height - 2, palette.changed, [2, 3], 3);
    if (width >= 26) painter.text('~', x + width - 13, y + 10, palette.label);
  }
}
