/**
 * The test kit of kvm-memslots: a simulated KVM with the real one's errno and holes, to test a VMM's memory-slot code
 * with on any machine. Nothing here needs Linux, /dev/kvm or a native library.
 *
 * @module
 */
import type { Arena } from '../core/arena.js';
import { createArena } from '../core/node.js';
import { SimulatedBackend, type SimulatedOptions } from '../kvm/simulated.js';
import type { SimulatedKernel } from '../kvm/simulated-kernel.js';

export { errno, errnoName } from '../core/core.js';
export type { ErrorCode } from '../core/errors.js';
export { MemorySlotsError } from '../core/errors.js';
export type { Exit, GuestProgram, GuestStep, HostMemory } from '../kvm/backend.js';
export { SimulatedBackend, type SimulatedOptions } from '../kvm/simulated.js';
export { FileTable } from '../kvm/simulated-files.js';
export type { CallHooks, Change, KernelCall, SimulatedKernel } from '../kvm/simulated-kernel.js';
export type { ProfileName } from '../kvm/simulated-profiles.js';
export type { RegionRequest, U64 } from '../kvm/simulated-request.js';
export type { SlotState } from '../kvm/simulated-slots.js';
export { CallRecorder, describeCall, Faults, type RecordedCall } from './hooks.js';
export {
  describeMoment,
  type ExploreOptions,
  exploreInterleavings,
  type HoleMoment,
  type InterleavingReport,
  replayInterleaving,
  type World,
} from './interleavings.js';
export { assertLayout, type LayoutSlot, layoutDifference } from './layout.js';

/** A simulated KVM of its own, see {@link simulatedKvm}. */
export interface SimulatedKvm {
  /** Where the kernel's tables and the vCPUs' words lie. */
  readonly arena: Arena;
  readonly backend: SimulatedBackend;
  /** The ioctls: the same object as `backend.kernel`. */
  readonly kernel: SimulatedKernel;
}

/** Bytes of the arena for everything but slots: hundreds of vCPUs. */
const spareBytes = 2 ** 20;
/** Bytes a slot takes in one address space: a table, and a map of two tables. */
const slotBytes = 3 * 80;

/**
 * A new simulated KVM with room in its arena for its slots and some vCPUs. Its calls take no time unless
 * `callMicroseconds` says otherwise.
 *
 *     const { kernel, backend } = simulatedKvm({ profile: 'x86-smm' });
 *     const memory = backend.allocate(0x100000);
 *     const ram = { slot: 0, flags: 0, gpa: 0, size: 0x100000, host: memory.hostAddress };
 *     kernel.setUserMemoryRegion(ram); // 0
 *     kernel.setUserMemoryRegion({ ...ram, slot: 1 }); // -17: EEXIST
 */
export function simulatedKvm(options: SimulatedOptions = {}): SimulatedKvm {
  const slots = options.slots ?? 32_767;
  const arena = createArena(spareBytes + 2 * slots * slotBytes);
  const backend = new SimulatedBackend(arena, { callMicroseconds: 0, ...options });
  return { arena, backend, kernel: backend.kernel };
}
