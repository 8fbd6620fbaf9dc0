import type { Machine } from '../kvm/machine.js';
import type { CommitRecord } from '../kvm/slots-listener.js';
import type { Player } from './player.js';

/** One range of a layout that was merged to its translation. Bytes; `hostOffset` is the recorded VMM's address. */
export interface LayoutRange {
  readonly as: number;
  readonly gpa: number;
  readonly size: number;
  readonly hostOffset: number;
  readonly flags: number;
}

/** What playing a recording once came to. */
export interface ReplayFigures {
  readonly steps: number;
  readonly ioctls: number;
  readonly creates: number;
  readonly deletes: number;
  /** Always 0: a move has a hole, and the planner needs none. */
  readonly moves: number;
  readonly flagChanges: number;
  /** Transactions that took an inhibit window. */
  readonly inhibits: number;
  /** Of these, those in which some address mapped before and after was unmapped in between. */
  readonly inhibitsForOverlap: number;
  readonly bytesTornDown: number;
  /** Bytes of deleted slots that the same transaction mapped again to the same host memory with the same flags. */
  readonly bytesRemapped: number;
  /** The most slots in use after any step, all address spaces together. */
  readonly maxSlots: number;
  readonly finalLayout: readonly LayoutRange[];
  /** Slots of address spaces that this KVM lacks. */
  readonly skipped: number;
}

/** Counts what a machine's commits do while a recording is played. */
export class ReplayCounter {
  #ioctls = 0;
  #creates = 0;
  #deletes = 0;
  #flagChanges = 0;
  #inhibits = 0;
  #overlaps = 0;
  #tornDown = 0;
  #remapped = 0;

  /** For the machine's `onCommit`. */
  readonly record = (record: CommitRecord): void => {
    this.#ioctls += record.operations;
    this.#creates += record.creates;
    this.#deletes += record.deletes;
    this.#flagChanges += record.flagChanges;
    this.#inhibits += record.inhibit ? 1 : 0;
    this.#overlaps += record.overlap ? 1 : 0;
    this.#tornDown += record.bytesTornDown;
    this.#remapped += record.bytesRemapped;
  };

  /** Plays the whole recording once. */
  play(machine: Machine, player: Player): ReplayFigures {
    let maxSlots = 0;
    for (let step = 0; step < player.length; step++) {
      player.step();
      maxSlots = Math.max(maxSlots, machine.slotsInUse);
    }
    return {
      steps: player.length,
      ioctls: this.#ioctls,
      creates: this.#creates,
      deletes: this.#deletes,
      moves: 0,
      flagChanges: this.#flagChanges,
      inhibits: this.#inhibits,
      inhibitsForOverlap: this.#overlaps,
      bytesTornDown: this.#tornDown,
      bytesRemapped: this.#remapped,
      maxSlots,
      finalLayout: finalLayout(machine, player),
      skipped: player.skipped,
    };
  }
}

/** The machine's slots in address order, those that continue each other joined. */
function finalLayout(machine: Machine, player: Player): LayoutRange[] {
  const result: LayoutRange[] = [];
  const spaces = machine.smm === undefined ? [0] : [0, 1];
  for (const as of spaces) {
    for (const { gpa, size, memory, offset, flags } of machine.slots(as)) {
      const hostOffset = player.recording.memories[player.memories.indexOf(memory)]!.hostAddress + offset;
      const last = result.at(-1);
      if (
        last?.as === as &&
        last.flags === flags &&
        last.gpa + last.size === gpa &&
        last.hostOffset + last.size === hostOffset
      ) {
        result[result.length - 1] = { ...last, size: last.size + size };
      } else {
        result.push({ as, gpa, size, hostOffset, flags });
      }
    }
  }
  return result;
}
