import type { HostMemory } from '../kvm/backend.js';
import { MemoryRegion } from '../memory/region.js';
import type { ReplayMachine } from './player.js';
import { type WatchedWord, writeWord } from './watch-guest.js';

const mebibyte = 0x100000;
/** Guest-physical addresses that a {@link Reshaper} uses. */
export const reshapedBytes = 32 * mebibyte;

const smallBytes = 16 * mebibyte;
const holeOffset = 4 * mebibyte;
const flipOffset = 8 * mebibyte;
const pieceBytes = 2 * mebibyte;

/** What can be done to the RAM, in the order in which {@link Reshaper.step} does it. */
export const reshapes = ['grow', 'split', 'protect', 'shrink', 'merge', 'unprotect'] as const;
export type Reshape = (typeof reshapes)[number];

/** Offsets of watched words: in memory that no change takes away, at the edges of what changes. */
const watchedOffsets = [
  0x1000,
  mebibyte,
  holeOffset - 4,
  holeOffset + pieceBytes,
  flipOffset - 4,
  flipOffset + pieceBytes,
  smallBytes - 4,
];

/**
 * RAM that is reshaped in every way that a VMM does it: grown, shrunk, split by a hole in its middle and merged again,
 * a part of it made read-only and writable again. One change a step, each a transaction, round and round.
 */
export class Reshaper {
  readonly #machine: ReplayMachine;
  readonly #gpa: number;
  readonly #memory: HostMemory;
  readonly #ram: MemoryRegion;
  readonly #hole: MemoryRegion;
  readonly #flip: MemoryRegion;
  #next = 0;

  /** Maps the RAM at `gpa`. */
  constructor(machine: ReplayMachine, gpa: number) {
    const { map, system } = machine;
    this.#machine = machine;
    this.#gpa = gpa;
    this.#memory = machine.allocate(reshapedBytes);
    this.#ram = MemoryRegion.ram(map, 'reshaped', smallBytes, { memory: this.#memory });
    this.#hole = MemoryRegion.mmio(map, 'hole', pieceBytes);
    this.#flip = MemoryRegion.alias(map, 'read-only part', this.#ram, flipOffset, pieceBytes, { readonly: true });
    machine.transaction(() => {
      system.add(this.#ram, gpa);
      for (const [region, offset] of [
        [this.#hole, holeOffset],
        [this.#flip, flipOffset],
      ] as const) {
        region.setEnabled(false);
        system.add(region, gpa + offset, { priority: 1 });
      }
    });
  }

  /** Writes the words that guests may expect at any time, and says which they are. */
  watched(): WatchedWord[] {
    return watchedOffsets.map((offset) => {
      const value = (0xa5000000 + offset) >>> 0;
      writeWord(this.#memory, offset, value);
      return { gpa: this.#gpa + offset, value };
    });
  }

  /** Makes the next change. */
  step(): void {
    this.make(reshapes[this.#next]!);
    this.#next = (this.#next + 1) % reshapes.length;
  }

  /** Makes a change, whichever came before; one that is made already changes nothing. */
  make(reshape: Reshape): void {
    const changes: Record<Reshape, () => void> = {
      grow: () => this.#ram.setSize(reshapedBytes),
      split: () => this.#hole.setEnabled(true),
      protect: () => this.#flip.setEnabled(true),
      shrink: () => this.#ram.setSize(smallBytes),
      merge: () => this.#hole.setEnabled(false),
      unprotect: () => this.#flip.setEnabled(false),
    };
    this.#machine.transaction(changes[reshape]);
  }
}
