import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { Viewport } from '../../ts/viewer/axis.js';
import { type Context, drawLane, Painter, type Palette } from '../../ts/viewer/draw.js';
import { drawAxis } from '../../ts/viewer/draw-axis.js';
import { History } from '../../ts/viewer/history.js';
import { type Moment, momentOf } from '../../ts/viewer/lanes.js';
import { Timeline } from '../../ts/viewer/timeline.js';
import { bigSlots, bigTrace } from './big.js';

const width = 1280;
const box = { y: 0, height: 40 };
const palette: Palette = {
  background: 'b',
  lane: 'l',
  ink: 'i',
  muted: 'm',
  line: 'n',
  io: 'o',
  danger: 'd',
  created: 'c',
  held: 'h',
  deleted: 'e',
  changed: 'g',
  focus: 'f',
  label: 'a',
  memory: ['0', '1', '2', '3', '4', '5', '6', '7'],
};

/** A context that remembers the rectangles. */
class Canvas {
  readonly rectangles: { x: number; width: number }[] = [];
  fillStyle = '';
  strokeStyle = '';
  lineWidth = 1;
  font = '';
  textBaseline = 'middle';
  textAlign = 'left';
  calls = 0;
  fillRect(x: number, _y: number, wide: number): void {
    this.calls++;
    this.rectangles.push({ x, width: wide });
  }
  strokeRect(): void {
    this.calls++;
  }
  fillText(): void {
    this.calls++;
  }
  stroke(): void {
    this.calls++;
  }
  setLineDash(): void {}
  beginPath(): void {}
  moveTo(): void {}
  lineTo(): void {}
}

function draw(moment: Moment, view: Viewport, merge: boolean): { operations: number[]; canvases: Canvas[] } {
  const canvases: Canvas[] = [];
  const operations = moment.lanes.map((lane) => {
    const canvas = new Canvas();
    canvases.push(canvas);
    const painter = new Painter(canvas as unknown as Context);
    drawLane(painter, view, lane, box, palette, merge);
    expect(painter.operations).toBe(canvas.calls);
    return painter.operations;
  });
  return { operations, canvases };
}

describe('drawing 32,764 slots', () => {
  let moment: Moment;
  let everything: Moment;

  beforeAll(() => {
    const timeline = new Timeline();
    timeline.push(bigTrace(bigSlots, 200));
    const history = new History(timeline);
    moment = momentOf(history, 0, timeline.length - 1);
    // The first transaction creates every slot: all of them are marked.
    everything = momentOf(history, 0, 0);
    expect(everything.after).toHaveLength(bigSlots);
  });

  test('takes at most 4 operations a pixel of width in each lane, at every zoom', () => {
    const steps = fc.array(
      fc.record({
        x: fc.integer({ min: 0, max: width }),
        factor: fc.double({ min: 0.3, max: 6, noNaN: true }),
        by: fc.integer({ min: -2000, max: 2000 }),
      }),
      { maxLength: 12 },
    );
    fc.assert(
      fc.property(steps, fc.boolean(), (list, marked) => {
        const shown = marked ? everything : moment;
        let view = Viewport.whole(shown.history.axis(0), width);
        for (const { x, factor, by } of list) view = view.zoomed(x, factor).moved(by);
        for (const operations of draw(shown, view, true).operations) expect(operations).toBeLessThanOrEqual(4 * width);
      }),
      { numRuns: 40 },
    );
  });

  test('takes more than that unmerged (the control)', () => {
    const view = Viewport.whole(moment.history.axis(0), width);
    for (const operations of draw(moment, view, false).operations) expect(operations).toBeGreaterThan(4 * width);
  });

  test('leaves out no range: each has a pixel in the drawing', () => {
    const view = Viewport.whole(moment.history.axis(0), width);
    const { canvases } = draw(moment, view, true);
    for (const [index, lane] of moment.lanes.entries()) {
      const painted = new Uint8Array(width + 2);
      for (const { x, width: wide } of canvases[index]!.rectangles) {
        painted.fill(1, Math.max(0, Math.floor(x)), Math.ceil(x + wide));
      }
      for (const start of lane.starts) expect(painted[Math.min(width, Math.floor(view.x(start)))]).toBe(1);
    }
  });

  test('draws an axis with a bounded number of operations too', () => {
    const painter = new Painter(new Canvas() as unknown as Context);
    drawAxis(painter, Viewport.whole(moment.history.axis(0), width), 14, 300, palette);
    expect(painter.operations).toBeGreaterThan(2);
    expect(painter.operations).toBeLessThanOrEqual(width);
  });
});
