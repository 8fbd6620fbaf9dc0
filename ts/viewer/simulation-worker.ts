/**
 * The worker of the page's simulation: the entry of a script of its own. It is told what to do by SimulationOrders and
 * answers with SimulationReports.
 */
import sharedCore from 'memslots-core-shared';
import vcpuScript from 'memslots-vcpu-worker';
import { wasm as core } from '../core/slots-wasm.js';
import type { VcpuWorkerData } from '../kvm/vcpu-worker.js';
import { recordingOf } from '../replay/recording.js';
import { groupTransactions, readTrace } from '../trace/index.js';
import { Simulation } from './simulation.js';
import type { SimulationOrder, SimulationReport } from './simulation-messages.js';

const report = (message: SimulationReport): void => postMessage(message);

let simulation: Promise<Simulation> | undefined;

addEventListener('message', ({ data }: MessageEvent<SimulationOrder>) => {
  obey(data).catch((error: unknown) => {
    report({ kind: 'failed', message: error instanceof Error ? error.message : String(error) });
  });
});

async function obey(order: SimulationOrder): Promise<void> {
  if (order.kind === 'start') {
    simulation = start(order);
    await simulation;
    return;
  }
  const running = await simulation!;
  if (order.kind === 'updates') await running.setUpdates(order.updates);
  else if (order.kind === 'make') running.make(order.reshape);
  else if (order.kind === 'step') running.step();
  else running.storm = order.on;
}

async function start({ mode, vcpus, log }: SimulationOrder & { kind: 'start' }): Promise<Simulation> {
  const bytes = mode === 'threads' ? sharedCore : Uint8Array.from(atob(core), (letter) => letter.charCodeAt(0));
  const module = await WebAssembly.compile(bytes);
  const recording =
    log === undefined ? undefined : await recordingOf(groupTransactions(readTrace(log.stream(), { lenient: true })));
  const script = URL.createObjectURL(new Blob([vcpuScript], { type: 'text/javascript' }));
  const startVcpu = (data: VcpuWorkerData): Promise<void> =>
    new Promise((resolve, reject) => {
      const worker = new Worker(script);
      worker.onmessage = () => resolve();
      worker.onerror = (event) => reject(new Error(`a vCPU's thread failed: ${event.message}`));
      worker.postMessage(data);
    });
  try {
    return await Simulation.start({ mode, vcpus, module, recording, startVcpu, report });
  } finally {
    URL.revokeObjectURL(script);
  }
}
