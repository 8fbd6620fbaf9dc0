import { describe, expect, test } from 'vitest';
import { errno } from '../../ts/core/core.js';
import type { Backend, GuestProgram, HostMemory, VcpuRunner } from '../../ts/kvm/backend.js';
import { linuxRunner } from '../../ts/kvm/linux-vcpu.js';
import { profileOf } from '../../ts/kvm/simulated-profiles.js';
import { simulatedRunner } from '../../ts/kvm/simulated-vcpu.js';
import type { Vcpu } from '../../ts/kvm/vcpu-owner.js';
import { placeWatchGuest, readWatchCounters, watchBlockBytes, writeWord } from '../../ts/replay/watch-guest.js';
import { randomFrom } from '../../ts/testing/random.js';
import type { Subject } from './kvm-calls.js';
import { kvmMissing } from './kvm-real.js';
import { page, type Slot, SlotsByHand, until } from './kvm-slots.js';
import { realSubject, simulatedSubject } from './kvm-subjects.js';
import { placeWriteGuest } from './kvm-write-guest.js';

// Re-created from what the kernel's own selftests check (set_memory_region_test, memslot_modification_stress_test,
// dirty_log_test), each on the simulated KVM and on the real one.

const { EINVAL, EEXIST } = errno;
const mebibyte = 2 ** 20;
const codeAddress = 0x70000000;
const dataAddress = 0x10000000;

/** Runs `body` on the simulated KVM and, where there is one, on the real one. */
function onBoth(name: string, body: (kind: Backend['kind']) => Promise<void> | void): void {
  for (const kind of ['simulated', 'kvm'] as const) {
    test(`${name}, on ${kind}`, async (context) => {
      const missing = kind === 'kvm' ? kvmMissing() : undefined;
      if (missing !== undefined) context.skip(missing);
      await body(kind);
    });
  }
}

function onBothKernels(name: string, body: (subject: Subject) => void): void {
  onBoth(name, (kind) => {
    const subject = kind === 'kvm' ? realSubject() : simulatedSubject({});
    try {
      body(subject);
    } finally {
      subject.close();
    }
  });
}

function withSlots(name: string, body: (slots: SlotsByHand, kind: Backend['kind']) => Promise<void> | void): void {
  onBoth(name, async (kind) => {
    const slots = new SlotsByHand(kind);
    try {
      await body(slots, kind);
    } finally {
      await slots.close();
    }
  });
}

/** A vCPU of index 0 that runs in this thread. */
function runnerHere({ arena, backend, inhibitor }: SlotsByHand, guest: GuestProgram): VcpuRunner {
  const line = inhibitor.allocateLine();
  const setup = backend.createVcpu(0, line, guest);
  return setup.kind === 'kvm' ? linuxRunner(setup) : simulatedRunner(arena, setup, line);
}

