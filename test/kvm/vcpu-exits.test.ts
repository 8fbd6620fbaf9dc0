import { describe, expect, it } from 'vitest';
import { createArena } from '../../ts/core/node.js';
import { MemoryRegion } from '../../ts/index.js';
import type { Exit } from '../../ts/kvm/backend.js';
import { lineWords } from '../../ts/kvm/gate.js';
import { Inhibitor } from '../../ts/kvm/inhibitor.js';
import { currentThread, describeThread } from '../../ts/kvm/thread-state.js';
import { VcpuLoop } from '../../ts/kvm/vcpu.js';
import { SectionMap } from '../../ts/memory/section-map.js';
import { rangeOf } from '../core/core.js';
import { backends, needsKvm, withMachine } from './backends.js';

const page = 0x1000;
/** What memory at host address `host` holds in {@link exitAt}. */
const byteAt = (host: number) => (host * 7 + (host >>> 12) * 13) & 0xff;

/**
 * The loop of a vCPU whose guest reads `size` bytes at `gpa` with KVM_RUN saying that nothing is there, although
 * `sections` (first page, host page) are mapped by then: from before it entered, or only since.
 */
function exitAt(gpa: number, size: number, sections: readonly [number, number][], mapped: 'before' | 'since') {
  const arena = createArena(1 << 20);
  const inhibitor = new Inhibitor(arena);
  const line = inhibitor.allocateLine();
  inhibitor.add(0, line, { kick: () => {} });
  inhibitor.resume(0);
  const map = new SectionMap(arena, 16);
  const { bytes } = arena.layout.range;
  const adds = arena.allocate(sections.length * bytes);
  const publish = () => {
    const flags = arena.layout.constants.BACKED;
    for (const [index, [at, host]] of sections.entries())
      arena.writeRange(
        adds + index * bytes,
        rangeOf({ gpa: at * page, size: page, host: host * page, flags, region: index }),
      );
    map.publish({ deletes: adds, deleteCount: 0, adds, addCount: sections.length });
  };
  if (mapped === 'before') publish();
  const exit: Exit = { reason: 'mmio', gpa, size, write: false, data: new Uint8Array(8), detail: 0 };
  const runner = {
    clearKick() {},
    run() {
      if (mapped === 'since') publish();
      return exit;
    },
    access(host: number, data: Uint8Array) {
      for (let index = 0; index < data.length; index++) data[index] = byteAt(host + index);
    },
    close() {},
  };
  const scratch = arena.allocate(bytes);
  const send = () => {
    throw new Error('the owner was asked');
  };
  const loop = new VcpuLoop(arena, runner, { control: inhibitor.control, line, map: map.offset, scratch, send });
  expect(loop.turn()).toBe(true);
  return { data: [...exit.data.subarray(0, size)], spurious: arena.words[(line >>> 2) + lineWords.spuriousExits] };
}

describe('a read of memory that came out of KVM_RUN as MMIO', () => {
  it('is made good, and is no spurious exit if the memory has appeared since', () => {
    const { data, spurious } = exitAt(5 * page + 8, 4, [[5, 20]], 'since');
    expect(data).toEqual([0, 1, 2, 3].map((index) => byteAt(20 * page + 8 + index)));
    expect(spurious).toBe(0);
  });

  it('is made good, and is a spurious exit if the memory was there before the vCPU entered', () => {
    expect(exitAt(5 * page, 1, [[5, 20]], 'before')).toEqual({ data: [byteAt(20 * page)], spurious: 1 });
  });

  it('that reaches over the end of a section goes on in the next one', () => {
    const { data } = exitAt(
      6 * page - 2,
      4,
      [
        [5, 20],
        [6, 90],
      ],
      'since',
    );
    expect(data).toEqual([21 * page - 2, 21 * page - 1, 90 * page, 90 * page + 1].map(byteAt));
  });

  it('that reaches beyond all memory gets ones there', () => {
    const { data } = exitAt(6 * page - 2, 4, [[5, 20]], 'since');
    expect(data).toEqual([byteAt(21 * page - 2), byteAt(21 * page - 1), 0xff, 0xff]);
  });
});

