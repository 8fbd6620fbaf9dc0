import type { Arena, MemoryRange } from '../core/arena.js';
import { type Core, errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import { nativeCore } from '../core/native.js';
import { createArena } from '../core/node.js';
import { Planner } from '../kvm/planner.js';
import { randomFrom } from './random.js';

const pageSize = 4096;
const gibibyte = 2 ** 30;
const slots = 64;

/** What comparing the two builds of the core came to. */
export interface SelfTest {
  /** Transactions that both builds planned and applied. */
  readonly transactions: number;
  /** Calls that both builds answered. */
  readonly calls: number;
  /** The first difference in words; undefined if there was none. */
  readonly difference: string | undefined;
}

/**
 * Puts the native and the WASM build of the core through the same random transactions and look-ups, each in an arena of
 * its own, and compares all they answer. The sequence is the same every time. `native` makes the core that stands for
 * the native build. Throws `UNSUPPORTED` where the native library can't be loaded.
 */
export function compareBuilds(transactions = 300, native: (arena: Arena) => Core = nativeCore): SelfTest {
  const arenas = [createArena(1 << 22), createArena(1 << 22)] as const;
  const [first, second] = [new Subject(arenas[0], native(arenas[0])), new Subject(arenas[1], arenas[1].wasm)];
  for (let done = 0; done < transactions; done++) {
    const [ours, theirs] = [first.step(done), second.step(done)];
    const index = ours.findIndex((line, at) => line !== theirs[at]);
    if (index >= 0) {
      const difference = `transaction ${done}: native says ${ours[index]}, WASM says ${theirs[index]}`;
      return { transactions: done, calls: first.calls, difference };
    }
  }
  return { transactions, calls: first.calls, difference: undefined };
}

/** One build at work on a table of slots, and on a plain table beside it. */
class Subject {
  calls = 0;
  readonly #arena: Arena;
  readonly #core: Core;
  readonly #planner: Planner;
  readonly #table: number;
  readonly #range: number;

  constructor(arena: Arena, core: Core) {
    this.#arena = arena;
    this.#core = core;
    this.#planner = new Planner(arena, core, { slots, sections: 64, splitPoints: [gibibyte] });
    this.#table = arena.allocate(core.table_size(slots));
    core.table_init(this.#table, slots);
    this.#range = arena.allocate(arena.layout.range.bytes);
  }

  /** Plans and applies a transaction that `seed` determines; what the core answered, a line each. */
  step(seed: number): string[] {
    const next = randomFrom(seed);
    const random = (below: number) => Math.floor(next() * below);
    return [...this.#plan(random), ...this.#edit(random)];
  }

  #plan(random: (below: number) => number): string[] {
    const planner = this.#planner;
    planner.begin();
    // Slots stand for the sections that made them; what replaces some of them is anywhere in the first 2 GiB.
    for (const slot of planner.list(0)) if (random(4) === 0) planner.delete(slot);
    for (let gpa = random(64) * pageSize; gpa < 2 * gibibyte && random(4) > 0; ) {
      const size = (1 + random(65_536)) * pageSize;
      planner.add(this.#section(gpa, size, random));
      gpa += size + random(16_384) * pageSize;
    }
    const lines: string[] = [];
    try {
      const plan = planner.plan();
      lines.push(JSON.stringify(plan));
      for (let index = 0; index < plan.operations; index++) lines.push(JSON.stringify(planner.operation(index)));
      planner.applied(planner.operations, plan.operations);
    } catch (error) {
      if (!(error instanceof MemorySlotsError)) throw error;
      lines.push(error.message);
    }
    lines.push(JSON.stringify(planner.list(0)));
    this.calls += 3;
    return lines;
  }

  #section(gpa: number, size: number, random: (below: number) => number): MemoryRange {
    const { BACKED, READONLY, LOG_DIRTY } = this.#arena.layout.constants;
    const flags = [BACKED, BACKED | READONLY, BACKED | LOG_DIRTY, 0][random(4)]!;
    const rest = { offset: 0, id: 0, region: 1 + random(8), since: 0, addressSpace: 0, guestMemfd: -1 };
    return { gpa, size, host: flags === 0 ? 0 : 2 ** 40 + gpa, flags, ...rest };
  }

  #edit(random: (below: number) => number): string[] {
    const gpa = random(512) * pageSize;
    const range = { ...this.#section(gpa, (1 + random(16)) * pageSize, random), id: 0xffffffff };
    this.#arena.writeRange(this.#range, range);
    const answers = [
      this.#core.overlap(this.#table, this.#range),
      random(3) === 0 ? this.#core.remove(this.#table, random(slots)) : this.#core.insert(this.#table, this.#range),
      this.#core.find(this.#table, random(512) * pageSize),
      this.#core.find_at_or_above(this.#table, random(512) * pageSize),
      this.#core.free_id(this.#table),
    ];
    this.calls += answers.length;
    return answers.map((answer) => (answer < 0 ? errnoName(answer) : `${answer}`));
  }
}
