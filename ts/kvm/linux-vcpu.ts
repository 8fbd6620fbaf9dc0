import { errno, errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import { loadNativeLibrary } from '../core/native.js';
import type { Exit, ExitReason, VcpuRunner, VcpuSetup } from './backend.js';

/** Offsets in `struct kvm_run` (linux/kvm.h). */
const runPage = {
  immediateExit: 1,
  exitReason: 8,
  detail: 32,
  mmio: { address: 32, data: 40, length: 48, isWrite: 52 },
  port: { direction: 32, size: 33, number: 34, dataOffset: 40 },
  fault: { address: 40 },
} as const;

/** KVM_EXIT_* numbers. */
const reasons: Readonly<Record<number, ExitReason>> = {
  2: 'port',
  5: 'halt',
  6: 'mmio',
  8: 'shutdown',
  9: 'fail-entry',
  10: 'interrupted',
  17: 'internal-error',
  31: 'dirty-ring-full',
  39: 'memory-fault',
};

/** The calling thread's id, for the kick. */
export function threadId(): number {
  return loadNativeLibrary().function('int32_t memslots_thread_id()')();
}

/** Runs a vCPU of the real KVM in the thread that calls this. */
export function linuxRunner(setup: VcpuSetup & { kind: 'kvm' }): VcpuRunner {
  const native = loadNativeLibrary();
  const page = new Uint8Array(native.koffi.view(BigInt(setup.runAddress), setup.runBytes) as ArrayBuffer);
  const view = new DataView(page.buffer);
  const runVcpu = native.function('int32_t memslots_kvm_run(int32_t)');
  const read = native.function('int32_t memslots_memory_copy(void *, uintptr_t, uint32_t)');
  const write = native.function('int32_t memslots_memory_copy(uintptr_t, const void *, uint32_t)');
  const mmioData = page.subarray(runPage.mmio.data, runPage.mmio.data + 8);
  const exit: Exit = { reason: 'unknown', gpa: 0, size: 0, write: false, data: mmioData, detail: 0 };

  const readPage = (): void => {
    exit.detail = view.getUint32(runPage.exitReason, true);
    exit.reason = reasons[exit.detail] ?? 'unknown';
    if (exit.reason === 'mmio') {
      exit.gpa = Number(view.getBigUint64(runPage.mmio.address, true));
      exit.size = view.getUint32(runPage.mmio.length, true);
      exit.write = page[runPage.mmio.isWrite] === 1;
      exit.data = mmioData;
    } else if (exit.reason === 'port') {
      exit.gpa = view.getUint16(runPage.port.number, true);
      exit.size = page[runPage.port.size]!;
      exit.write = page[runPage.port.direction] === 1;
      const offset = Number(view.getBigUint64(runPage.port.dataOffset, true));
      exit.data = page.subarray(offset, offset + exit.size);
    } else if (exit.reason === 'internal-error') {
      exit.detail = view.getUint32(runPage.detail, true);
    } else if (exit.reason === 'memory-fault') {
      exit.gpa = Number(view.getBigUint64(runPage.fault.address, true));
    }
  };

  return {
    clearKick() {
      Atomics.store(page, runPage.immediateExit, 0);
    },
    run() {
      const result = runVcpu(setup.fd);
      if (result === -errno.EINTR || result === -errno.EAGAIN) {
        exit.reason = 'interrupted';
      } else if (result < 0) {
        throw new MemorySlotsError('IOCTL', `KVM_RUN failed with ${errnoName(result)}`);
      } else {
        readPage();
      }
      return exit;
    },
    access(host, data, isWrite) {
      if (isWrite) write(host, data, data.length);
      else read(data, host, data.length);
    },
    close() {},
  };
}