describe('set_memory_region', () => {
  withSlots('without a slot for its code, a guest can not run', (slots) => {
    const guest: GuestProgram = {
      start: { mode: 'protected', entry: codeAddress },
      steps: [{ kind: 'fetch', gpa: codeAddress }],
    };
    const runner = runnerHere(slots, guest);
    const outcome = (): string => {
      try {
        const { reason, detail } = runner.run();
        return `${reason} ${detail}`;
      } catch (error) {
        return (error as Error).message;
      }
    };
    // Where guests run on shadow page tables, there are none before the first slot.
    expect(['internal-error 1', 'KVM_RUN failed with ENOSPC']).toContain(outcome());
    expect(slots.set({ id: 0, gpa: 0, size: page, memory: slots.backend.allocate(page) })).toBe(0);
    expect(outcome()).toBe('internal-error 1');
  });

  onBothKernels('takes no flag it does not know, and guest_memfd in the newer call only', ({ kernel }) => {
    for (let bit = 0; bit < 32; bit++) {
      const request = { slot: 0, flags: (1 << bit) >>> 0, gpa: 0, size: page, host: 0 };
      expect([bit, kernel.setUserMemoryRegion(request)]).toEqual([bit, bit <= 1 ? 0 : -EINVAL]);
      if (bit <= 1) kernel.setUserMemoryRegion({ ...request, size: 0 });
      // Without a file, a guest_memfd's flag is known but can't be followed.
      const second = bit === 2 ? -errno.EBADF : -EINVAL;
      expect([bit, kernel.setUserMemoryRegion2({ ...request, guestMemfd: -1 })]).toEqual([bit, bit <= 1 ? 0 : second]);
      if (bit <= 1) kernel.setUserMemoryRegion2({ ...request, size: 0 });
    }
  });

  onBothKernels('takes exactly as many slots as it says', ({ kernel }) => {
    const slots = profileOf('x86').slots;
    const slot = (id: number) => ({ slot: id, flags: 0, gpa: id * 2 * mebibyte, size: 2 * mebibyte, host: 0 });
    for (let id = 0; id < slots; id++) {
      const result = kernel.setUserMemoryRegion(slot(id));
      if (result !== 0) expect([id, result]).toEqual([id, 0]);
    }
    expect(kernel.setUserMemoryRegion(slot(slots))).toBe(-EINVAL);
  });

  onBothKernels('wants a guest_memfd to be one, its own, and page by page', (subject) => {
    const { kernel } = subject;
    const guestMemfd = kernel.createGuestMemfd(4 * mebibyte);
    expect(guestMemfd).toBeGreaterThanOrEqual(0);
    const shared = { slot: 0, flags: 4, gpa: 0, size: 2 * mebibyte, host: 0, guestMemfd, guestMemfdOffset: 0 };
    for (const fd of [...subject.ordinaryFiles, subject.foreignGuestMemfd]) {
      expect(kernel.setUserMemoryRegion2({ ...shared, guestMemfd: fd })).toBe(-EINVAL);
    }
    for (let offset = 1; offset < page; offset++) {
      const result = kernel.setUserMemoryRegion2({ ...shared, guestMemfdOffset: offset });
      if (result !== -EINVAL) expect([offset, result]).toEqual([offset, -EINVAL]);
    }
    expect(kernel.setUserMemoryRegion2(shared)).toBe(0);
    subject.closeFile(guestMemfd);
  });

  onBothKernels('lets no slot with a guest_memfd overlap another', (subject) => {
    const { kernel } = subject;
    const size = 2 * mebibyte;
    const guestMemfd = kernel.createGuestMemfd(2 * size);
    const first = { slot: 0, flags: 4, gpa: 0, size, host: 0, guestMemfd, guestMemfdOffset: 0 };
    const second = { ...first, slot: 1, gpa: size, guestMemfdOffset: size };
    expect([kernel.setUserMemoryRegion2(first), kernel.setUserMemoryRegion2(second)]).toEqual([0, 0]);
    expect(kernel.setUserMemoryRegion2({ ...first, size: 0 })).toBe(0);
    // Over the front half of the second, then over its back half.
    expect(kernel.setUserMemoryRegion2({ ...first, gpa: size / 2 })).toBe(-EEXIST);
    expect(kernel.setUserMemoryRegion2({ ...first, gpa: size + size / 2 })).toBe(-EEXIST);
    expect(kernel.setUserMemoryRegion2(first)).toBe(0);
    subject.closeFile(guestMemfd);
  });

  withSlots('a slot that moves is there, or not, but never as it was before', async (slots, kind) => {
    const { guest, data, vcpu } = await watcher(slots, kind);
    const value = 0x600d;
    writeWord(data.memory, 0, value);
    await guest.settle();
    const { wrongValues } = guest.counters();
    const elsewhere = { ...data, gpa: data.gpa + 16 * mebibyte };
    for (let round = 0; round < 300; round++) {
      expect(slots.set(elsewhere)).toBe(0);
      // A guest that still used the old place would find this.
      writeWord(data.memory, 0, 0xbad);
      if (round % 100 === 0) await until(() => vcpu.counters.mmioExits > round / 100, 'MMIO at the old place');
      writeWord(data.memory, 0, value);
      expect(slots.set(data)).toBe(0);
    }
    await guest.settle();
    // Each wrong value is one that an MMIO exit gave.
    expect(guest.counters().wrongValues - wrongValues).toBe(vcpu.counters.mmioExits);
    expect(vcpu.counters.mmioExits).toBeGreaterThan(0);
    // The control: a value that changes in place is found.
    writeWord(data.memory, 0, 0xbad);
    await guest.settle();
    expect(guest.counters().wrongValues - wrongValues).toBeGreaterThan(vcpu.counters.mmioExits);
  });

  withSlots(
    'a deleted slot is MMIO, one made anew reads as its memory, and no code means no guest',
    async (slots, kind) => {
      const { guest, data, code, vcpu } = await watcher(slots, kind);
      writeWord(data.memory, 0, 0x600d);
      await guest.settle();
      expect(vcpu.counters.mmioExits).toBe(0);
      expect(slots.delete(data)).toBe(0);
      await until(() => vcpu.counters.mmioExits > 0, 'MMIO');
      expect(slots.set(data)).toBe(0);
      await guest.settle();
      const { mmioExits } = vcpu.counters;
      const { wrongValues } = guest.counters();
      await guest.settle();
      expect([vcpu.counters.mmioExits, guest.counters().wrongValues]).toEqual([mmioExits, wrongValues]);
      expect(slots.delete(code)).toBe(0);
      const stop = await vcpu.stopped;
      expect(['internal-error', 'shutdown']).toContain(stop?.reason);
    },
  );
});

