import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { AddressSpace } from '../../ts/memory/address-space.js';
import { rangeEnd } from '../../ts/memory/flat-view.js';
import { fullRender, MapModel, Mirror, plainRange, Random, worldSize } from './model.js';

const runs = { numRuns: 150 };
const seeds = fc.tuple(fc.integer({ min: 0, max: 2 ** 31 }), fc.integer({ min: 1, max: 60 }));

function expectPainted(model: MapModel, space: AddressSpace): void {
  const painted = model.paint(space).map((found) => found && { ...found, region: found.region.name });
  const shown = Array.from({ length: 2 * worldSize }, (_, gpa) => {
    const range = space.view.find(gpa);
    if (range === undefined) return undefined;
    const { readonly, nonvolatile, region } = range;
    return { region: region.name, offset: gpa - Number(range.gpa) + Number(range.offset), readonly, nonvolatile };
  });
  expect(shown).toEqual(painted);
}

describe('a map under random edits', () => {
  test('shows at each byte what a walk of the tree finds there', () => {
    fc.assert(
      fc.property(seeds, ([seed, steps]) => {
        const model = new MapModel(new Random(seed), 12);
        for (let step = 0; step < steps; step++) model.step();
        for (const space of model.spaces) {
          expectPainted(model, space);
          for (const { region, logging, romMode } of space.view.ranges)
            expect({ logging, romMode }).toEqual(pick(model.marks(region)));
        }
      }),
      runs,
    );
  });

  test('has ascending ranges that part only where something differs', () => {
    fc.assert(
      fc.property(seeds, ([seed, steps]) => {
        const model = new MapModel(new Random(seed), 12);
        for (let step = 0; step < steps; step++) model.step();
        for (const { view } of model.spaces) {
          for (const [index, range] of view.ranges.entries()) {
            const before = view.ranges[index - 1];
            if (before === undefined) continue;
            expect(rangeEnd(before) <= range.gpa).toBe(true);
            const same = { ...plainRange(range), gpa: 0, size: 0, offset: 0 };
            const joins =
              rangeEnd(before) === range.gpa && Number(before.offset) + Number(before.size) === range.offset;
            if (joins && before.region === range.region && !model.marks(range.region).unmergeable) {
              expect({ ...plainRange(before), gpa: 0, size: 0, offset: 0 }).not.toEqual(same);
            }
          }
        }
      }),
      runs,
    );
  });

  test('is the same after each edit as when rendered from nothing', () => {
    fc.assert(
      fc.property(seeds, ([seed, steps]) => {
        const random = new Random(seed);
        const model = new MapModel(random, 14);
        for (let step = 0; step < steps; step++) {
          if (random.chance(0.3)) {
            model.map.transaction(() => {
              for (let more = random.below(6); more >= 0; more--) model.step();
            });
          } else model.step();
          for (const space of model.spaces) {
            expect(space.view.ranges.map(plainRange)).toEqual(fullRender(space).ranges.map(plainRange));
          }
        }
      }),
      runs,
    );
  });

  test('reaches a listener in events that add up to it', () => {
    fc.assert(
      fc.property(seeds, ([seed, steps]) => {
        const random = new Random(seed);
        const model = new MapModel(random, 12);
        const mirror = new Mirror();
        for (let step = 0; step < steps / 2; step++) model.step();
        const handle = model.map.addListener(mirror, model.spaces);
        for (let step = 0; step < steps; step++) {
          model.map.transaction(() => {
            for (let more = random.below(4); more >= 0; more--) model.step();
          });
          for (const space of model.spaces) {
            expect(mirror.ranges(space).map(plainRange)).toEqual(space.view.ranges.map(plainRange));
          }
        }
        handle.detach();
        for (const space of model.spaces) expect(mirror.ranges(space)).toEqual([]);
      }),
      runs,
    );
  });

  test('is what it was before a transaction that throws, for later edits too', () => {
    fc.assert(
      fc.property(seeds, ([seed, steps]) => {
        const random = new Random(seed);
        const model = new MapModel(random, 12);
        const mirror = new Mirror();
        model.map.addListener(mirror, model.spaces);
        for (let step = 0; step < steps; step++) {
          const [views, commits] = [model.spaces.map((space) => space.view), mirror.commits];
          model.undone(() => {
            for (let more = random.below(5); more >= 0; more--) model.step();
          });
          expect(model.spaces.map((space) => space.view)).toEqual(views);
          expect(mirror.commits).toBe(commits);
          model.map.transaction(() => {
            model.step();
            model.undone(() => model.step());
            model.step();
          });
          for (const space of model.spaces) {
            expectPainted(model, space);
            expect(mirror.ranges(space).map(plainRange)).toEqual(space.view.ranges.map(plainRange));
            expect(space.view.ranges.map(plainRange)).toEqual(fullRender(space).ranges.map(plainRange));
          }
        }
      }),
      runs,
    );
  });
});

function pick({ logging, romMode }: { logging: boolean; romMode: boolean }): { logging: boolean; romMode: boolean } {
  return { logging, romMode };
}
