import { describe, expect, it } from 'vitest';
import type { HostMemory } from '../../ts/kvm/backend.js';
import type { Machine } from '../../ts/kvm/machine.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { randomFrom } from '../../ts/testing/random.js';
import { withMachine } from './backends.js';
import { DirtyLedger, type GuestKind, pageBytes, randomWriterGuest } from './dirty-guest.js';
import { named, needs, optionsOf, type Subject } from './dirty-subjects.js';

const base = 0x10000000;
const pages = 256;
const elsewhere = 0x20000000;

/** The tests of a storm of edits, for each of `subjects`. */
export function dirtyStormTests(subjects: readonly Subject[]): void {
  describe.each(named(subjects))('%s, while slots are reshaped', (_, subject) => {
    const { backend, guests: kind } = subject;
    // KVM's emulator writes first and sets the bit second, and no reader waits for it.
    const slack = backend === 'kvm' && kind === 'protected';

    it('loses no dirty page in 1,000 rounds', async (context) => {
      needs(context, subject);
      await withMachine(optionsOf(subject), async (machine) => {
        const report = await dirtyStorm(machine, { kind, rounds: 1_000, slack });
        expect(report).toMatchObject({ rounds: 1_000, lost: 0, undone: 125 });
        // Or nothing was tried.
        expect(report.reported).toBeGreaterThan(5_000);
      });
    });

    it('loses some if it is told to discard them: the control', async (context) => {
      needs(context, subject);
      await withMachine({ ...optionsOf(subject), discardDirty: true }, async (machine) => {
        const enough = ({ lost }: { lost: number }) => lost > 0;
        const report = await dirtyStorm(machine, { kind, rounds: 1_000, slack, enough });
        expect(report.lost).toBeGreaterThan(0);
      });
    });
  });
}

/** What a storm of edits is to be like. */
interface Storm {
  readonly kind: GuestKind;
  readonly rounds: number;
  /** Whether a page may be reported one take late; see DirtyLedger. */
  readonly slack: boolean;
  /** Ends the storm early. */
  readonly enough?: (ledger: DirtyLedger) => boolean;
}

/** What a storm did. */
interface StormReport {
  readonly rounds: number;
  readonly lost: number;
  readonly reported: number;
  /** Commits that failed in the middle and were undone. */
  readonly undone: number;
}

/**
 * Two guests write to random pages of logged memory while its slots are split, resized, moved, made read-only and
 * deleted, while logging is turned off and on, while commits fail and are undone, and while the VMM writes, too. Pages
 * are taken after each edit.
 */
async function dirtyStorm(machine: Machine, storm: Storm): Promise<StormReport> {
  const memory = machine.allocate(pages * pageBytes);
  const ledger = new DirtyLedger(memory, storm.slack);
  const map = new LoggedMap(machine, memory);
  const vcpus = await Promise.all(
    [1, 2].map((index) => machine.addVcpu(randomWriterGuest(machine, index, storm.kind, base, pages))),
  );
  let ended: string | undefined;
  for (const vcpu of vcpus) {
    void vcpu.stopped.then((stop) => {
      ended ??= `vCPU ${vcpu.index} stopped: ${stop?.reason} ${vcpu.error?.message}`;
    });
    vcpu.resume();
  }
  let round = 0;
  let undone = 0;
  for (; round < storm.rounds && !storm.enough?.(ledger) && ended === undefined; round++) {
    await someChanges(ledger);
    ledger.check(() => {
      if (round % 8 === 5) map.region.setLogging(false);
      else if (round % 8 === 2) undone += map.failHalfway();
      else map.edit();
      if (round % 4 === 1) map.writeFromOutside(round);
      return machine.takeDirtyPages(memory);
    });
    if (map.region.logging) continue;
    map.region.setLogging(true);
    // What was written meanwhile isn't anybody's.
    ledger.forget();
  }
  if (ended !== undefined) throw new Error(ended);
  await Promise.all(vcpus.map((vcpu) => vcpu.end()));
  // What was late may come now; nothing may come afterwards.
  for (let count = 0; count < 2; count++) ledger.check(() => machine.takeDirtyPages(memory));
  const rest = machine.takeDirtyPages(memory);
  if (rest.length > 0) throw new Error(`pages were reported again: ${rest}`);
  return { rounds: round, lost: ledger.lost, reported: ledger.reported, undone };
}

