import { closeSync, openSync } from 'node:fs';
import { loadNativeLibrary } from '../../ts/core/native.js';
import { createArena } from '../../ts/core/node.js';
import { SimulatedBackend, type SimulatedOptions } from '../../ts/kvm/simulated.js';
import { FileTable } from '../../ts/kvm/simulated-files.js';
import type { Subject } from './kvm-calls.js';
import { RealKernel } from './kvm-real.js';

/** Machines on the simulated kernel. Only the slots are made: no memory, and calls take no time. */
export function simulatedSubject(options: SimulatedOptions): Subject {
  const files = new FileTable();
  const backend = new SimulatedBackend(createArena(24 * 2 ** 20), {
    backed: false,
    callMicroseconds: 0,
    ...options,
    files,
  });
  return {
    name: 'simulated',
    kernel: backend.kernel,
    ordinaryFiles: [files.createOther()],
    foreignGuestMemfd: files.createGuestMemfd({}, 2 ** 20),
    duplicate: (fd) => files.duplicate(fd),
    closeFile: (fd) => void files.close(fd),
    close: () => backend.close(),
  };
}

/** Machines on /dev/kvm. */
export function realSubject(): Subject {
  const kernel = new RealKernel();
  const other = new RealKernel();
  // The library's own dependencies are searched too, so this is the C library's.
  const dup = loadNativeLibrary().function('int32_t dup(int32_t)');
  const ordinaryFile = openSync('/dev/null', 'r');
  const foreignGuestMemfd = other.createGuestMemfd(2 ** 20);
  return {
    name: 'kvm',
    kernel,
    ordinaryFiles: [ordinaryFile, kernel.kvm, kernel.vm, other.vm],
    foreignGuestMemfd,
    duplicate: (fd) => dup(fd),
    closeFile: closeSync,
    close: () => {
      kernel.close();
      if (foreignGuestMemfd >= 0) closeSync(foreignGuestMemfd);
      other.close();
      closeSync(ordinaryFile);
    },
  };
}
