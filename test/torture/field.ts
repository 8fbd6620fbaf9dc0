import type { HostMemory } from '../../ts/kvm/backend.js';
import type { Machine } from '../../ts/kvm/machine.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { type WatchedWord, watchBlockBytes, writeWord } from '../../ts/replay/watch-guest.js';

const page = 0x1000;
const mebibyte = 0x100000;
/** Where things are, guest-physical. */
const at = {
  ram: 0x10000000,
  bars: 0x20000000,
  wheel: 0x28000000,
  bus: 0x30000000,
  flash: 0x38000000,
  code: 0x70000000,
};
/** RAM never shrinks below this. */
const steadyBytes = 16 * mebibyte;
const ramBytes = 2 * steadyBytes;
const shadowOffset = 4 * mebibyte;
const barBytes = mebibyte;
const barDistance = 4 * barBytes;
const wheelPieces = 8;
/** Where, in each piece of memory that holds them, the words are that guests watch. */
const wordOffsets = [0, page, barBytes / 2, barBytes - 4];

/** One change, made inside a transaction. */
type Edit = () => void;

/** A generator of random numbers from 0 to below 1. */
export type Random = () => number;

/**
 * A guest's memory map that random transactions change in every way there is, while certain words stay readable at their
 * addresses with the values they have: whatever the change, there is the same memory behind them, or other memory with
 * the same word. A guest that ever finds something else there has seen half a change.
 */
export class Field {
  /** What guests may expect at any time. */
  readonly watched: readonly WatchedWord[];
  /** Holds one block for each of `blocks` watching guests, mapped at {@link codeAddress} and logged at times. */
  readonly code: HostMemory;
  readonly codeAddress = at.code;
  readonly #edits: readonly Edit[];
  readonly #random: Random;

