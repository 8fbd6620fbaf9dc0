import { nativeCore } from '../../ts/core/native.js';
import { createArena } from '../../ts/core/node.js';
import { Gate, gateLineBytes } from '../../ts/kvm/gate.js';
import { KvmPair, kvmMissing } from './kvm-pair.js';
import type { Report } from './report.js';
import { loadRivals } from './rivals.js';
import { race } from './sampler.js';

const pairs = 10_000;
const roundTrips = 20;

/** Entering and leaving a gate that nobody shuts, which every KVM_RUN pays. */
export async function gates(report: Report): Promise<void> {
  const rivals = loadRivals();
  const arena = createArena(1 << 20);
  const core = nativeCore(arena);
  const [control, line, word] = [0, 1, 2].map(() => arena.allocate(gateLineBytes, gateLineBytes)) as [
    number,
    number,
    number,
  ];
  const gate = new Gate(arena, control, line);
  const contenders = {
    gate: {
      operations: pairs,
      run() {
        for (let index = 0; index < pairs; index++) {
          gate.enter();
          gate.leave();
        }
      },
    },
    vcpu: {
      operations: pairs,
      run() {
        for (let index = 0; index < pairs; index++) {
          gate.enter();
          gate.startRun();
          gate.leave();
        }
      },
    },
    pair: { operations: pairs, run: () => rivals.gate(rivals.address(arena, word), pairs) },
    koffi: {
      operations: pairs,
      run() {
        for (let index = 0; index < pairs; index++) core.nothing();
      },
    },
  };
  const samples = race(contenders, { milliseconds: report.budget(2000, 400) });
  report.add('gate: enter and leave, against two atomic operations in C, ns', samples.gate, samples.pair, 3);
  report.add('gate: enter and leave, against one empty koffi call, ns', samples.gate, samples.koffi, 1);
  const missing = await kvmMissing();
  if (missing !== undefined) {
    report.skip('gate: enter, count and leave against a round trip of KVM_RUN', missing);
    return;
  }
  const pair = await KvmPair.create({});
  try {
    const trips = pair.prepareRoundTrips();
    const { kvm } = race(
      { kvm: { operations: roundTrips, run: () => trips(roundTrips) } },
      { milliseconds: report.budget(500, 100) },
    );
    report.add('gate: enter, count and leave, against a round trip of KVM_RUN, ns', samples.vcpu, kvm, 0.01);
  } finally {
    await pair.close();
  }
}
