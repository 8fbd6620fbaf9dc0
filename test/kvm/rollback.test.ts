import { describe, expect, it } from 'vitest';
import type { Arena } from '../../ts/core/arena.js';
import { errno, errnoName } from '../../ts/core/core.js';
import { createArena } from '../../ts/core/node.js';
import type { Backend } from '../../ts/kvm/backend.js';
import { DirtyLog } from '../../ts/kvm/dirty-log.js';
import { Inhibitor } from '../../ts/kvm/inhibitor.js';
import { LinuxBackend } from '../../ts/kvm/linux.js';
import type { Machine } from '../../ts/kvm/machine.js';
import { Planner } from '../../ts/kvm/planner.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import { SlotIoctlError, SlotsListener } from '../../ts/kvm/slots-listener.js';
import { AddressSpace, MemoryMap } from '../../ts/memory/address-space.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { SectionMap } from '../../ts/memory/section-map.js';
import { placeWatchGuest, readWatchCounters, watchBlockBytes, writeWord } from '../../ts/replay/watch-guest.js';
import { backends, needsKvm, withMachine } from './backends.js';
import { FaultyBackend } from './faulty-backend.js';
import { kernelDifferences } from './kernel-slots.js';

const page = 0x1000;
const ramAddress = 0x10000000;
const codeAddress = 0x70000000;
const failures = [errno.ENOMEM, errno.EEXIST, errno.EINVAL];
/** On each backend; a real call takes 15 µs, and each failure takes some. */
const wantedFaults = { kvm: 3_000, simulated: 10_000 };

function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** A machine whose calls can be made to fail, and what KVM itself says about its slots. */
async function withFaults<Result>(
  kind: 'kvm' | 'simulated',
  body: (machine: Machine, faulty: FaultyBackend, arena: Arena) => Promise<Result>,
): Promise<Result> {
  let faulty: FaultyBackend | undefined;
  let arenaOfMachine: Arena | undefined;
  const backend = (arena: Arena): Backend => {
    const inner =
      kind === 'kvm'
        ? new LinuxBackend(arena)
        : new SimulatedBackend(arena, { callMicroseconds: 0, profile: 'x86-smm' });
    arenaOfMachine = arena;
    faulty = new FaultyBackend(arena, inner);
    return faulty;
  };
  return withMachine({ backend }, (machine) => body(machine, faulty!, arenaOfMachine!));
}

/** Memory with things laid over it that random edits switch, move and resize; the first 16 pages are never touched. */
function buildMap(machine: Machine) {
  const { map, system } = machine;
  const memory = machine.allocate(128 * page);
  const other = machine.allocate(64 * page);
  const ram = MemoryRegion.ram(map, 'ram', 96 * page, { memory });
  const overlays = [
    MemoryRegion.mmio(map, 'hole', 4 * page),
    MemoryRegion.ram(map, 'shadow', 8 * page, { memory: other }),
    MemoryRegion.alias(map, 'read-only', ram, 40 * page, 6 * page, { readonly: true }),
    MemoryRegion.rom(map, 'rom', 5 * page, { memory: other, memoryOffset: 32 * page }),
  ];
  map.transaction(() => {
    system.add(ram, ramAddress);
    for (const [index, overlay] of overlays.entries()) {
      overlay.setEnabled(false);
      system.add(overlay, ramAddress + (24 + 12 * index) * page, { priority: index + 1 });
    }
  });
  const edit = (below: (n: number) => number): (() => void) => {
    const edits = Array.from({ length: 1 + below(3) }, () => {
      const overlay = overlays[below(overlays.length)]!;
      const at = ramAddress + (16 + below(70)) * page;
      const pages = (1 + below(12)) * page;
      return [
        () => overlay.setEnabled(!overlay.enabled),
        () => overlay.setAddress(at),
        () => ram.setSize((80 + pages / page) * page),
        () => ram.setLogging(!ram.logging),
        () => overlay.setEnabled(true),
      ][below(5)]!;
    });
    return () => {
      for (const one of edits) one();
    };
  };
  return { memory, ram, overlays, edit };
}

