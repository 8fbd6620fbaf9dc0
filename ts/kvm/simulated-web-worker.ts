/**
 * The thread of one simulated vCPU in a browser: the entry of a Web Worker, to be bundled for one. What vcpu-worker.ts is
 * under Node. The first message to it is a VcpuWorkerData; it answers `{ kind: 'ready' }`, then with what
 * {@link VcpuLoop} sends, and closes itself at the end. The page must be cross-origin isolated, and the owner has to be
 * a worker too: a page's main thread may not sleep.
 */
import { Arena } from '../core/arena.js';
import { lineWords, vcpuStates } from './gate.js';
import { simulatedRunner } from './simulated-vcpu.js';
import { VcpuLoop } from './vcpu.js';
import type { VcpuWorkerData } from './vcpu-worker.js';

addEventListener(
  'message',
  ({ data }: MessageEvent<VcpuWorkerData>) => {
    const arena = Arena.attach(data.arena);
    const runner = simulatedRunner(arena, data.setup, data.line);
    const loop = new VcpuLoop(arena, runner, { ...data, send: (message) => postMessage(message) });
    Atomics.store(arena.words, (data.line >>> 2) + lineWords.state, vcpuStates.ready);
    postMessage({ kind: 'ready' });
    try {
      loop.run();
    } finally {
      runner.close();
      close();
    }
  },
  { once: true },
);
