/** The thread of one vCPU under Node. Started by machine.ts with a {@link VcpuWorkerData}. */
import { parentPort, workerData } from 'node:worker_threads';
import { Arena, type ArenaHandle } from '../core/arena.js';
import type { VcpuRunner, VcpuSetup } from './backend.js';
import { lineWords, vcpuStates } from './gate.js';
import { VcpuLoop } from './vcpu.js';

/** What the owner hands to a vCPU's thread. */
export interface VcpuWorkerData {
  readonly arena: ArenaHandle;
  readonly setup: VcpuSetup;
  readonly control: number;
  readonly line: number;
  readonly map: number;
  readonly scratch: number;
}

const data = workerData as VcpuWorkerData;
// In module scope: a raw address must not outlive the memory.
const arena = Arena.attach(data.arena);
const state = (data.line >>> 2) + lineWords.state;

async function makeRunner(setup: VcpuSetup): Promise<VcpuRunner> {
  // Loaded only where it is needed: a simulated vCPU must run where there is no koffi.
  if (setup.kind === 'simulated') return (await import('./simulated-vcpu.js')).simulatedRunner(arena, setup, data.line);
  const { linuxRunner, threadId } = await import('./linux-vcpu.js');
  Atomics.store(arena.words, (data.line >>> 2) + lineWords.thread, threadId());
  return linuxRunner(setup);
}

const runner = await makeRunner(data.setup);
const port = parentPort!;
const loop = new VcpuLoop(arena, runner, { ...data, send: (message) => port.postMessage(message) });
Atomics.store(arena.words, state, vcpuStates.ready);
port.postMessage({ kind: 'ready' });
try {
  loop.run();
} finally {
  runner.close();
  // From here on there is no thread to signal.
  Atomics.store(arena.words, (data.line >>> 2) + lineWords.thread, 0);
  port.close();
}