describe('a commit whose sections the look-up map has no room for', () => {
  it('is undone like one of which a call fails', () => {
    const arena = createArena(32 << 20);
    const backend = new SimulatedBackend(arena, { callMicroseconds: 0, slots: 64, dirtyLogBytes: 0 });
    const planner = new Planner(arena, arena.wasm, { slots: 64 });
    const parts = [new Inhibitor(arena), planner, new SectionMap(arena, 2), new DirtyLog(backend, planner)] as const;
    const map = new MemoryMap();
    const system = MemoryRegion.container(map, 'system', 2n ** 64n);
    map.addListener(new SlotsListener(arena, backend, ...parts), [new AddressSpace(map, 'memory', system)]);
    const memory = backend.allocate(8 * page);
    const ram = (at: number) => MemoryRegion.ram(map, `at ${at}`, page, { memory, memoryOffset: at });
    system.add(ram(0), 0);
    const before = backend.kernel.layout(0);
    const edit = () =>
      map.transaction(() => {
        for (const at of [2 * page, 4 * page]) system.add(ram(at), at);
      });
    expect(edit).toThrow(/the map of 2 sections can't take this commit: ENOSPC/);
    expect(backend.kernel.layout(0)).toEqual(before);
    expect(planner.count()).toBe(1);
    system.add(ram(2 * page), 2 * page);
    expect(backend.kernel.layout(0)).toHaveLength(2);
  });
});

describe.each(backends)('a commit of which a call fails, on %s', (kind) => {
  it('leaves the old layout in KVM, in the table and in the tree, whichever call it is; guests run on, and the next commit works', async (context) => {
    needsKvm(context, kind);
    await withFaults(kind, async (machine, faulty, arena) => {
      const { memory, edit } = buildMap(machine);
      const code = machine.allocate(watchBlockBytes);
      machine.system.add(MemoryRegion.ram(machine.map, 'code', watchBlockBytes, { memory: code }), codeAddress);
      const watched = [0, 5, 15].map((index) => ({ gpa: ramAddress + index * page, value: 0x77000000 + index }));
      for (const { gpa, value } of watched) writeWord(memory, gpa - ramAddress, value);
      const vcpu = await machine.addVcpu(placeWatchGuest(code, 0, codeAddress, watched));
      vcpu.resume();
      const below = random(kind === 'kvm' ? 11 : 7);
      let injected = 0;
      let mixed = 0;
      for (let round = 0; injected < wantedFaults[kind]; round++) {
        const change = edit(below);
        const { operations } = machine.plan(change);
        const before = JSON.stringify(machine.slots());
        const view = machine.memory.view;
        for (let index = 0; index < operations; index++) {
          const number = failures[(round + index) % failures.length]!;
          faulty.failAfter({ after: index, errno: number });
          let error: unknown;
          try {
            machine.transaction(change);
          } catch (caught) {
            error = caught;
          }
          expect(error).toBeInstanceOf(SlotIoctlError);
          const failure = error as SlotIoctlError;
          expect([failure.errno, failure.undone]).toEqual([-number, true]);
          expect(failure.message).toContain(errnoName(number));
          expect(failure.message).toMatch(
            /(creating|deleting|changing the flags of) slot \d+ at \[0x.* the old layout stands$/,
          );
          injected++;
          if (JSON.stringify(machine.slots()) !== before || machine.memory.view !== view) mixed++;
        }
        expect(kernelDifferences(machine, faulty.inner, arena)).toEqual([]);
        machine.transaction(change);
        if (round % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
      expect(mixed).toBe(0);
      const { rounds } = readWatchCounters(kind === 'simulated', vcpu, code, 0);
      await expect
        .poll(() => readWatchCounters(kind === 'simulated', vcpu, code, 0).rounds, { timeout: 20_000 })
        .toBeGreaterThan(rounds);
      expect(readWatchCounters(kind === 'simulated', vcpu, code, 0).wrongValues).toBe(0);
      expect(vcpu.counters.spuriousExits).toBe(0);
    });
  });

  it('says so when undoing fails too, and the table then says exactly what KVM has', async (context) => {
    needsKvm(context, kind);
    await withFaults(kind, async (machine, faulty, arena) => {
      const { overlays } = buildMap(machine);
      const change = () => {
        overlays[0]!.setEnabled(true);
        overlays[1]!.setEnabled(true);
      };
      const { operations } = machine.plan(change);
      expect(operations).toBeGreaterThan(3);
      // The last call fails, and so does the second call of the undoing.
      faulty.failAfter({ after: operations - 1, errno: errno.ENOMEM }, { after: 1, errno: errno.EINVAL });
      expect(() => machine.transaction(change)).toThrow(
        /could not be undone .*EINVAL.*the slot table says what KVM has now/,
      );
      expect(faulty.armed).toBe(false);
      expect(kernelDifferences(machine, faulty.inner, arena)).toEqual([]);
      expect(machine.slots().length).toBe(operations - 3);
    });
  });

  it('would be noticed if KVM had other slots than the table says (the control)', async (context) => {
    needsKvm(context, kind);
    const lies = [{}, { gpa: 0x40000000 }, { size: 4 * page }, { size: 9 * page }, { id: 9 }, { flags: 2 }];
    for (const lie of lies) {
      await withFaults(kind, async (machine, { inner }, arena) => {
        const memory = machine.allocate(16 * page);
        machine.system.add(MemoryRegion.ram(machine.map, 'ram', 8 * page, { memory }), ramAddress);
        const slots = (space?: number) => machine.slots(space).map((slot) => ({ ...slot, ...lie }));
        const differences = kernelDifferences({ slots, allocate: (size) => machine.allocate(size) }, inner, arena);
        expect(differences.length > 0, JSON.stringify(lie)).toBe(lie !== lies[0]);
      });
    }
  });

  it('names both ranges when a slot that it knows is in the way, and hints at the kernel when it knows none', async (context) => {
    needsKvm(context, kind);
    await withFaults(kind, async (machine, faulty, arena) => {
      const memory = machine.allocate(8 * page);
      // A slot that somebody else made: the machine's own table has no idea of it.
      const { constants, operation } = arena.layout;
      const foreign = arena.allocate(operation.bytes);
      const base = {
        gpa: 0x5000,
        size: page,
        host: memory.hostAddress,
        id: 77,
        offset: 0,
        flags: 0,
        region: 0,
        since: 0,
        addressSpace: 0,
        guestMemfd: -1,
      };
      arena.writeRange(foreign + operation.slot, base);
      arena.setU32(foreign + operation.kind, constants.CREATE);
      expect(faulty.inner.apply(foreign, 1)).toBe(1);
      const ram = MemoryRegion.ram(machine.map, 'ram', 4 * page, { memory });
      expect(() => machine.system.add(ram, 0x3000)).toThrow(
        /creating slot 0 at \[0x3000, 0x7000\) \(16 KiB\) failed with EEXIST: a slot that isn't this machine's is in the way/,
      );
      expect(machine.slotsInUse).toBe(0);
      machine.system.add(ram, 0x10000);
      const more = MemoryRegion.ram(machine.map, 'more', page, { memory, memoryOffset: 4 * page });
      faulty.failAfter({ after: 0, errno: errno.EEXIST });
      expect(() => machine.system.add(more, 0x10000 + 8 * page)).toThrow(/EEXIST/);
    });
  });
});
