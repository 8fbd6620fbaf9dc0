import type { Viewport } from './axis.js';
import { characterWidth, type Painter, type Palette } from './draw.js';
import { bytes, hexadecimal } from './words.js';

/** Pixels that a label of an address takes. */
const labelWidth = 92;

/**
 * Draws addresses along the top, down to `bottom` as faint lines, and a mark over each stretch that nothing ever used,
 * which is shown narrower than it is. `y` is the base line of the labels.
 */
export function drawAxis(painter: Painter, view: Viewport, y: number, bottom: number, palette: Palette): void {
  drawBreaks(painter, view, y, bottom, palette);
  let reached = Number.NEGATIVE_INFINITY;
  for (const gpa of ticks(view)) {
    const x = view.x(gpa);
    const text = hexadecimal(gpa);
    const room = text.length * characterWidth + 6;
    // What has no room to its right has its label on the left.
    const left = x + room > view.width ? x - room : x;
    if (left < reached) continue;
    painter.rectangle(x, y + 6, 1, bottom - y - 6, palette.line);
    painter.text(text, left + 3, y, palette.muted);
    reached = Math.max(x, left + room, left + labelWidth);
  }
}

/** Stretches in view, ascending; of those that begin within one pixel, one. Positions in pixels. */
function* stretches(view: Viewport): Iterable<{ stretch: number; from: number; to: number }> {
  const { axis, columns } = view;
  for (let stretch = axis.stretch(view.left); stretch < axis.empty.length; ) {
    const from = Math.max(0, view.xIn(stretch, axis.starts[stretch]!));
    if (from >= view.width) return;
    yield { stretch, from, to: Math.min(view.width, view.xIn(stretch, axis.starts[stretch + 1]!)) };
    stretch = Math.max(stretch + 1, axis.stretch(columns[Math.floor(from) + 1]!));
  }
}

/** Addresses worth a label, ascending: where stretches begin, and round ones inside wide stretches. */
function* ticks(view: Viewport): Iterable<number> {
  const { axis } = view;
  for (const { stretch, from, to } of stretches(view)) {
    const [start, end] = [axis.starts[stretch]!, axis.starts[stretch + 1]!];
    if (start >= view.left) yield start;
    if (axis.empty[stretch] === 1 || to - from < 2 * labelWidth) continue;
    const step = 2 ** Math.ceil(Math.log2((view.scale / axis.slopes[stretch]!) * 1.6 * labelWidth));
    for (let tick = (Math.floor(Math.max(start, view.left) / step) + 1) * step; tick < end; tick += step) {
      const x = view.x(tick);
      if (x > to - labelWidth) break;
      if (x > from + labelWidth) yield tick;
    }
  }
}

function drawBreaks(painter: Painter, view: Viewport, y: number, bottom: number, palette: Palette): void {
  const { axis } = view;
  for (const { stretch, from, to } of stretches(view)) {
    if (axis.empty[stretch] === 0 || to - from < 3) continue;
    painter.hatch(from, y + 10, to - from, bottom - y - 10, palette.line, 6);
    const text = `${bytes(axis.starts[stretch + 1]! - axis.starts[stretch]!)} unused`;
    if (to - from > text.length * characterWidth)
      painter.text(text, (from + to) / 2, bottom + 12, palette.muted, 'center');
  }
}