  constructor(machine: Machine, random: Random, blocks: number) {
    const { map, system } = machine;
    this.#random = random;
    const ramMemory = machine.allocate(ramBytes);
    const ram = MemoryRegion.ram(map, 'ram', steadyBytes, { memory: ramMemory });
    const hole = MemoryRegion.mmio(map, 'hole', 2 * mebibyte);
    const protectedBytes = 3 * mebibyte;
    const readonly = MemoryRegion.alias(map, 'read-only', ram, 0, protectedBytes, { readonly: true });
    const shadow = MemoryRegion.ram(map, 'shadow', barBytes, { memory: machine.allocate(barBytes) });

    const { guestMemfd } = machine.capabilities;
    const bars = [machine.allocate(2 * barBytes), machine.allocate(2 * barBytes, { guestMemfd })].map((memory, index) =>
      MemoryRegion.ram(map, `bar ${index}`, barBytes, { memory }),
    );
    const wheelMemory = machine.allocate(wheelPieces * barBytes);
    const wheelRegion = MemoryRegion.ram(map, 'wheel', wheelMemory.size, { memory: wheelMemory });
    const wheel = MemoryRegion.alias(map, 'part of the wheel', wheelRegion, 0, barBytes);

    const bus = MemoryRegion.container(map, 'bus', 32 * mebibyte);
    const card = MemoryRegion.ram(map, 'card', 2 * mebibyte, { memory: machine.allocate(2 * mebibyte) });
    const registers = MemoryRegion.mmio(map, 'registers', page);
    const flash = MemoryRegion.romDevice(map, 'flash', mebibyte, { memory: machine.allocate(mebibyte) });
    const codeBytes = blocks * watchBlockBytes;
    this.code = machine.allocate(codeBytes + mebibyte);
    const code = MemoryRegion.ram(map, 'code', codeBytes, { memory: this.code });

    const barMemories = bars.map((bar) => bar.memory as HostMemory);
    const pieces = Array.from({ length: wheelPieces }, (_, piece) => piece * barBytes);
    this.watched = [
      ...words(at.ram + mebibyte, [ramMemory, mebibyte]),
      ...words(at.ram + steadyBytes - barBytes, [ramMemory, steadyBytes - barBytes]),
      ...words(at.ram + shadowOffset, [ramMemory, shadowOffset], [shadow.memory as HostMemory, 0]),
      // Either bar may be at either place, so both have the same words.
      ...words(at.bars, ...barMemories.map((memory) => [memory, 0] as const)),
      ...words(at.bars, ...barMemories.map((memory) => [memory, 0] as const)).map(({ gpa, value }) => ({
        gpa: gpa + barDistance,
        value,
      })),
      ...words(at.wheel, ...pieces.map((piece) => [wheelMemory, piece] as const)),
    ];

    machine.transaction(() => {
      system.add(ram, at.ram);
      for (const [index, overlay] of [hole, readonly, shadow].entries()) {
        overlay.setEnabled(false);
        system.add(overlay, at.ram + [steadyBytes, 0, shadowOffset][index]!, { priority: index + 1 });
      }
      for (const [index, bar] of bars.entries()) system.add(bar, at.bars + index * barDistance);
      system.add(wheel, at.wheel);
      bus.add(card, 0);
      bus.add(registers, mebibyte, { priority: 1 });
      system.add(bus, at.bus);
      system.add(flash, at.flash);
      system.add(code, at.code);
      if (machine.smm !== undefined) {
        // What only a guest in system management mode would see, over all that every guest sees.
        const smram = MemoryRegion.ram(map, 'SMRAM', mebibyte, { memory: machine.allocate(mebibyte) });
        machine.smm.root.add(MemoryRegion.alias(map, 'system in SMM', system, 0, 2n ** 64n), 0);
        machine.smm.root.add(smram, at.bus, { priority: 1 });
      }
    });

    const flip = (region: MemoryRegion) => () => region.setEnabled(!region.enabled);
    const log = (region: MemoryRegion) => () => region.setLogging(!region.logging);
    const pages = (below: number) => this.#below(below / page) * page;
    this.#edits = [
      () => ram.setSize(steadyBytes + pages(steadyBytes) + page),
      () => ram.setSize(steadyBytes),
      log(ram),
      flip(hole),
      () => hole.setAddress(at.ram + steadyBytes + pages(steadyBytes)),
      () => hole.setSize(page + pages(2 * mebibyte)),
      flip(readonly),
      () => {
        const offset = pages(steadyBytes - protectedBytes);
        readonly.setAddress(at.ram + offset);
        readonly.setTargetOffset(offset);
      },
      flip(shadow),
      () => {
        const [one, other] = bars.map((bar) => bar.address) as [number, number];
        bars[0]!.setAddress(other);
        bars[1]!.setAddress(one);
      },
      ...bars.flatMap((bar) => [
        log(bar),
        () => bar.setSize(bar.size === barBytes ? barBytes + page + pages(barBytes - page) : barBytes),
      ]),
      () => wheel.setTargetOffset(this.#below(wheelPieces) * barBytes),
      log(wheelRegion),
      () => bus.setAddress(at.bus + pages(mebibyte)),
      flip(bus),
      () => {
        if (card.parent === undefined) bus.add(card, pages(mebibyte));
        else bus.remove(card);
      },
      () => card.setReadonly(!card.readonly),
      () => card.setNonvolatile(!card.nonvolatile),
      () => registers.setAddress(pages(2 * mebibyte)),
      () => flash.setRomMode(!flash.romMode),
      () => code.setSize(code.size === codeBytes ? codeBytes + page + pages(mebibyte - page) : codeBytes),
      log(code),
    ];
  }

  /** A number from 0 to below `end`. */
  #below(end: number): number {
    return Math.floor(this.#random() * end);
  }

  /** A random change of one to four regions, to be made in one transaction. */
  edit(): Edit {
    // Which, is settled now; how far, when it is made.
    const edits = Array.from({ length: 1 + this.#below(4) }, () => this.#edits[this.#below(this.#edits.length)]!);
    return () => {
      for (const edit of edits) edit();
    };
  }
}

/** Writes words to watch, the same ones at each of `places` (a memory and an offset in it), all of which `gpa` may show. */
function words(gpa: number, ...places: readonly (readonly [HostMemory, number])[]): WatchedWord[] {
  return wordOffsets.map((offset) => {
    const value = (0xa5000000 ^ (gpa + offset)) >>> 0;
    for (const [memory, start] of places) writeWord(memory, start + offset, value);
    return { gpa: gpa + offset, value };
  });
}
