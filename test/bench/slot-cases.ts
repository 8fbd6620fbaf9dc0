import { MemoryRegion } from '../../ts/memory/region.js';
import { codeAddress, guests, KvmPair, kvmMissing } from './kvm-pair.js';
import type { Report } from './report.js';
import { raceMeasured, type Sample } from './sampler.js';

/** As the kernel's memslot_perf_test: an area of memory cut into slots, and a guest that touches its pages. */
const areaAddress = 0x40000000;
const page = 0x1000;
const chunk = 0x200000;
/** Where the slot that moves lies, and where it moves. */
const movedBytes = 0x200000;
const movedAddress = 0x20000000;
const movedElsewhere = 0x28000000;

class SlotCases {
  readonly pair: KvmPair;
  readonly slots: number;
  readonly #areaBytes: number;
  readonly #regions: MemoryRegion[];
  readonly #moved: MemoryRegion;
  readonly #host: number;

  constructor(pair: KvmPair, slots: number) {
    const { machine } = pair;
    this.pair = pair;
    this.slots = slots;
    // At least a page a slot, and whole chunks.
    this.#areaBytes = Math.max(64 * 0x100000, Math.ceil((slots * page) / chunk) * chunk);
    const memory = machine.allocate(this.#areaBytes);
    this.#host = memory.hostAddress;
    const bytes = Math.floor(this.#areaBytes / slots / page) * page;
    this.#regions = Array.from({ length: slots }, (_, index) => {
      const size = index === slots - 1 ? this.#areaBytes - index * bytes : bytes;
      const memoryOffset = index * bytes;
      return MemoryRegion.ram(machine.map, `slot ${index}`, size, { memory, memoryOffset, unmergeable: true });
    });
    this.#moved = MemoryRegion.ram(machine.map, 'moved', movedBytes, { memory: machine.allocate(movedBytes) });
    machine.transaction(() => machine.system.add(this.#moved, movedAddress));
  }

  readonly setUp = (): void => {
    const { machine } = this.pair;
    machine.transaction(() => {
      for (const region of this.#regions) machine.system.add(region, areaAddress + region.memoryOffset);
    });
  };

  readonly tearDown = (): void => {
    const { machine } = this.pair;
    machine.transaction(() => {
      for (const region of this.#regions) machine.system.remove(region);
    });
  };

  readonly move = (): void => {
    const { machine } = this.pair;
    const to = this.#moved.address === movedAddress ? movedElsewhere : movedAddress;
    machine.transaction(() => this.#moved.setAddress(to));
  };

  touch(write: boolean): void {
    this.pair.begin(areaAddress, this.#areaBytes / page, write, false);
    this.pair.end();
  }

  discard(bytes: number): void {
    const result = this.pair.rivals.discard(this.#host, this.#areaBytes, Math.min(bytes, this.#areaBytes));
    if (result < 0) throw new Error(`memory couldn't be given back: ${result}`);
  }

  get areaBytes(): number {
    return this.#areaBytes;
  }
}

const elapsed = (work: () => void): number => {
  const start = process.hrtime.bigint();
  work();
  return Number(process.hrtime.bigint() - start);
};

async function measure(report: Report, slots: number): Promise<void> {
  // Slots mirror regions, so that there are as many.
  const pair = await KvmPair.create({ policy: 'exact' });
  const milliseconds = report.budget(1500, 300);
  const options = { milliseconds, leastTurns: 3 };
  const unit = ({ median, low, high, turns }: Sample, scale: number): Sample => ({
    median: median / scale,
    low: low / scale,
    high: high / scale,
    turns,
  });
  const add = (
    name: string,
    { ours, rival }: Record<'ours' | 'rival', Sample>,
    reach: number | ((r: number) => number),
  ) => report.add(`${slots} slots: ${name}, µs`, unit(ours, 1000), unit(rival, 1000), reach);
  try {
    const cases = new SlotCases(pair, slots);
    // The first time, V8 compiles.
    for (let round = 0; round < Math.min(200, 20_000 / slots); round++) {
      cases.setUp();
      cases.tearDown();
    }
    pair.mirror();
    const [creates, deletes] = [pair.take(cases.setUp), pair.take(cases.tearDown)];
    pair.rivals.stay(1);
    const setUp = raceMeasured(
      {
        ours: () => {
          const spent = elapsed(cases.setUp);
          cases.tearDown();
          return spent;
        },
        rival: () => {
          const spent = elapsed(() => pair.set(creates));
          pair.set(deletes);
          return spent;
        },
      },
      options,
    );
    pair.rivals.stay(0);
    add('set-up in one transaction, against C', setUp, slots === 1 ? (rival) => rival + 10 : 1.1);

    cases.setUp();
    pair.mirror();
    await pair.start(guests.touch(codeAddress));
    const onBoth = (work: () => number) => ({
      ours: () => {
        pair.run('ours');
        const spent = work();
        pair.pauseBoth();
        return spent;
      },
      rival: () => {
        pair.run('rival');
        const spent = work();
        pair.pauseBoth();
        return spent;
      },
    });
    const race = (work: () => number) => raceMeasured(onBoth(work), options);
    const map = race(() => {
      cases.discard(cases.areaBytes);
      cases.touch(false);
      cases.discard(cases.areaBytes);
      return elapsed(() => cases.touch(true));
    });
    add('map: the guest touches every page first, against C', map, 1.1);
    for (const [name, bytes] of [
      ['unmap', cases.areaBytes],
      ['unmap in chunks of 2 MiB', chunk],
    ] as const) {
      const unmap = race(() => {
        cases.touch(true);
        return elapsed(() => cases.discard(bytes));
      });
      add(`${name}, against C`, unmap, 1.1);
    }
    const readWrite = race(() => {
      cases.touch(true);
      return elapsed(() => {
        cases.touch(false);
        cases.touch(true);
      });
    });
    add('RW: the guest reads and writes every page, against C', readWrite, 1.1);

    for (let round = 0; round < 200; round++) cases.move();
    pair.mirror();
    const moves = [pair.take(cases.move), pair.take(cases.move)] as const;
    const times = 20;
    for (const active of [true, false]) {
      const side = (who: 'ours' | 'rival', work: (index: number) => void) => () => {
        pair.run(who);
        // The guest goes through the moved slot, or sleeps at its mailbox.
        if (active) pair.begin(movedAddress, movedBytes / page, false, true);
        else pair.awaitInside(who);
        const spent: number[] = [];
        for (let index = 0; index < 2 * times; index++) {
          const total = elapsed(() => work(index));
          spent.push(who === 'ours' ? total - pair.callTime : total);
        }
        if (active) pair.end();
        pair.pauseBoth();
        return spent.sort((a, b) => a - b)[times]!;
      };
      const move = raceMeasured(
        { ours: side('ours', cases.move), rival: side('rival', (index) => pair.set(moves[index % 2]!)) },
        options,
      );
      const name = `move a slot that the guest ${active ? 'uses' : "doesn't use"}: what comes on top of the calls, against C's calls`;
      add(name, move, 0.1);
    }
  } finally {
    await pair.close();
  }
}

/** The cases of the kernel's memslot_perf_test, by number of slots. */
export async function slotCases(report: Report): Promise<void> {
  const missing = await kvmMissing();
  if (missing !== undefined) {
    report.skip('slot cases on real KVM', missing);
    return;
  }
  for (const slots of report.quick ? [1, 509] : [1, 64, 509, 4096, 32_760]) await measure(report, slots);
}
