/** Runs in a Web Worker of browser.test.ts: replaces a slot under a vCPU, atomically and naively, and reports. */
import { Arena } from '../../ts/core/arena.js';
import { lineWords } from '../../ts/kvm/gate.js';
import { Inhibitor } from '../../ts/kvm/inhibitor.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import type { VcpuWorkerData } from '../../ts/kvm/vcpu-worker.js';
import { SectionMap } from '../../ts/memory/section-map.js';

const updates = 300;
const mebibyte = 2 ** 20;

async function main(): Promise<object> {
  const module = await WebAssembly.compileStreaming(fetch('slots-shared.wasm'));
  const arena = Arena.create(module, 12 * mebibyte, true);
  const backend = new SimulatedBackend(arena, { memoryBytes: mebibyte });
  const inhibitor = new Inhibitor(arena);
  const slot = { slot: 0, flags: 0, gpa: 0, size: mebibyte, host: backend.allocate(mebibyte).hostAddress };
  backend.kernel.setUserMemoryRegion(slot);
  const line = inhibitor.allocateLine();
  inhibitor.add(0, line, { kick: () => backend.kick(0) });
  const data: VcpuWorkerData = {
    arena: arena.handle(),
    setup: backend.createVcpu(0, line, { steps: [{ kind: 'check', gpa: 0x1000, size: 4, expected: 0 }] }),
    control: inhibitor.control,
    line,
    map: new SectionMap(arena, 1).offset,
    scratch: arena.allocate(arena.layout.range.bytes),
  };
  const worker = new Worker('simulated-web-worker.js', { type: 'module' });
  const ready = new Promise((resolve, reject) => {
    worker.onmessage = resolve;
    worker.onerror = (event) => reject(new Error(event.message));
  });
  worker.postMessage(data);
  await ready;
  const word = (name: keyof typeof lineWords): number => Atomics.load(arena.words, (line >>> 2) + lineWords[name]);
  const settle = async (): Promise<void> => {
    const reads = word('guestReads');
    while (word('guestReads') < reads + 10) await new Promise((resolve) => setTimeout(resolve, 1));
  };
  const seen = () => ({ mmio: word('mmioExits'), wrong: word('guestWrongValues') });
  const replace = (): void => {
    backend.kernel.setUserMemoryRegion({ ...slot, size: 0 });
    backend.kernel.setUserMemoryRegion(slot);
  };
  inhibitor.resume(0);
  await settle();
  for (let i = 0; i < updates; i++) inhibitor.window(replace);
  await settle();
  const atomic = seen();
  for (let i = 0; i < updates || word('mmioExits') === 0; i++) replace();
  await settle();
  const naive = seen();
  inhibitor.close(0);
  return { atomic, naive, reads: word('guestReads') };
}

main()
  .catch((error: unknown) => ({ error: String(error) }))
  .then((result) => fetch('result', { method: 'POST', body: JSON.stringify(result) }));
