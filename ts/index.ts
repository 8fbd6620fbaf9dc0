/**
 * kvm-memslots: KVM memory slots that are resized, split and merged without a vCPU ever seeing a hole.
 * @packageDocumentation
 */
export type { Arena, MemoryRange } from './core/arena.js';
export { type ErrorCode, MemorySlotsError } from './core/errors.js';
export {
  type AllocateOptions,
  type Backend,
  type Capabilities,
  type GuestProgram,
  type GuestStep,
  HostMemory,
  type VcpuSetup,
  type X86Start,
} from './kvm/backend.js';
export { Gate, type GateHandle } from './kvm/gate.js';
export { type CommitCanceller, cancelCommit, type InhibitorOptions } from './kvm/inhibitor.js';
export { Machine, type MachineOptions, type PublishedCommit, type PublishedWindow, type Slot } from './kvm/machine.js';
export { Plan } from './kvm/plan.js';
export {
  type Operation,
  type OperationKind,
  type OperationReason,
  type PlanSummary,
  type Policy,
  pcSplitPoints,
} from './kvm/planner.js';
export type { SimulatedOptions } from './kvm/simulated.js';
export type { ProfileName } from './kvm/simulated-profiles.js';
export { type CommitRecord, SlotIoctlError } from './kvm/slots-listener.js';
export type { Vcpu, VcpuCounters, VcpuStop } from './kvm/vcpu-owner.js';
export type { Address } from './memory/address.js';
export {
  AddressSpace,
  type ListenerHandle,
  type MemoryListener,
  MemoryMap,
  type Section,
} from './memory/address-space.js';
export { type FlatRange, FlatView } from './memory/flat-view.js';
export type { GuestMemory } from './memory/guest-memory.js';
export type { ListenerOf, SectionOf } from './memory/listener.js';
export {
  type BackedOptions,
  MemoryRegion,
  type MmioHandlers,
  type RegionKind,
  type RegionOptions,
} from './memory/region.js';
export type { Transactions } from './memory/transactions.js';
export { type SharedMachine, shareMachine } from './replay/live.js';
