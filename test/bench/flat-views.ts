import { AddressSpace, MemoryMap } from '../../ts/memory/address-space.js';
import { FlatView } from '../../ts/memory/flat-view.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { rerender } from '../../ts/memory/render.js';
import { randomNumbers } from './layouts.js';
import type { Report } from './report.js';
import { race, type Sample } from './sampler.js';

const regionCounts = [100, 1000, 10_000] as const;
const page = 0x1000;

/** RAM with windows of devices in it, some behind a bridge (an alias of a container), and one BAR that moves. */
function makeMap(count: number): { space: AddressSpace; move: () => void; full: () => number } {
  const random = randomNumbers(6);
  const map = new MemoryMap();
  const root = MemoryRegion.container(map, 'system', 2n ** 64n);
  const bus = MemoryRegion.container(map, 'bus', 2 ** 40);
  const space = new AddressSpace(map, 'memory', root);
  let bar: MemoryRegion | undefined;
  map.transaction(() => {
    const size = (count + 2) * 4 * page;
    root.add(MemoryRegion.ram(map, 'ram', size), 0);
    root.add(MemoryRegion.alias(map, 'window', bus, 0, size), 2 ** 30, { priority: 1 });
    for (let index = 0; index < count; index++) {
      const region = MemoryRegion.mmio(map, `device ${index}`, (1 + random(2)) * page);
      (index % 2 === 0 ? root : bus).add(region, index * 4 * page, { priority: 2 });
    }
    bar = MemoryRegion.mmio(map, 'bar', page);
    root.add(bar, page * 2, { priority: 3 });
  });
  let at = 0;
  const all = [{ start: 0, end: 2n ** 64n }];
  return {
    space,
    move() {
      at = (at + 997) % count;
      bar!.setAddress(at * 4 * page + 2 * page);
    },
    full: () => rerender(root, FlatView.empty, all, { regionVisits: 0, comparisons: 0 }).view.ranges.length,
  };
}

/** Rendering trees of regions, and moving one region in them, against rendering all anew. */
export function flatViews(report: Report): void {
  const micro = ({ median, low, high, turns }: Sample, per = 1): Sample => {
    const to = (value: number) => value / 1000 / per;
    return { median: to(median), low: to(low), high: to(high), turns };
  };
  const series: Record<string, [number, number][]> = { 'full render': [], 'one BAR move': [] };
  const samples = regionCounts.map((count) => {
    const { move, full } = makeMap(count);
    const result = race({ move: { run: move }, full: { run: full } }, { milliseconds: report.budget(3000, 500) });
    series['full render']!.push([count, result.full.median / 1000]);
    series['one BAR move']!.push([count, result.move.median / 1000]);
    return result;
  });
  const [, thousand, most] = samples as [(typeof samples)[0], (typeof samples)[0], (typeof samples)[0]];
  report.add(
    'flat view: full render of 10,000 regions against 1,000, µs a region',
    micro(most.full, 10_000),
    micro(thousand.full, 1000),
    1.5,
  );
  const move = 'flat view: one BAR move among 10,000 regions';
  report.add(`${move} against a full render, µs`, micro(most.move), micro(most.full), 1 / 20);
  report.add(`${move} against a full render, µs; at most 1 ms`, micro(most.move), micro(most.full), () => 1000);
  const render = 'flat view: full render of 10,000 regions';
  report.add(
    `${render} against ten times 1,000, µs; at most 30 ms`,
    micro(most.full),
    micro(thousand.full, 0.1),
    () => 30_000,
  );
  report.curves.push({ title: 'Flat view', x: 'regions', y: 'µs', series });
}