describe('a vCPU that spins while its slots are replaced', () => {
  withSlots('sees nothing of atomic updates, MMIO in naive ones, and dies if its code goes', async (slots, kind) => {
    const { guest, data, code, vcpu } = await watcher(slots, kind);
    writeWord(data.memory, 0, 0x600d);
    await guest.settle();
    const before = guest.counters();
    const replace = (slot: Slot): void => {
      expect([slots.delete(slot), slots.set(slot)]).toEqual([0, 0]);
    };
    for (let i = 0; i < 300; i++) {
      slots.inhibitor.window(() => {
        replace(data);
        replace(code);
      });
      if (i % 30 === 0) await guest.settle();
    }
    await guest.settle();
    const seen = () => {
      const { mmioExits, internalErrors } = vcpu.counters;
      return { mmio: mmioExits > 0, internalError: internalErrors > 0 };
    };
    expect(seen()).toEqual({ mmio: false, internalError: false });
    expect(guest.counters().wrongValues).toBe(before.wrongValues);
    for (let i = 0; i < 20_000 && vcpu.counters.mmioExits === 0; i++) {
      replace(data);
      if (i % 20 === 0) await guest.settle();
    }
    expect(seen()).toEqual({ mmio: true, internalError: false });
    for (let i = 0; i < 20_000 && vcpu.counters.internalErrors === 0; i++) {
      replace(code);
      if (i % 20 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(seen()).toEqual({ mmio: true, internalError: true });
    expect(await vcpu.stopped).toMatchObject({ reason: 'internal-error', detail: 1 });
  });
});

describe('memslot_modification_stress', () => {
  withSlots('slots that come and go elsewhere disturb no guest', async (slots, kind) => {
    const { guest, data, vcpu } = await watcher(slots, kind);
    writeWord(data.memory, 0, 0x600d);
    await guest.settle();
    const before = { ...guest.counters(), ...vcpu.counters };
    const unrelated: Slot = { id: 9, gpa: 0x50000000, size: page, memory: slots.backend.allocate(page) };
    for (let i = 0; i < 1000; i++) {
      expect(slots.set(unrelated)).toBe(0);
      expect(slots.delete(unrelated)).toBe(0);
    }
    await guest.settle();
    expect(guest.counters().wrongValues).toBe(before.wrongValues);
    expect([vcpu.counters.mmioExits, vcpu.counters.internalErrors]).toEqual([0, 0]);
    expect(guest.counters().rounds).toBeGreaterThan(before.rounds);
    // The control: the slot in use does.
    for (let i = 0; i < 20_000 && vcpu.counters.mmioExits === 0; i++) {
      expect(slots.delete(data)).toBe(0);
      expect(slots.set(data)).toBe(0);
      if (i % 20 === 0) await guest.settle();
    }
    expect(vcpu.counters.mmioExits).toBeGreaterThan(0);
  });
});

describe('dirty_log', () => {
  const pages = 256;

  withSlots('names exactly the pages written since the last time, once the guest has stopped', (slots) => {
    const { data, code } = guestSlots(slots, 1);
    const random = randomFrom(11);
    for (let round = 1; round <= 20; round++) {
      const written = new Set(
        Array.from({ length: 1 + Math.floor(random() * 60) }, () => Math.floor(random() * pages)),
      );
      const addresses = [...written].map((index) => data.gpa + index * page + 4 * Math.floor(random() * 1024));
      const runner = runnerHere(slots, placeWriteGuest(code.memory, code.gpa, addresses, round));
      runner.clearKick();
      expect(runner.run().reason).toBe('halt');
      slots.backend.destroyVcpu(0);
      expect(harvest(slots, data)).toEqual([...written].sort((a, b) => a - b));
      for (const address of addresses) expect(readWord(data.memory, address - data.gpa)).toBe(round);
      expect(harvest(slots, data)).toEqual([]);
    }
  });

  withSlots('loses no write of a running guest', async (slots) => {
    const { data, code } = guestSlots(slots, 1);
    const addresses = Array.from({ length: pages }, (_, index) => data.gpa + index * page);
    const vcpu = await slots.run(placeWriteGuest(code.memory, code.gpa, addresses, 7, true));
    let marked = 0;
    let last: readonly number[] = [];
    const collect = (): void => {
      last = harvest(slots, data);
      marked += last.length;
      // Whatever is found here later was written after the harvest, and has to be in the next one.
      for (const index of last) writeWord(data.memory, index * page, 0);
    };
    const rounds = 300;
    for (let round = 0; round < rounds; round++) {
      collect();
      if (round % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await until(() => readWord(data.memory, 0) === 7, 'the guest writes');
    vcpu.pause();
    await until(() => vcpu.counters.entries > 0 && isOut(slots, vcpu), 'the guest pauses');
    const full = addresses.flatMap((_, index) => (readWord(data.memory, index * page) === 7 ? [index] : []));
    collect();
    expect(full.length).toBeGreaterThan(0);
    expect(last).toEqual(expect.arrayContaining(full));
    expect(marked).toBeGreaterThan(pages);
  });

  /** Pages that the log names, which the call clears. */
  function harvest(slots: SlotsByHand, slot: Slot): number[] {
    const bitmap = new Uint8Array(pages / 8);
    expect(slots.backend.getDirtyLog(0, slot.id, pages, bitmap)).toBe(0);
    return Array.from({ length: pages }, (_, index) => index).filter(
      (index) => bitmap[index >>> 3]! & (1 << (index % 8)),
    );
  }

  function isOut(slots: SlotsByHand, vcpu: Vcpu): boolean {
    return (Atomics.load(slots.arena.words, vcpu.line >>> 2) & 0xffff) === 0;
  }
});

function readWord(memory: HostMemory, offset: number): number {
  const bytes = memory.bytes(offset, 4);
  return new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
}

/** A slot with code and one with 256 pages of data, the latter with these flags. */
function guestSlots(slots: SlotsByHand, flags = 0): { data: Slot; code: Slot } {
  const { backend } = slots;
  const memory = backend.allocate(watchBlockBytes);
  const code: Slot = { id: 0, gpa: codeAddress, size: watchBlockBytes, memory };
  const data: Slot = { id: 1, gpa: dataAddress, size: mebibyte, memory: backend.allocate(mebibyte), flags };
  expect([slots.set(code), slots.set(data)]).toEqual([0, 0]);
  return { data, code };
}

/** A vCPU that reads the first word of the data slot for ever, expecting 0x600d. */
async function watcher(slots: SlotsByHand, kind: Backend['kind']) {
  const { data, code } = guestSlots(slots);
  const watched = placeWatchGuest(code.memory, 0, code.gpa, [{ gpa: data.gpa, value: 0x600d }]);
  const steps = [{ kind: 'fetch', gpa: code.gpa } as const, ...(watched.steps ?? [])];
  const vcpu = await slots.run({ ...watched, steps });
  const counters = () => readWatchCounters(kind === 'simulated', vcpu, code.memory, 0);
  /** Waits for reads that began after this call. */
  const settle = async (): Promise<void> => {
    const { rounds } = counters();
    await until(() => counters().rounds > rounds + 1, 'the guest goes on');
  };
  await until(() => counters().rounds > 0, 'the guest starts');
  return { vcpu, data, code, guest: { counters, settle } };
}
