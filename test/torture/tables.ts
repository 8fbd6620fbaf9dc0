import { formatRange } from '../../ts/core/checks.js';
import type { HostMemory } from '../../ts/kvm/backend.js';
import type { Machine } from '../../ts/kvm/machine.js';
import { type FlatView, isBacked, isWritable } from '../../ts/memory/flat-view.js';
import type { WatchedBackend } from './watched-backend.js';

/** KVM's flags that guests and logs can tell. */
const logDirty = 1;
const readonly = 2;

/** What a guest finds behind a range, and how. */
interface Translation {
  readonly gpa: number;
  readonly size: number;
  readonly host: number;
  readonly flags: number;
}

/** Neighbours that go on in host memory as in guest memory, in one piece. */
function joined(pieces: Iterable<Translation>): string[] {
  const result: Translation[] = [];
  for (const piece of pieces) {
    const last = result.at(-1);
    const goesOn =
      last !== undefined &&
      last.gpa + last.size === piece.gpa &&
      last.host + last.size === piece.host &&
      last.flags === piece.flags;
    if (goesOn) result[result.length - 1] = { ...last, size: last.size + piece.size };
    else result.push(piece);
  }
  return result.map(({ gpa, size, host, flags }) => `${formatRange(gpa, size)} to ${host}, flags ${flags}`);
}

function* wanted(view: FlatView): Iterable<Translation> {
  for (const range of view.ranges) {
    if (!isBacked(range)) continue;
    const { gpa, size, offset, region } = range;
    const host = (region.memory as HostMemory).hostAddress + region.memoryOffset + offset;
    yield { gpa, size, host, flags: (range.logging ? logDirty : 0) | (isWritable(range) ? 0 : readonly) };
  }
}

/**
 * Whether the slots that the machine says it has, those that the calls made, and what its memory map asks for are one
 * and the same: what differs, in words.
 */
export function tableDifferences(machine: Machine, backend: WatchedBackend): string[] {
  const spaces = machine.smm === undefined ? [machine.memory] : [machine.memory, machine.smm];
  return spaces.flatMap((space, index) => {
    const said = machine
      .slots(index)
      .map(({ gpa, size, memory, offset, flags }) => ({ gpa, size, host: memory.hostAddress + offset, flags }));
    const seen = (slots: readonly Translation[]) =>
      joined(slots.map((slot) => ({ ...slot, flags: slot.flags & (logDirty | readonly) })));
    const tables = { 'the slot table': seen(said), 'the calls': seen(backend.held(index)) };
    const asked = joined(wanted(space.view));
    return Object.entries(tables).flatMap(([name, table]) => [
      ...table.filter((piece) => !asked.includes(piece)).map((piece) => `${name} of ${space.name} has ${piece}`),
      ...asked.filter((piece) => !table.includes(piece)).map((piece) => `${name} of ${space.name} lacks ${piece}`),
    ]);
  });
}
