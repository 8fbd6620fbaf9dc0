/** The thread of one vCPU under Node. Started by machine.ts with a {@link VcpuWorkerData}. */
import { parentPort, workerData } from 'node:worker_threads';
import { Arena, type ArenaHandle } from '../core/arena.js';
import type { VcpuRunner, VcpuSetup } from './backend.js';
import { Gate, lineWords, vcpuStates } from './gate.js';
import { currentThread } from './thread-state.js';
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
const base = data.line >>> 2;
const gate = new Gate(arena, data.control, data.line);
// Also when something calls process.exit(), and while the owner waits in a commit and hears of nothing.
process.on('exit', () => {
  if (Atomics.load(arena.words, base + lineWords.state) !== vcpuStates.ended) gate.release();
});

async function makeRunner(setup: VcpuSetup): Promise<VcpuRunner> {
  const setThread = (id: number) => Atomics.store(arena.words, base + lineWords.thread, id);
  // Loaded only where it is needed: a simulated vCPU must run where there is no koffi.
  if (setup.kind === 'simulated') {
    setThread(currentThread());
    return (await import('./simulated-vcpu.js')).simulatedRunner(arena, setup, data.line);
  }
  // A kick can't do without the id, so it mustn't depend on /proc.
  const { linuxRunner, threadId } = await import('./linux-vcpu.js');
  setThread(threadId());
  return linuxRunner(setup);
}

const runner = await makeRunner(data.setup);
const port = parentPort!;
const loop = new VcpuLoop(arena, runner, { ...data, send: (message) => port.postMessage(message) });
Atomics.store(arena.words, base + lineWords.state, vcpuStates.ready);
port.postMessage({ kind: 'ready' });
try {
  loop.run();
} finally {
  runner.close();
  // From here on there is no thread to signal.
  Atomics.store(arena.words, base + lineWords.thread, 0);
  port.close();
}
