/**
 * kvm-memslots for browsers: the memory map and its flat views. Nothing here needs
 * Node, KVM, or cross-origin isolation.
 * @packageDocumentation
 */
export { type ErrorCode, MemorySlotsError } from './core/errors.js';
export type { Address } from './memory/address.js';
export {
  AddressSpace,
  type ListenerHandle,
  type MemoryListener,
  MemoryMap,
  type Section,
} from './memory/address-space.js';
export type { TextRange } from './memory/flat-text.js';
export { type FlatRange, FlatView } from './memory/flat-view.js';
export { type FlattenedSpace, flatten } from './memory/flatten.js';
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
