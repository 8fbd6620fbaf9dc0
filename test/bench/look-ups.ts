import { addressCount, layouts, mostSlots, Slots, slotCounts } from './layouts.js';
import type { Report } from './report.js';
import { loadRivals, optionalPackage } from './rivals.js';
import { type Contender, race } from './sampler.js';

/** How many slots a linear scan may look at in one call, all addresses together: of large tables it gets fewer. */
const linearWork = 2 ** 23;

type Tree = { insert(key: [number, number], value: number): void; search(key: [number, number]): number[] };

/** Structures that a JavaScript program would use. */
function scriptStructures(slots: Slots, skip: (name: string, why: string) => void): Record<string, Contender> {
  const { ranges, ids, addresses } = slots;
  const answers = new Int32Array(addressCount);
  const [starts, ends] = [Float64Array.from(ranges, ({ gpa }) => gpa), Float64Array.from(ranges, endOf)];
  const sortedIds = Int32Array.from(ids);
  const contenders: Record<string, Contender> = {
    'Float64Array search': {
      operations: addressCount,
      run() {
        for (let index = 0; index < addressCount; index++) {
          const gpa = addresses[index]!;
          let [low, high] = [0, starts.length];
          while (low < high) {
            const middle = (low + high) >>> 1;
            if (starts[middle]! <= gpa) low = middle + 1;
            else high = middle;
          }
          answers[index] = low > 0 && gpa < ends[low - 1]! ? sortedIds[low - 1]! : -2;
        }
        return answers;
      },
    },
  };
  const sorted = optionalPackage<{
    default: new () => Map<number, number> & { getPairOrNextLower(k: number): unknown };
  }>('sorted-btree');
  if (sorted === undefined) skip('sorted-btree', 'the package is not installed');
  else {
    const tree = new sorted.default() as unknown as {
      set(key: number, value: { end: number; id: number }): void;
      getPairOrNextLower(key: number): [number, { end: number; id: number }] | undefined;
    };
    for (const [index, range] of ranges.entries()) tree.set(range.gpa, { end: endOf(range), id: ids[index]! });
    contenders['sorted-btree'] = {
      operations: addressCount,
      run() {
        for (let index = 0; index < addressCount; index++) {
          const gpa = addresses[index]!;
          const found = tree.getPairOrNextLower(gpa)?.[1];
          answers[index] = found !== undefined && gpa < found.end ? found.id : -2;
        }
        return answers;
      },
    };
  }
  const intervals = optionalPackage<{ default: new () => Tree }>('@flatten-js/interval-tree');
  if (intervals === undefined) skip('@flatten-js/interval-tree', 'the package is not installed');
  else {
    const tree = new intervals.default();
    for (const [index, range] of ranges.entries()) tree.insert([range.gpa, endOf(range) - 1], ids[index]!);
    contenders['interval-tree'] = {
      operations: addressCount,
      run() {
        for (let index = 0; index < addressCount; index++) {
          const gpa = addresses[index]!;
          answers[index] = tree.search([gpa, gpa])[0] ?? -2;
        }
        return answers;
      },
    };
  }
  return contenders;
}

const endOf = ({ gpa, size }: { gpa: number; size: number }) => gpa + size;

/** Finding the slots of 4,096 random addresses in one call. */
export function lookUps(report: Report): void {
  const rivals = loadRivals();
  let skipping = true;
  for (const [layout, makeLayout] of Object.entries(layouts)) {
    const series: Record<string, [number, number][]> = {};
    for (const count of slotCounts) {
      const slots = new Slots(makeLayout(count));
      const { arena, native } = slots;
      const { wasm } = arena;
      const { PATH_AVX2, PATH_SCALAR, PATH_SIMD128 } = arena.layout.constants;
      const names = { [PATH_SCALAR]: 'scalar', [PATH_AVX2]: 'AVX2', [PATH_SIMD128]: 'SIMD128' };
      const [nativePath, wasmPath] = [native.best_path(), wasm.best_path()];
      const [ours, portable] = [`native (${names[nativePath]})`, `WASM (${names[wasmPath]})`];
      const at = (offset: number) => rivals.address(arena, offset);
      const sorted = [at(slots.starts), at(slots.ends), at(slots.sortedIds)] as const;
      const [gpas, answers] = [at(slots.gpas), at(slots.answers)];
      const operations = addressCount;
      const linearCount = Math.min(addressCount, Math.floor(linearWork / count));
      const compiled: Record<string, Contender> = {
        [ours]: {
          operations,
          run: () => native.find_batch(slots.table, slots.gpas, slots.answers, addressCount, nativePath),
        },
        [portable]: {
          operations,
          run: () => wasm.find_batch(slots.table, slots.gpas, slots.answers, addressCount, wasmPath),
        },
        'native (scalar)': {
          operations,
          run: () => native.find_batch(slots.table, slots.gpas, slots.answers, addressCount, PATH_SCALAR),
        },
        'branchy search': {
          operations,
          run: () => rivals.findBranchy(...sorted, count, gpas, answers, addressCount),
        },
        'branchless search': {
          operations,
          run: () => rivals.findBranchless(...sorted, count, gpas, answers, addressCount),
        },
        'linear scan': {
          operations: linearCount,
          run: () => rivals.findLinear(at(slots.records), count, gpas, answers, linearCount),
        },
      };
      const scripts = scriptStructures(slots, (name, why) => {
        if (skipping) report.skip(`look-ups against ${name}`, why);
      });
      skipping = false;
      mustAgree(slots, compiled, scripts);
      const samples = race({ ...compiled, ...scripts }, { milliseconds: report.budget(4000, 350), turn: 1 });
      for (const [name, { median }] of Object.entries(samples)) {
        series[name] ??= [];
        series[name].push([count, median]);
      }
      const mine = samples[ours]!;
      const name = (what: string) => `${count} slots, ${layout}: ${what}, ns an address`;
      report.add(
        name(`${ours} against a linear scan`),
        mine,
        samples['linear scan']!,
        count === mostSlots ? 1 / 500 : 1,
      );
      if (count === mostSlots) {
        report.add(name(`${ours} against a branchy binary search`), mine, samples['branchy search']!, 1 / 2);
        report.add(name(`${ours} against a branchless one`), mine, samples['branchless search']!, 1 / 1.5);
        const [best] = Object.keys(scripts).sort((a, b) => samples[a]!.median - samples[b]!.median);
        report.add(name(`${ours} against the best JavaScript (${best})`), mine, samples[best!]!, 1 / 5);
        report.add(
          name(`${portable} against ${ours}`),
          samples[portable]!,
          mine,
          nativePath === PATH_SCALAR ? 1.5 : 2.5,
        );
      }
    }
    report.curves.push({ title: `Look-up, ${layout}`, x: 'slots', y: 'ns an address', series });
  }
}

/** A contender that gives wrong answers would be easy to beat, or to win with. */
function mustAgree(slots: Slots, compiled: Record<string, Contender>, scripts: Record<string, Contender>): void {
  const expected =
    slots.ranges.length > 0 ? [...slots.addresses].map((gpa) => slots.native.find(slots.table, gpa)) : [];
  for (const [name, { run, operations }] of Object.entries(compiled)) {
    slots.arena.words.fill(-1, slots.answers >>> 2, (slots.answers >>> 2) + addressCount);
    run();
    if (slots.readAnswers(operations).some((id, index) => id !== expected[index])) throw new Error(`${name} is wrong`);
  }
  for (const [name, { run }] of Object.entries(scripts)) {
    const answers = run() as Int32Array;
    if (answers.some((id, index) => id !== expected[index])) throw new Error(`${name} is wrong`);
  }
}
