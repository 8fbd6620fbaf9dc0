import { execFileSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { LinuxDirtyRings } from '../../ts/kvm/dirty-rings.js';
import type { LinuxBackend } from '../../ts/kvm/linux.js';
import { Machine } from '../../ts/kvm/machine.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { withMachine } from './backends.js';
import { type GuestKind, pageBytes, sweepingGuest, until } from './dirty-guest.js';
import { needs, optionsOf, type Subject } from './dirty-subjects.js';

const base = 0x10000000;
/** Four times what a ring holds. */
const pages = 16_384;
const all = Array.from({ length: pages }, (_, page) => page * pageBytes);
const subject: Subject = { name: 'KVM with rings', backend: 'kvm', dirtyLog: 'ring', guests: 'user' };

/** Logged memory at {@link base}, and a guest that is going to write to each of its pages. */
async function prepare(machine: Machine, guests: GuestKind) {
  const memory = machine.allocate(pages * pageBytes);
  const ram = MemoryRegion.ram(machine.map, 'ram', memory.size, { memory });
  ram.setLogging(true);
  machine.system.add(ram, base);
  const vcpu = await machine.addVcpu(sweepingGuest(machine, 1, guests, base, pages, 0x5a));
  const written = (page: number) => memory.bytes(page * pageBytes, 1)[0] === 0x5a;
  return { memory, ram, vcpu, written };
}

describe('dirty rings', () => {
  it('are drained whenever they are full, so no page is lost however many there are', async (context) => {
    needs(context, subject);
    let bitmapsRead = 0;
    const options = optionsOf(subject, (backend) => {
      backend.getDirtyLog = () => ++bitmapsRead;
    });
    await withMachine(options, async (machine) => {
      const { memory, ram, vcpu, written } = await prepare(machine, 'user');
      vcpu.resume();
      await until(() => written(pages - 1));
      // Nobody took any pages: only full rings made the owner do something.
      expect(vcpu.counters.exits).toBeGreaterThanOrEqual(3);
      machine.system.remove(ram);
      expect(machine.takeDirtyPages(memory)).toEqual(all);
      expect(machine.takeDirtyPages(memory)).toEqual([]);
      expect(bitmapsRead).toBe(0);
    });
  });

  it('keep what a vCPU wrote that is gone, and serve the next one', async (context) => {
    needs(context, subject);
    await withMachine(optionsOf(subject), async (machine) => {
      const memory = machine.allocate(16 * pageBytes);
      const ram = MemoryRegion.ram(machine.map, 'ram', memory.size, { memory });
      ram.setLogging(true);
      machine.system.add(ram, base);
      for (const first of [0, 5, 10]) {
        const guest = sweepingGuest(machine, first + 1, 'user', base + first * pageBytes, 3, 0x5a);
        const vcpu = await machine.addVcpu(guest);
        expect(vcpu.index).toBe(0);
        vcpu.resume();
        await until(() => memory.bytes((first + 2) * pageBytes, 1)[0] === 0x5a);
        await vcpu.end();
      }
      const taken = machine.takeDirtyPages(memory).map((offset) => offset / pageBytes);
      expect(taken).toEqual([0, 1, 2, 5, 6, 7, 10, 11, 12]);
    });
  });

  it('let a vCPU end that waits for its ring to be drained', async (context) => {
    needs(context, subject);
    const machine = await Machine.create(optionsOf(subject));
    try {
      const { vcpu } = await prepare(machine, 'user');
      vcpu.resume();
      // The owner's event loop stands still, so nobody drains the ring.
      const pause = new Int32Array(new SharedArrayBuffer(4));
      const deadline = Date.now() + 10_000;
      while (vcpu.counters.exits === 0 && Date.now() < deadline) Atomics.wait(pause, 0, 0, 1);
      expect(vcpu.counters.exits).toBe(1);
      vcpu.close();
      while (!vcpu.hasEnded && Date.now() < deadline) Atomics.wait(pause, 0, 0, 1);
      expect(vcpu.hasEnded).toBe(true);
    } finally {
      await machine.close();
    }
  });

  it('that an emulated guest overran count all logged memory as dirty, and stop at most the guest', async (context) => {
    needs(context, subject);
    let backend: LinuxBackend | undefined;
    const options = optionsOf(subject, (made) => {
      backend = made as LinuxBackend;
    });
    await withMachine(options, async (machine) => {
      const { memory, vcpu, written } = await prepare(machine, 'protected');
      vcpu.resume();
      let stopped: string | undefined;
      void vcpu.stopped.then((stop) => {
        stopped = stop?.reason;
      });
      await until(() => stopped !== undefined || written(pages - 1));
      if (!written(pages - 1)) expect(stopped).toBe('dirty-ring-overrun');
      expect(machine.takeDirtyPages(memory)).toEqual(all);
      // Where KVM runs 32-bit guests natively nothing was overrun.
      expect(machine.takeDirtyPages(memory)).toEqual(backend!.dirtyRings!.complete ? [] : all);
    });
  });

  it('are refused by the simulated KVM', async () => {
    const error = /the simulated KVM \(it was asked for\) has no dirty ring.*use 'bitmap'/;
    await expect(Machine.create({ backend: 'simulated', dirtyLog: 'ring' })).rejects.toThrow(error);
  });

  it('are refused where only the simulated KVM can be had, saying why', () => {
    // Root may open anything, so the refusal of the device has to be made up.
    const script = `
      import fs from 'node:fs';
      import { syncBuiltinESMExports } from 'node:module';
      const { openSync } = fs;
      fs.openSync = (path, ...rest) => {
        if (path === '/dev/kvm') throw Object.assign(new Error('no such file'), { code: 'ENOENT' });
        return openSync(path, ...rest);
      };
      syncBuiltinESMExports();
      const { Machine } = await import('./dist/kvm/machine.js');
      try { await Machine.create({ dirtyLog: 'ring' }); } catch (error) { console.log(error.code, error.message); }`;
    const out = execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
    expect(out).toMatch(/^UNSUPPORTED the simulated KVM \(there is no \/dev\/kvm: .*\) has no dirty ring/);
  });
});

describe('the reader of dirty rings', () => {
  /** Rings of which `counts` entries come, one ring each, and of which KVM takes `resets` back, a call each. */
  function rings(counts: number[], resets: number[]): LinuxDirtyRings {
    const made = new LinuxDirtyRings({
      map: (vcpu) => vcpu,
      unmap: () => {},
      collect: (ring, _entries, _next, out) => {
        for (let entry = 0; entry < counts[ring]!; entry++) out.set([ring, entry], 2 * entry);
        return counts[ring]!;
      },
      reset: () => resets.shift() ?? 0,
    });
    for (const ring of counts.keys()) made.add(ring);
    return made;
  }

  it('takes all entries of all rings', () => {
    const seen: [number, number][] = [];
    const reader = rings([2, 0, 3], [5]);
    expect(reader.collect((slot, page) => seen.push([slot, page]))).toBe(5);
    expect(seen).toEqual([
      [0, 0],
      [0, 1],
      [2, 0],
      [2, 1],
      [2, 2],
    ]);
    expect(reader.complete).toBe(true);
  });

  it('resets rings until all entries are taken back, as a signal can end a call early', () => {
    const resets = [40, 0, 60];
    const reader = rings([100], resets);
    reader.collect(() => {});
    expect(reader.complete).toBe(true);
    expect(resets).toEqual([]);
  });

  it.each([
    ['every entry was used', [LinuxDirtyRings.bytes / 16], [LinuxDirtyRings.bytes / 16]],
    ['KVM takes fewer entries back than were taken', [10], [9]],
  ])('notices an overrun: %s', (_, counts, resets) => {
    const reader = rings(counts, resets);
    reader.collect(() => {});
    expect(reader.complete).toBe(false);
  });

  it('says which call failed', () => {
    expect(() => rings([1], [-5]).collect(() => {})).toThrow(/KVM_RESET_DIRTY_RINGS failed with EIO/);
  });
});