/** Lets guests write, and the owner's event loop answer what they ask; not for long if they can't write now. */
async function someChanges(ledger: DirtyLedger): Promise<void> {
  const deadline = performance.now() + 3;
  do {
    await new Promise((resolve) => setImmediate(resolve));
  } while (ledger.changed < 8 && performance.now() < deadline);
}

class LoggedMap {
  readonly region: MemoryRegion;
  readonly #machine: Machine;
  readonly #memory: HostMemory;
  readonly #hole: MemoryRegion;
  readonly #far: MemoryRegion;
  readonly #random = randomFrom(7);
  #shown = true;

  constructor(machine: Machine, memory: HostMemory) {
    this.#machine = machine;
    this.#memory = memory;
    this.region = MemoryRegion.ram(machine.map, 'ram', memory.size, { memory });
    this.region.setLogging(true);
    this.#hole = MemoryRegion.mmio(machine.map, 'hole', pageBytes);
    this.#far = MemoryRegion.ram(machine.map, 'far', pageBytes, { memory });
    machine.transaction(() => {
      machine.system.add(this.region, base);
      machine.system.add(this.#hole, base + 0x8000, { priority: 1 });
    });
  }

  #below(end: number): number {
    return Math.floor(this.#random() * end);
  }

  /** Changes the slots of the logged memory in a random way. */
  edit(): void {
    const { system } = this.#machine;
    const edits = [
      () => this.#hole.setAddress(base + this.#below(pages) * pageBytes),
      () => this.#hole.setSize((1 + this.#below(4)) * pageBytes),
      () => this.#hole.setEnabled(!this.#hole.enabled),
      () => this.region.setSize((pages / 2 + 1 + this.#below(pages / 2)) * pageBytes),
      () => this.region.setSize(pages * pageBytes),
      () => this.region.setReadonly(!this.region.readonly),
      () => this.region.setReadonly(false),
      () => this.#shown && this.region.setAddress(this.#below(4) === 0 ? elsewhere : base),
      () => {
        if (this.#shown) system.remove(this.region);
        else system.add(this.region, base);
        this.#shown = !this.#shown;
      },
    ];
    this.#machine.transaction(() => {
      for (let count = this.#below(3); count >= 0; count--) edits[this.#below(edits.length)]!();
      // Mostly there, writable and where the guests look, or they would stand still.
      if (this.#below(2) === 0) return;
      if (!this.#shown) edits.at(-1)!();
      this.region.setAddress(base);
      this.region.setReadonly(false);
    });
  }

  /** A commit that tears logged slots down and then fails: no physical address has 53 bits. How many did: 1. */
  failHalfway(): number {
    try {
      this.#machine.transaction(() => {
        this.region.setSize((pages / 2 + 1 + this.#below(pages / 2)) * pageBytes);
        this.#hole.setEnabled(!this.#hole.enabled);
        this.#machine.system.add(this.#far, 2 ** 52);
      });
    } catch (error) {
      if (/the old layout stands/.test((error as Error).message)) return 1;
      throw error;
    }
    throw new Error('a slot at 2^52 was accepted');
  }

  /** The VMM's own writes: one that is marked by itself, one through a view. */
  writeFromOutside(value: number): void {
    const word = new Uint8Array(4);
    new DataView(word.buffer).setUint32(0, value + 0x80000000, true);
    this.#memory.write(this.#below(pages) * pageBytes, word);
    const offset = this.#below(pages) * pageBytes;
    this.#memory.bytes(offset, 4).set(word);
    this.#machine.markDirty(this.#memory, offset, 4);
  }
}
