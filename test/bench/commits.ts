import { MemoryRegion } from '../../ts/memory/region.js';
import { guests, KvmPair, kvmMissing } from './kvm-pair.js';
import type { Report } from './report.js';
import { raceMeasured, type Sample, sampleOf } from './sampler.js';

const mebibyte = 0x100000;
const address = 0x40000000;
const large = 64 * mebibyte;
const small = 32 * mebibyte;
/** Commits there and back that one turn measures. */
const commitsATurn = 10;

/** Milliseconds between two commits without a window. */
const gap = 0.1;

function pause(): void {
  const until = performance.now() + gap;
  while (performance.now() < until);
}

/** A pair with RAM that can be resized and split. */
class Resizing {
  readonly pair: KvmPair;
  readonly #ram: MemoryRegion;
  readonly #hole: MemoryRegion;

  constructor(pair: KvmPair) {
    const { machine } = pair;
    const { map, system } = machine;
    this.pair = pair;
    this.#ram = MemoryRegion.ram(map, 'ram', large, { memory: machine.allocate(large) });
    this.#hole = MemoryRegion.mmio(map, 'hole', mebibyte);
    machine.transaction(() => {
      system.add(this.#ram, address);
      this.#hole.setEnabled(false);
      system.add(this.#hole, address + small, { priority: 1 });
    });
  }

  readonly resize = [
    () => this.pair.machine.transaction(() => this.#ram.setSize(small)),
    () => this.pair.machine.transaction(() => this.#ram.setSize(large)),
  ] as const;

  readonly split = [
    () => this.pair.machine.transaction(() => this.#hole.setEnabled(true)),
    () => this.pair.machine.transaction(() => this.#hole.setEnabled(false)),
  ] as const;
}

/**
 * Nanoseconds a commit of ours and of the rival's, there and back in turns, with a vCPU inside before each. Without a
 * window, ours is what a commit takes beside its calls.
 */
function measure(report: Report, { pair }: Resizing, changes: readonly [() => void, () => void], window: boolean) {
  // The first time there and back may leave other split points than there were; and then V8 compiles.
  for (let round = 0; round < report.budget(5000, 1500); round++) for (const change of changes) change();
  pair.mirror();
  const lists = changes.map((change) => pair.take(change));
  const rivalDoes = changes.map((_, index) =>
    window ? () => pair.setInWindow(lists[index]!) : () => pair.set(lists[index]!),
  );
  const turn = (side: 'ours' | 'rival', does: readonly (() => void)[]) => () => {
    pair.run(side);
    const spent: number[] = [];
    for (let index = 0; index < 2 * commitsATurn; index++) {
      // Only a window keeps the vCPU out, so that it has to come back.
      if (window || index === 0) pair.awaitInside(side);
      // A call that comes right after another finds the vCPU at a moment that suits it.
      else pause();
      const start = process.hrtime.bigint();
      does[index % 2]!();
      const total = Number(process.hrtime.bigint() - start);
      // Without a window a call waits for the kernel, for as long as all else takes ten times over.
      spent.push(!window && side === 'ours' ? total - pair.callTime : total);
    }
    pair.pauseBoth();
    return sampleOf(spent).median;
  };
  const contenders = { ours: turn('ours', changes), rival: turn('rival', rivalDoes) };
  const calls = lists.reduce((sum, { count }) => sum + count, 0) / 2;
  return { calls, samples: raceMeasured(contenders, { milliseconds: report.budget(4000, 1200) }) };
}

/** Whole commits on real KVM, from the edit of the memory map on, against a C loop of the same calls. */
export async function commits(report: Report): Promise<void> {
  const missing = await kvmMissing();
  if (missing !== undefined) {
    report.skip('commits on real KVM', missing);
    return;
  }
  const micro = ({ median, low, high, turns }: Sample) => ({
    median: median / 1000,
    low: low / 1000,
    high: high / 1000,
    turns,
  });
  for (const policy of ['exact', 'stable'] as const) {
    const pair = await KvmPair.create({ policy });
    try {
      const resizing = new Resizing(pair);
      await pair.start(guests.spin);
      // Not before: threads stay where those that start them do.
      pair.rivals.stay(1);
      for (const kind of ['resize', 'split'] as const) {
        // The other policy needs none for either, once it has cut the slot.
        const window = policy === 'exact';
        const { calls, samples } = measure(report, resizing, resizing[kind], window);
        const what = `commit: ${kind}, ${calls} calls`;
        if (window) {
          report.add(`${what}, in a window, against the same in C, µs`, micro(samples.ours), micro(samples.rival), 1.1);
        } else {
          const name = `${what}, without a window: what comes on top of them, µs, at most 10; rival the bare C loop`;
          report.add(name, micro(samples.ours), micro(samples.rival), () => 10);
        }
      }
    } finally {
      pair.rivals.stay(0);
      await pair.close();
    }
  }
}
