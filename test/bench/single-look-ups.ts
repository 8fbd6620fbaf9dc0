import type { MemoryRange } from '../../ts/core/arena.js';
import { addressCount, layouts, Slots, slotCounts } from './layouts.js';
import type { Report } from './report.js';
import { loadRivals } from './rivals.js';
import { race } from './sampler.js';

/** Finding one address at a time from JavaScript, as a vCPU's thread does after an exit. */
export function singleLookUps(report: Report): void {
  const rivals = loadRivals();
  for (const count of slotCounts) {
    const slots = new Slots(layouts.spread(count), 512);
    const { arena, addresses, table, ranges } = slots;
    const { wasm, layout } = arena;
    const at = (offset: number) => rivals.address(arena, offset);
    const [map, adds] = [arena.allocate(wasm.map_size(count)), arena.allocate(count * layout.range.bytes)];
    const out = arena.allocate(layout.range.bytes);
    wasm.map_init(map, count);
    const rest = { host: 0, offset: 0, id: layout.constants.ANY_ID, flags: 0, region: 0, since: 0 };
    for (const [index, { gpa, size }] of ranges.entries()) {
      const range: MemoryRange = { gpa, size, addressSpace: 0, guestMemfd: -1, ...rest };
      arena.writeRange(adds + index * layout.range.bytes, range);
    }
    if (wasm.map_apply(map, adds, 0, adds, count) !== 0) throw new Error('the map took no ranges');
    const operations = addressCount;
    const samples = race(
      {
        find: {
          operations,
          run() {
            let sum = 0;
            for (let index = 0; index < addressCount; index++) sum += wasm.find(table, addresses[index]!);
            return sum;
          },
        },
        lookUp: {
          operations,
          run() {
            let sum = 0;
            for (let index = 0; index < addressCount; index++) sum += wasm.map_lookup(map, addresses[index]!, out);
            return sum;
          },
        },
        empty: {
          operations,
          run() {
            let sum = 0;
            for (let index = 0; index < addressCount; index++) sum += wasm.nothing();
            return sum;
          },
        },
        nativeFind: { operations, run: () => rivals.findSingly(at(table), at(slots.doubles), addressCount) },
        nativeLookUp: {
          operations,
          run: () => rivals.lookUpSingly(at(map), at(slots.doubles), addressCount, at(out)),
        },
      },
      { milliseconds: report.budget(1500, 250) },
    );
    const call = samples.empty.median;
    const against = 'against an empty call and the search in C, ns';
    report.add(`${count} slots: find in a table ${against}`, samples.find, call + samples.nativeFind.median, 2);
    report.add(`${count} slots: look-up in a map ${against}`, samples.lookUp, call + samples.nativeLookUp.median, 2);
  }
}
