import type { Arena, MemoryRange } from '../../ts/core/arena.js';
import type { Core } from '../../ts/core/core.js';
import { nativeCore } from '../../ts/core/native.js';
import { createArena } from '../../ts/core/node.js';
import { Planner } from '../../ts/kvm/planner.js';
import { layouts, mostSlots, type Range, randomNumbers, shuffled } from './layouts.js';
import type { Report } from './report.js';
import { loadRivals, type Rivals } from './rivals.js';
import { type Contender, race, type Sample } from './sampler.js';

const backed = 0x10000;
/** Bit 31 of what the rival answers: vCPUs must be inhibited. */
const inhibitBit = 2 ** 31;

/** A section whose memory doesn't continue its neighbour's, so that each has a slot of its own. */
const section = ({ gpa, size }: Range, host: number): MemoryRange => ({
  gpa,
  size,
  host: host + 2 * gpa,
  offset: 0,
  id: 0,
  flags: backed,
  region: 1,
  since: 0,
  addressSpace: 0,
  guestMemfd: -1,
});

/** Two places in host memory: a change moves sections from one to the other. */
const places = [2 ** 40, 2 ** 41] as const;

/** A table of `count` slots, and the change of `changes` sections in it there and back, for our planner. */
class Ours {
  readonly #planner: Planner;
  readonly #changed: readonly Range[];
  #at = 0;

