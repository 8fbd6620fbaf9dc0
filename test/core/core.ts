import type { Arena, MemoryRange } from '../../ts/core/arena.js';
import type { Core } from '../../ts/core/core.js';
import { chooseCore, createArena } from '../../ts/core/node.js';

/** An arena and the build of the core that this run is about. */
export function openCore(bytes = 1 << 20): { arena: Arena; core: Core } {
  const arena = createArena(bytes);
  return { arena, core: chooseCore(arena, 'native') };
}

/** A range with everything that a test doesn't care about at rest. */
export function rangeOf(values: Partial<MemoryRange>): MemoryRange {
  return {
    gpa: 0,
    size: 0,
    host: 0,
    offset: 0,
    id: 0,
    flags: 0,
    region: 0,
    since: 0,
    addressSpace: 0,
    guestMemfd: -1,
    ...values,
  };
}