describe('ports, which nobody answers,', () => {
  it('read as ones and take what is written, and the guest goes on', async (context) => {
    needsKvm(context, 'kvm');
    await withMachine({ backend: 'kvm' }, async (machine) => {
      const memory = machine.allocate(page);
      // in al, 0x42; mov [0x100], al; out 0x42, al; hlt
      memory.bytes(0, 10).set([0xe4, 0x42, 0xa2, 0x00, 0x01, 0x00, 0x00, 0xe6, 0x42, 0xf4]);
      machine.system.add(MemoryRegion.ram(machine.map, 'ram', page, { memory }), 0);
      const vcpu = await machine.addVcpu({ start: { mode: 'protected', entry: 0 } });
      vcpu.resume();
      expect(await vcpu.stopped).toMatchObject({ reason: 'halt' });
      expect(memory.bytes(0x100, 1)[0]).toBe(0xff);
      // in, out, hlt
      expect(vcpu.counters).toMatchObject({ exits: 3, mmioExits: 0 });
    });
  });
});

describe('a guest in real mode', () => {
  it('starts at the address that it is to start at', async (context) => {
    needsKvm(context, 'kvm');
    await withMachine({ backend: 'kvm' }, async (machine) => {
      const memory = machine.allocate(16 * page);
      // mov byte cs:[0x800], 0x5a; hlt
      memory.bytes(0x7c00, 7).set([0x2e, 0xc6, 0x06, 0x00, 0x08, 0x5a, 0xf4]);
      machine.system.add(MemoryRegion.ram(machine.map, 'ram', 16 * page, { memory }), 0);
      const vcpu = await machine.addVcpu({ start: { mode: 'real', entry: 0x7c00 } });
      vcpu.resume();
      expect(await vcpu.stopped).toMatchObject({ reason: 'halt' });
      // The code segment starts with the page of the entry.
      expect(memory.bytes(0x7800, 1)[0]).toBe(0x5a);
    });
  });
});

describe.each(backends)('on %s, an access that no memory and no handler answers', (backend) => {
  it('reads ones; writes are dropped, those to read-only memory too', async (context) => {
    needsKvm(context, backend);
    await withMachine({ backend }, async (machine) => {
      const memory = machine.allocate(2 * page);
      // mov eax, [0x10000]; mov [0x500], eax; mov [0x10000], eax; mov [0x20000], eax; hlt
      const code = [0xa1, 0, 0, 1, 0, 0xa3, 0, 5, 0, 0, 0xa3, 0, 0, 1, 0, 0xa3, 0, 0, 2, 0, 0xf4];
      memory.bytes(0, code.length).set(code);
      machine.transaction(() => {
        machine.system.add(MemoryRegion.ram(machine.map, 'ram', page, { memory }), 0);
        machine.system.add(MemoryRegion.mmio(machine.map, 'empty', page), 0x10000);
        machine.system.add(MemoryRegion.rom(machine.map, 'rom', page, { memory, memoryOffset: page }), 0x20000);
      });
      const vcpu = await machine.addVcpu({
        start: { mode: 'protected', entry: 0 },
        steps: [
          { kind: 'check', gpa: 0x10000, size: 4, expected: 0xffffffff },
          { kind: 'write', gpa: 0x10000, size: 4, value: 0xffffffff },
          { kind: 'write', gpa: 0x20000, size: 4, value: 0xffffffff },
          { kind: 'halt' },
        ],
      });
      vcpu.resume();
      expect(await vcpu.stopped).toMatchObject({ reason: 'halt' });
      expect(vcpu.counters).toMatchObject({ mmioExits: 3, spuriousExits: 0, guestWrongValues: 0 });
      if (backend === 'kvm') expect([...memory.bytes(0x500, 4)]).toEqual([0xff, 0xff, 0xff, 0xff]);
      expect([...memory.bytes(page, 4)]).toEqual([0, 0, 0, 0]);
    });
  });
});

describe('what is said of a thread that stays inside', () => {
  it('is its state, or that it has ended', () => {
    const own = currentThread();
    if (own > 0) expect(describeThread(own)).toBe(`thread ${own}, state R (running)`);
    expect(describeThread(2 ** 30)).toBe(`thread ${2 ** 30}, which has ended or can't be looked at`);
    expect(describeThread(0)).toBe('thread unknown');
  });
});