  constructor(arena: Arena, core: Core, ranges: readonly Range[], changed: readonly Range[]) {
    this.#planner = new Planner(arena, core, { slots: mostSlots, sections: mostSlots });
    this.#changed = changed;
    // In random order, as slots come to be after a while: ids say nothing of addresses.
    const batches = 64;
    const parts: Range[][] = Array.from({ length: batches }, () => []);
    for (const index of shuffled(ranges.length)) parts[index % batches]!.push(ranges[index]!);
    for (const part of parts) {
      this.#planner.begin();
      for (const range of part.sort((a, b) => a.gpa - b.gpa)) this.#planner.add(section(range, places[0]));
      const plan = this.#planner.plan();
      this.#planner.applied(this.#planner.operations, plan.operations);
    }
    if (this.#planner.count() !== ranges.length) throw new Error('the table lacks slots');
  }

  /** Captures the next change. */
  readonly capture = (): void => {
    this.#planner.begin();
    for (const range of this.#changed) this.#planner.delete(section(range, places[this.#at]!));
    for (const range of this.#changed) this.#planner.add(section(range, places[1 - this.#at]!));
  };

  readonly plan = (): void => {
    const plan = this.#planner.plan();
    if (plan.operations !== 2 * this.#changed.length || !plan.inhibit) throw new Error('not the plan expected');
  };

  readonly planAndApply = (): void => {
    this.#planner.plan();
    this.#planner.applied(this.#planner.operations, 2 * this.#changed.length);
    this.#at = 1 - this.#at;
    this.capture();
  };
}

/** The same for the method of looking at one slot after the other. */
class Linear {
  readonly #rivals: Rivals;
  readonly #slots: number;
  readonly #slotCount: number;
  readonly #lists: readonly number[];
  readonly #count: number;
  readonly #operations: number;
  #at = 0;

  constructor(arena: Arena, rivals: Rivals, ranges: readonly Range[], changed: readonly Range[]) {
    const { bytes } = arena.layout.range;
    this.#rivals = rivals;
    this.#slotCount = ranges.length;
    this.#count = changed.length;
    const slots = arena.allocate(ranges.length * bytes);
    const ids = shuffled(ranges.length);
    for (const [index, range] of ranges.entries()) {
      arena.writeRange(slots + ids[index]! * bytes, { ...section(range, places[0]), id: ids[index]! });
    }
    this.#lists = places.map((host) => {
      const list = arena.allocate(changed.length * bytes);
      for (const [index, range] of changed.entries()) arena.writeRange(list + index * bytes, section(range, host));
      return rivals.address(arena, list);
    });
    this.#slots = rivals.address(arena, slots);
    this.#operations = rivals.address(arena, arena.allocate(2 * changed.length * bytes));
  }

  readonly plan = (): void => {
    const [deletes, adds] = [this.#lists[this.#at]!, this.#lists[1 - this.#at]!];
    const [slots, operations] = [this.#slots, this.#operations];
    const made = this.#rivals.plan(slots, this.#slotCount, deletes, this.#count, adds, this.#count, operations);
    if (made + inhibitBit !== 2 * this.#count) throw new Error('not the plan expected');
    this.#at = 1 - this.#at;
  };
}

function someOf(ranges: readonly Range[], count: number): Range[] {
  const random = randomNumbers(5);
  const chosen = new Set<number>();
  while (chosen.size < count) chosen.add(random(ranges.length));
  return [...chosen].sort((a, b) => a - b).map((index) => ranges[index]!);
}

type Times = Record<'native' | 'WASM' | 'native, applied' | 'linear', Sample>;

function measure(report: Report, slots: number, changes: number): Times {
  const rivals = loadRivals();
  const ranges = layouts.spread(slots);
  const changed = someOf(ranges, changes);
  const contender = (run: () => void, before?: () => void): Contender => (before ? { run, before } : { run });
  // One arena each: a planner needs room for the longest plan there is.
  const arenas = Array.from({ length: 4 }, () => createArena(60 << 20));
  const [native, wasm, applied, rival] = arenas as [Arena, Arena, Arena, Arena];
  const planned = new Ours(native, nativeCore(native), ranges, changed);
  const inWasm = new Ours(wasm, wasm.wasm, ranges, changed);
  const done = new Ours(applied, nativeCore(applied), ranges, changed);
  done.capture();
  const linear = new Linear(rival, rivals, ranges, changed);
  const contenders = {
    native: contender(planned.plan, planned.capture),
    WASM: contender(inWasm.plan, inWasm.capture),
    'native, applied': contender(done.planAndApply),
    linear: contender(linear.plan),
  };
  return race(contenders, { milliseconds: report.budget(1500, 200), leastTurns: report.budget(5, 3) });
}

/** Planning a transaction of k changes among n slots, against QEMU's method. */
export function plans(report: Report): void {
  const micro = ({ median, low, high, turns }: Sample): Sample => ({
    median: median / 1000,
    low: low / 1000,
    high: high / 1000,
    turns,
  });
  const byChanges: Record<string, [number, number][]> = { native: [], WASM: [], 'native, applied': [], linear: [] };
  const bySlots: Record<string, [number, number][]> = { native: [], WASM: [], 'native, applied': [], linear: [] };
  const at = (changes: number, slots: number, times: Times) => {
    for (const [name, { median }] of Object.entries(times)) {
      if (slots === mostSlots) byChanges[name]!.push([changes, median / 1000]);
      if (changes === 16) bySlots[name]!.push([slots, median / 1000]);
    }
  };
  const small = measure(report, 512, 16);
  at(16, 512, small);
  at(16, 4096, measure(report, 4096, 16));
  const one = measure(report, mostSlots, 1);
  at(1, mostSlots, one);
  const sixteen = measure(report, mostSlots, 16);
  at(16, mostSlots, sixteen);
  at(128, mostSlots, measure(report, mostSlots, 128));
  const many = measure(report, mostSlots, 1024);
  at(1024, mostSlots, many);

  const among = (changes: number) => `${changes} of ${mostSlots} slots changed`;
  const method = 'against queue walk and linear slot search, µs';
  report.add(`${among(16)}: plan (native) ${method}`, micro(sixteen.native), micro(sixteen.linear), 1 / 100);
  const applied = micro(sixteen['native, applied']);
  report.add(`${among(16)}: plan and slot table (native) ${method}`, applied, micro(sixteen.linear), 1);
  const within = (most: number) => () => most;
  report.add(`${among(1)}: plan (native) ${method}; at most 5 µs`, micro(one.native), micro(one.linear), within(5));
  report.add(`${among(1)}: plan (WASM) ${method}; at most 5 µs`, micro(one.WASM), micro(one.linear), within(5));
  const logarithm = Math.log2(mostSlots) / Math.log2(512);
  report.add(
    `16 changes: plan (native) of ${mostSlots} slots against one of 512, µs; as the logarithm, twice at most`,
    micro(sixteen.native),
    micro(small.native),
    2 * logarithm,
  );
  report.add(
    `plan (native) of 1,024 changes of ${mostSlots} slots against one of 16, µs; as their number, 1.5 times at most`,
    micro(many.native),
    micro(sixteen.native),
    1.5 * (1024 / 16),
  );
  wholeLayout(report, micro);
  report.curves.push({ title: `Plan, ${mostSlots} slots`, x: 'changes', y: 'µs', series: byChanges });
  report.curves.push({ title: 'Plan, 16 changes', x: 'slots', y: 'µs', series: bySlots });
}

/** All slots go, and as many come. */
function wholeLayout(report: Report, micro: (sample: Sample) => Sample): void {
  const rivals = loadRivals();
  const ranges = layouts.spread(mostSlots);
  const arenas = [createArena(60 << 20), createArena(60 << 20), createArena(60 << 20)] as const;
  const native = new Ours(arenas[0], nativeCore(arenas[0]), ranges, ranges);
  const wasm = new Ours(arenas[1], arenas[1].wasm, ranges, ranges);
  const linear = new Linear(arenas[2], rivals, ranges, ranges);
  native.capture();
  wasm.capture();
  const times = race(
    { native: { run: native.plan }, WASM: { run: wasm.plan }, linear: { run: linear.plan } },
    { milliseconds: report.budget(2000, 0), leastTurns: report.budget(3, 1), turn: 0.1 },
  );
  const method = 'against queue walk and linear slot search, µs; at most 10 ms';
  const within = () => 10_000;
  report.add(`a new layout of ${mostSlots}: plan (native) ${method}`, micro(times.native), micro(times.linear), within);
  report.add(`a new layout of ${mostSlots}: plan (WASM) ${method}`, micro(times.WASM), micro(times.linear), within);
}
