import { createReadStream } from 'node:fs';
import { Machine } from '../../ts/kvm/machine.js';
import type { Policy } from '../../ts/kvm/planner.js';
import type { CommitRecord } from '../../ts/kvm/slots-listener.js';
import type { Vcpu } from '../../ts/kvm/vcpu-owner.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { Player } from '../../ts/replay/player.js';
import { type Recording, recordingOf } from '../../ts/replay/recording.js';
import { freeAddress } from '../../ts/replay/stable-ranges.js';
import { groupTransactions, readTrace } from '../../ts/trace/index.js';
import { guests, kvmMissing } from './kvm-pair.js';
import type { Report } from './report.js';
import { sampleOf } from './sampler.js';

const recordingPath = 'test/data/qemu/churn-pc-qemu10.0.log';
/** Steps of the recording that one side plays at a time. */
const stepsATurn = 50;
/** Between two steps, in milliseconds: vCPUs get back into the guest. */
const breather = 0.3;

/** A machine with vCPUs that spin, to which the recording happens. */
class Replayed {
  readonly windows: number[] = [];
  remapped = 0;
  readonly #machine: Machine;
  readonly #player: Player;
  readonly #vcpus: Vcpu[] = [];

  private constructor(machine: Machine, recording: Recording) {
    this.#machine = machine;
    this.#player = new Player(machine, recording);
  }

  static async create(policy: Policy, recording: Recording, vcpus: number): Promise<Replayed> {
    let replayed: Replayed | undefined;
    // QEMU reads no dirty bits at commit.
    const options = { backend: 'kvm', policy, discardDirty: true } as const;
    const machine = await Machine.create({ ...options, onCommit: (record) => replayed?.record(record) });
    try {
      const address = freeAddress(recording, 0x1000, [0x70000000, 0x60000000, 0x50000000]);
      if (address === undefined) throw new Error('the recording leaves no room for the guests');
      replayed = new Replayed(machine, recording);
      const code = machine.allocate(0x1000);
      code.bytes(0, guests.spin.length).set(guests.spin);
      const region = MemoryRegion.ram(machine.map, 'code', 0x1000, { memory: code });
      machine.transaction(() => machine.system.add(region, address));
      for (let index = 0; index < vcpus; index++) {
        replayed.#vcpus.push(await machine.addVcpu({ start: { mode: 'protected', entry: address } }));
      }
      // What a first time costs is no window's length.
      for (let step = 0; step < replayed.#player.length; step++) replayed.#player.step();
      replayed.windows.length = 0;
      replayed.remapped = 0;
      return replayed;
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  record({ windowMicroseconds, bytesRemapped }: CommitRecord): void {
    if (windowMicroseconds !== undefined) this.windows.push(windowMicroseconds);
    this.remapped += bytesRemapped;
  }

  async turn(): Promise<void> {
    for (const vcpu of this.#vcpus) vcpu.resume();
    await new Promise((resolve) => setTimeout(resolve, 20));
    for (let step = 0; step < stepsATurn; step++) {
      this.#player.step();
      const next = performance.now() + breather;
      while (performance.now() < next);
    }
    for (const vcpu of this.#vcpus) vcpu.pause();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }

  get turns(): number {
    return Math.ceil(this.#player.length / stepsATurn);
  }

  async close(): Promise<void> {
    await this.#machine.close();
  }
}

/** How long vCPUs are kept out while a recorded guest's memory is reshaped, by policy. */
export async function windows(report: Report): Promise<void> {
  const missing = await kvmMissing();
  if (missing !== undefined) {
    report.skip('windows on real KVM', missing);
    return;
  }
  const recording = await recordingOf(groupTransactions(readTrace(createReadStream(recordingPath))));
  const counts = report.quick ? [1, 4] : [1, 2, 4, 8];
  const series: Record<string, [number, number][]> = {};
  for (const vcpus of counts) {
    const sides: Replayed[] = [];
    try {
      for (const policy of ['stable', 'exact'] as const) sides.push(await Replayed.create(policy, recording, vcpus));
      const [stable, exact] = sides as [Replayed, Replayed];
      for (let turn = 0; turn < stable.turns * report.budget(12, 2); turn++) {
        for (const side of turn % 2 === 0 ? sides : [exact, stable]) await side.turn();
      }
      const quantile = (values: readonly number[], share: number) =>
        [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) * share)] ?? Number.NaN;
      const against = (what: string) => `window, ${vcpus} vCPUs: ${what}, stable against exact`;
      report.add(against('median, µs'), sampleOf(stable.windows), sampleOf(exact.windows), 1);
      report.add(against('p99, µs'), quantile(stable.windows, 0.99), quantile(exact.windows, 0.99), 1);
      if (vcpus === 1) report.add(against('bytes remapped for nothing'), stable.remapped, exact.remapped, 1 / 1000);
      for (const [name, side] of Object.entries({ stable, exact })) {
        for (const [label, share] of Object.entries({ p50: 0.5, p99: 0.99 })) {
          series[`${name} ${label}`] ??= [];
          series[`${name} ${label}`]!.push([vcpus, quantile(side.windows, share)]);
        }
      }
    } finally {
      for (const side of sides) await side.close();
    }
  }
  report.curves.push({ title: 'Window', x: 'vCPUs', y: 'µs', series });
}
