import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Axis, Viewport } from '../../ts/viewer/axis.js';

const page = 4096;
const width = 1000;

/** Ranges anywhere below 2^52, page-aligned, that may overlap: what lived at different times. */
const ranges = fc.array(
  fc.record({
    first: fc.oneof(fc.integer({ min: 0, max: 2 ** 20 }), fc.integer({ min: 0, max: 2 ** 40 - 2 ** 31 })),
    pages: fc.oneof(fc.integer({ min: 1, max: 64 }), fc.integer({ min: 1, max: 2 ** 31 - 1 })),
    use: fc.double({ min: 0.001, max: 1, noNaN: true }),
  }),
  { minLength: 1, maxLength: 20 },
);

function axisOf(list: readonly { first: number; pages: number; use: number }[]): Axis {
  return new Axis(
    list.map(({ first }) => first * page),
    list.map(({ pages }) => pages * page),
    list.map(({ use }) => use),
  );
}

describe('the axis', () => {
  test('reaches from 0 to 2^52, its stretches ascend, and only what no range covers is empty', () => {
    fc.assert(
      fc.property(ranges, (list) => {
        const axis = axisOf(list);
        expect(axis.starts[0]).toBe(0);
        expect(axis.end).toBe(2 ** 52);
        for (let stretch = 0; stretch < axis.empty.length; stretch++) {
          const [start, end] = [axis.starts[stretch]!, axis.starts[stretch + 1]!];
          expect(end).toBeGreaterThan(start);
          expect(axis.positions[stretch + 1]!).toBeGreaterThan(axis.positions[stretch]!);
          const covered = list.some(({ first, pages }) => first * page <= start && (first + pages) * page >= end);
          expect(axis.empty[stretch]).toBe(covered ? 0 : 1);
        }
      }),
    );
  });

  test('shows a range of 16 KiB beside one of 512 MiB', () => {
    const axis = axisOf([
      { first: 0xc0, pages: 4, use: 1 },
      { first: 0x100, pages: 0x20000, use: 1 },
    ]);
    const view = Viewport.whole(axis, width);
    expect(view.x(0xc4000) - view.x(0xc0000)).toBeGreaterThan(50);
  });
});

describe('a viewport', () => {
  const zooms = fc.array(
    fc.record({ x: fc.integer({ min: 0, max: width }), factor: fc.double({ min: 0.2, max: 8, noNaN: true }) }),
    { maxLength: 30 },
  );

  test('answers the address of a pixel whose pixel is that pixel, wherever it was zoomed to', () => {
    fc.assert(
      fc.property(ranges, zooms, fc.integer({ min: 0, max: width }), (list, steps, x) => {
        let view = Viewport.whole(axisOf(list), width);
        for (const step of steps) view = view.zoomed(step.x, step.factor);
        // An address has 53 bits, so that high up a pixel of less than a byte can't be told exactly.
        const gpa = view.gpa(x);
        const slope = view.axis.slopes[view.axis.stretch(gpa)]! / view.scale;
        expect(Math.abs(view.x(gpa) - x)).toBeLessThan(1e-6 + 2 * slope);
      }),
    );
  });

  test('stays within the axis, and is never closer than one page', () => {
    fc.assert(
      fc.property(ranges, zooms, fc.integer({ min: -5000, max: 5000 }), (list, steps, by) => {
        let view = Viewport.whole(axisOf(list), width);
        for (const step of steps) view = view.zoomed(step.x, step.factor).moved(by);
        expect(view.left).toBeGreaterThanOrEqual(0);
        expect(view.right).toBeLessThanOrEqual(2 ** 52);
        expect(view.scale * width).toBeLessThanOrEqual(view.axis.width * (1 + 1e-9));
        const densest = Math.min(...view.axis.slopes);
        expect(view.scale * width).toBeGreaterThanOrEqual(densest * page * (1 - 1e-9));
      }),
    );
  });

  test('zooms from 2^52 to one page around an address that stays where it is, exactly', () => {
    fc.assert(
      fc.property(
        ranges,
        fc.integer({ min: 0, max: 19 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (list, pick, share) => {
          const axis = axisOf(list);
          const { first, pages } = list[pick % list.length]!;
          const target = (first + Math.floor(share * (pages - 1))) * page;
          let view = Viewport.whole(axis, width);
          const x = view.x(target);
          for (let step = 0; step < 200; step++) view = view.placed(target, x, view.scale / 1.5);
          const stretch = axis.stretch(target);
          // Near 2^52 an address has no fraction of a byte left, which is a quarter of a pixel here.
          expect(Math.abs(view.x(target) - x)).toBeLessThan(0.5);
          if (target + page <= axis.starts[stretch + 1]!) {
            expect(view.x(target + page) - view.x(target)).toBeCloseTo(width, 3);
          }
        },
      ),
    );
  });

  test('shows a range alone, and the same addresses after its width has changed', () => {
    const axis = axisOf([{ first: 0x100, pages: 64, use: 1 }]);
    const view = Viewport.range(axis, width, 0x100000, 0x40000);
    expect(view.left).toBe(0x100000);
    expect(view.right).toBeCloseTo(0x140000, 3);
    const narrow = view.on(axis, 300);
    expect(narrow.left).toBe(0x100000);
    expect(narrow.right).toBeCloseTo(0x140000, 3);
    expect(Viewport.whole(axis, width).on(axis, 300).right).toBe(2 ** 52);
  });
});
