import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readTraceFile } from '../../ts/trace/file.js';
import {
  type Analysis,
  type AnalyzeOptions,
  Analyzer,
  analyze,
  formatEvent,
  Layout,
  PerfettoTrace,
  type Slot,
  type SlotUpdate,
} from '../../ts/trace/index.js';
import { calls, type Hole, logs, recordings, replay, text } from './reference.js';
import { read } from './tools.js';

function analysisOf(log: string, options: AnalyzeOptions = {}): Analysis {
  const { events, counts, format } = read(log);
  const analyzer = new Analyzer(options);
  for (const event of events) analyzer.push(event);
  return analyzer.finish({ format, counts });
}

function holesOf({ holes }: Analysis): Hole[] {
  return holes
    .map(({ transaction, addressSpace, gpa, size, micros, reshape }) => ({
      transaction,
      as: addressSpace,
      gpa,
      size,
      micros,
      reshape,
    }))
    .sort((a, b) => a.transaction - b.transaction || a.gpa - b.gpa);
}

interface Line {
  as?: number;
  slot: number;
  gpa: number;
  size: number;
  ua?: number;
  flags?: number;
  ret?: number;
}

/** A line of QEMU's log, `at` microseconds after the start; sizes and addresses in pages. */
function line(at: number, { as = 0, slot, gpa, size, ua = gpa + 0x100, flags = 0, ret = 0 }: Line): string {
  const update: SlotUpdate = {
    kind: 'slot',
    line: 0,
    time: 1e9 + at,
    thread: 1,
    vm: 'vm',
    addressSpace: as,
    slot,
    flags,
    gpa: gpa * 4096,
    size: size * 4096,
    hostAddress: ua * 4096,
    guestMemfd: undefined,
    result: ret,
  };
  return formatEvent(update);
}

/** One line every 10 µs. */
const log = (...lines: (Line | string)[]) =>
  lines.map((content, index) => (typeof content === 'string' ? content : line(index * 10, content))).join('\n');

const create = (slot: number, gpa: number, size: number, more: Partial<Line> = {}): Line => ({
  slot,
  gpa,
  size,
  ...more,
});
const remove = (slot: number, more: Partial<Line> = {}): Line => ({ slot, gpa: 0, size: 0, ...more });

describe('every recording', () => {
  for (const name of logs) {
    it(`${name}: calls, transactions, holes and slots are those of a plain replay`, async () => {
      const reference = calls(text(name));
      const expected = replay(reference);
      const found = await analyze(readTraceFile(new URL(name, recordings).pathname));
      expect(found.updates).toBe(text(name).match(/kvm_set_user_memory|KVM_SET_USER_MEMORY_REGION/g)!.length);
      expect(found).toMatchObject({
        format: name.includes('strace') ? 'strace' : 'qemu',
        vms: 1,
        transactions: expected.transactions,
        failures: 0,
        totalHoles: expected.holes.length,
        maxSlots: expected.maxSlots,
        engine: null,
      });
      expect(holesOf(found)).toEqual(expected.holes.sort((a, b) => a.transaction - b.transaction || a.gpa - b.gpa));
      expect(found.findings.filter(({ kind }) => kind === 'contradiction')).toEqual([]);
    });
  }
});

describe('transactions', () => {
  const transactions = (...lines: (Line | string)[]) => analysisOf(log(...lines)).timeline.map(({ line }) => line);

  it('begin at the first delete after a create', () => {
    expect(transactions(create(0, 0, 9), remove(0), create(0, 0, 4), create(1, 4, 5), remove(1), remove(0))).toEqual([
      1, 2, 5,
    ]);
  });

  it('begin at a change of address space', () => {
    expect(
      transactions(create(0, 0, 9), create(0, 0, 9, { as: 1 }), create(1, 9, 9, { as: 1 }), create(1, 9, 9)),
    ).toEqual([1, 2, 4]);
  });

  it('flag changes and repeated calls are neither deletes nor creates', () => {
    expect(
      transactions(create(0, 0, 9), create(0, 0, 9, { flags: 1 }), create(0, 0, 9, { flags: 1 }), create(1, 9, 9)),
    ).toEqual([1]);
    expect(transactions(create(0, 0, 9), create(1, 9, 9), remove(1), create(0, 0, 9, { flags: 1 }), remove(0))).toEqual(
      [1, 3],
    );
  });

  it('failed calls begin none, whatever they ask for', () => {
    const failed = { ret: -22 };
    expect(
      transactions(create(0, 0, 9), remove(0, failed), create(3, 0, 1, { as: 1, ret: -17 }), create(1, 9, 9)),
    ).toEqual([1]);
    expect(transactions(remove(0, failed), create(0, 0, 9, { as: 1 }), remove(0, { as: 1 }))).toEqual([1, 3]);
  });

  it('are counted across address spaces and VMs', () => {
    const call = (fd: number, fields: string) => `ioctl(${fd}, KVM_SET_USER_MEMORY_REGION, {${fields}}) = 0`;
    const slot = (id: number, size: number) =>
      `slot=${id}, flags=0, guest_phys_addr=0, memory_size=${size}, userspace_addr=0x1000`;
    const found = analysisOf(
      [call(8, slot(0, 8192)), call(9, slot(0, 4096)), call(8, slot(0, 0)), call(8, slot(0, 4096))].join('\n'),
    );
    expect(found).toMatchObject({ vms: 2, transactions: 3, updates: 4, maxSlots: 1 });
    expect(found.holes).toMatchObject([{ transaction: 2, vm: 'fd 8', size: 4096, micros: null, reshape: true }]);
  });

  it("are where this library's log says they are", () => {
    const commit = (n: number) => `memslots_commit transaction=${n}`;
    // Outside of a window the engine creates before it deletes.
    expect(
      transactions(commit(1), create(0, 0, 9), commit(2), create(1, 9, 9), remove(0), commit(3), create(0, 20, 1)),
    ).toEqual([2, 4, 7]);
  });
});

describe('holes', () => {
  it('are the ranges deleted and created again, one for each pair of slots', () => {
    const found = analysisOf(
      log(
        create(0, 0, 10),
        create(1, 10, 10),
        remove(0),
        remove(1),
        create(0, 2, 3),
        create(2, 5, 10),
        create(3, 30, 5),
      ),
    );
    expect(holesOf(found)).toEqual([
      { transaction: 1, as: 0, gpa: 2 * 4096, size: 3 * 4096, micros: 20, reshape: true },
      { transaction: 1, as: 0, gpa: 5 * 4096, size: 5 * 4096, micros: 30, reshape: true },
      { transaction: 1, as: 0, gpa: 10 * 4096, size: 5 * 4096, micros: 20, reshape: true },
    ]);
    expect(found.bytesTornDown).toBe(20 * 4096);
    expect(found.bytesRemapped).toBe(13 * 4096);
  });

  it('are no pure reshape if the memory or its flags are others', () => {
    const base = [create(0, 0, 10), remove(0)];
    expect(holesOf(analysisOf(log(...base, create(0, 0, 10))))[0]!.reshape).toBe(true);
    expect(holesOf(analysisOf(log(...base, create(0, 0, 10, { flags: 2 }))))[0]!.reshape).toBe(false);
    expect(holesOf(analysisOf(log(...base, create(0, 0, 10, { ua: 77 }))))[0]!.reshape).toBe(false);
  });

  it('are found at a move onto its own old range', () => {
    const moved = analysisOf(log(create(0, 0, 10, { ua: 5 }), create(0, 4, 10, { ua: 5 })));
    expect(holesOf(moved)).toEqual([
      { transaction: 0, as: 0, gpa: 4 * 4096, size: 6 * 4096, micros: 0, reshape: false },
    ]);
    expect(moved.timeline[0]).toMatchObject({ creates: 1, moves: 1 });
  });

  it('have no duration in a log without times', () => {
    const bare = log(create(0, 0, 10), remove(0), create(0, 0, 5)).replace(/^.*?:/gm, '');
    expect(holesOf(analysisOf(bare))).toMatchObject([{ micros: null }]);
    expect(analysisOf(bare).findings[0]!.text).toMatch(/^line 2: 20 KiB at 0x0 unmapped while/);
  });

  it('inside an inhibit window are only a note', () => {
    const found = analysisOf(
      log(
        'memslots_commit transaction=1',
        create(0, 0, 10),
        'memslots_commit transaction=2',
        'memslots_window_begin transaction=2',
        remove(0),
        create(0, 0, 5),
        'memslots_window_end transaction=2',
      ),
    );
    expect(found.holes).toMatchObject([{ inhibited: true }]);
    expect(found.findings[0]).toMatchObject({
      severity: 'note',
      kind: 'hole',
      text: expect.stringContaining('no vCPU could see it'),
    });
    const open = analysisOf(
      log(
        create(0, 0, 10),
        'memslots_window_begin transaction=2',
        remove(0),
        'memslots_window_end transaction=2',
        create(0, 0, 5),
      ),
    );
    expect(open.holes).toMatchObject([{ inhibited: false }]);
  });

  it('are worse when MMIO exits were logged meanwhile', () => {
    const exit = 'kvm_run_exit cpu_index 1, reason 6';
    const found = analysisOf(
      log(
        create(0, 0, 100),
        remove(0),
        create(0, 0, 100),
        exit,
        create(1, 200, 1),
        remove(1),
        exit,
        exit,
        'kvm_run_exit cpu_index 1, reason 2',
        create(1, 200, 1),
      ),
    );
    expect(found.findings.map(({ text }) => text).slice(0, 2)).toEqual([
      'at 50 µs: 4 KiB at 0xc8000 unmapped for 40 µs while being re-mapped to the same memory; 2 MMIO exits were logged meanwhile',
      'at 10 µs: 400 KiB at 0x0 unmapped for 10 µs while being re-mapped to the same memory; a vCPU touching it would have seen an MMIO exit',
    ]);
  });

  it('are those of a reference that looks at every page, for random calls', () => {
    const call = fc.record({
      as: fc.constantFrom(0, 0, 0, 0, 0, 0, 0, 1),
      slot: fc.integer({ min: 0, max: 3 }),
      gpa: fc.integer({ min: 0, max: 9 }),
      size: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 8 })),
      ua: fc.integer({ min: 0, max: 3 }),
      flags: fc.constantFrom(0, 2),
      ret: fc.constantFrom(0, 0, 0, 0, 0, 0, 0, -12),
    });
    fc.assert(
      fc.property(fc.array(call, { minLength: 40, maxLength: 120 }), (attempts) => {
        const legal = refusingOverlaps(attempts.map((attempt) => ({ ...attempt, ua: attempt.gpa + attempt.ua * 100 })));
        const found = analysisOf(log(...legal));
        expect(pagesOf(found)).toEqual(pageReference(legal));
      }),
      { numRuns: 1000 },
    );
  });
});

/** What KVM would have accepted, and the failed calls. */
function refusingOverlaps(attempts: readonly Required<Line>[]): Required<Line>[] {
  const slots = new Map<string, Required<Line>>();
  return attempts.filter((call) => {
    if (call.ret !== 0) return true;
    const key = `${call.as}/${call.slot}`;
    const old = slots.get(key);
    if (call.size === 0) return slots.delete(key);
    if (old !== undefined && (old.size !== call.size || old.ua !== call.ua || old.flags !== call.flags)) return false;
    for (const [other, slot] of slots) {
      if (other !== key && slot.as === call.as && slot.gpa < call.gpa + call.size && call.gpa < slot.gpa + slot.size)
        return false;
    }
    slots.set(key, call);
    return true;
  });
}

/** One entry for each page of each hole: the transaction, the page, and whether it was a pure reshape. */
function pagesOf({ holes }: Analysis): string[] {
  return holes
    .flatMap(({ transaction, addressSpace, gpa, size, micros, reshape }) =>
      Array.from(
        { length: size / 4096 },
        (_, page) => `${transaction} ${addressSpace} ${gpa / 4096 + page} ${micros} ${reshape}`,
      ),
    )
    .sort();
}

function pageReference(lines: readonly Required<Line>[]): string[] {
  const pages: string[] = [];
  const slots = new Map<string, Required<Line>>();
  let gone = new Map<number, { at: number; translation: string }>();
  let [transaction, created, space] = [-1, false, -1];
  lines.forEach((call, at) => {
    if (transaction < 0) transaction = 0;
    if (call.ret !== 0) return;
    const key = `${call.as}/${call.slot}`;
    const old = slots.get(key);
    const translation = (of: Required<Line>) => `${of.ua - of.gpa} ${of.flags}`;
    if ((space >= 0 && call.as !== space) || (call.size === 0 && created)) {
      transaction++;
      created = false;
      gone = new Map();
    }
    space = call.as;
    if (old !== undefined && (call.size === 0 || old.gpa !== call.gpa)) {
      for (let page = old.gpa; page < old.gpa + old.size; page++) gone.set(page, { at, translation: translation(old) });
    }
    if (call.size > 0 && (old === undefined || old.gpa !== call.gpa)) {
      created = true;
      for (let page = call.gpa; page < call.gpa + call.size; page++) {
        const was = gone.get(page);
        if (was === undefined) continue;
        pages.push(`${transaction} ${call.as} ${page} ${(at - was.at) * 10} ${was.translation === translation(call)}`);
        gone.delete(page);
      }
    }
    if (call.size === 0) slots.delete(key);
    else slots.set(key, call);
  });
  return pages.sort();
}

describe('findings', () => {
  const texts = (...lines: (Line | string)[]) =>
    analysisOf(log(...lines)).findings.map(({ kind, text }) => `${kind}: ${text}`);

  it('name the slot that a failed create collided with', () => {
    const failed = texts(create(0, 0, 9), create(1, 8, 2, { ret: -17 }));
    expect(failed).toEqual([
      'failure: at 10 µs: creating slot 1 at [0x8000, 0xa000) (8 KiB) failed with EEXIST; slot 0 is at [0x0, 0x9000) (36 KiB)',
    ]);
  });

  it('report memory that moves by delete, then add, in one transaction or over two', () => {
    expect(texts(create(0, 16, 4, { ua: 99 }), remove(0), create(0, 32, 4, { ua: 99 }))).toEqual([
      'split: at 10 µs: 16 KiB of memory left 0x10000 and came back at 0x20000 10 µs later: moved by delete, then add: a VMM that commits each of the two by itself has it nowhere in between',
    ]);
    expect(
      texts(create(0, 16, 4, { ua: 99 }), remove(0), create(1, 50, 1), remove(1), create(0, 16, 4, { ua: 99 })),
    ).toEqual([
      'split: at 10 µs: 16 KiB of memory left 0x10000 and came back there 30 µs later: a change split over two transactions, which no atomic commit covers',
    ]);
  });

  it('report calls without effect, and calls that KVM would have refused', () => {
    expect(texts(create(0, 0, 9), create(0, 0, 9), create(0, 0, 9), remove(7), create(0, 0, 5))).toEqual([
      'contradiction: 2 calls succeeded that KVM would have refused (the first at line 4): lines are missing, or the log begins after the VM did',
      'unchanged: 2 calls changed nothing (the first at line 2)',
    ]);
  });

  it('warn near the limit on slots of a kernel', () => {
    const many = Array.from({ length: 500 }, (_, index) => create(index, index * 2, 1));
    expect(texts(...many)).toEqual([
      'slot-limit: 500 slots were in use at once: a kernel whose limit is 509 has 9 left',
    ]);
    expect(texts(...many.slice(0, 400))).toEqual([]);
  });

  it('tell of rollbacks, and of calls that the log does not show', () => {
    expect(texts('memslots_rollback transaction=3 ret=-12')).toEqual([
      'rollback: line 1: commit 3 failed with ENOMEM and was rolled back',
    ]);
    const hidden = 'ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffd494ad9e0) = 0';
    expect(analysisOf(hidden).findings).toMatchObject([{ kind: 'unreadable', severity: 'warning' }]);
  });

  it('compare snapshots of info mtree -f', () => {
    const view = (...ranges: string[]) => ['FlatView #0', ' AS "memory", root: system', ...ranges, ''].join('\n');
    const low = '  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM';
    const rom = '  00000000000c0000-00000000000dffff (prio 0, rom): pc.rom KVM';
    const found = analysisOf([view(low, rom), view(low, rom), view(low)].join('\n'));
    expect(found).toMatchObject({ format: 'mtree', snapshots: 3, maxSlots: 2, updates: 0, vms: 0 });
    expect(found.findings.map(({ text }) => text)).toEqual([
      'snapshot 2: memory: gone: pc.rom (rom) [0xc0000, 0xe0000) (128 KiB); new: nothing',
    ]);
  });
});

describe('lists', () => {
  it('hold the worst up to the limit, worst first, and say how many there are', () => {
    const lines: Line[] = [create(0, 0, 1)];
    const sizes = [5, 40, 3, 17, 90, 2, 33];
    for (const size of sizes) lines.push(remove(0), create(0, 0, size));
    const whole = analysisOf(log(...lines));
    const capped = analysisOf(log(...lines), { limit: 3 });
    expect(whole.totalHoles).toBe(7);
    expect(capped).toMatchObject({ totalHoles: 7, totalFindings: whole.totalFindings, transactions: 8 });
    expect(capped.holes).toEqual(whole.holes.slice(0, 3));
    expect(capped.findings).toEqual(whole.findings.slice(0, 3));
    expect(capped.timeline).toEqual(whole.timeline.slice(0, 3));
    const exposures = whole.holes.map(({ size, micros }) => size * micros!);
    expect(exposures).toEqual([...exposures].sort((a, b) => b - a));
  });
});

describe('what an engine is told', () => {
  it('leads, transaction by transaction, to the layout of the log', () => {
    for (const name of logs) {
      const slots = new Map<string, Slot>();
      const key = ({ gpa, size, hostAddress, flags }: Slot) => [gpa, size, hostAddress, flags].join();
      const estimate = { policy: 'counted', ioctls: 0, windows: 0, bytesTornDown: 0 };
      const found = analysisOf(text(name), {
        engine: {
          transaction(vm, addressSpace, deletes, creates) {
            for (const slot of deletes) expect(slots.delete(`${vm} ${addressSpace} ${key(slot)}`)).toBe(true);
            for (const slot of creates) slots.set(`${vm} ${addressSpace} ${key(slot)}`, slot);
            expect(deletes).toEqual([...deletes].sort((a, b) => a.gpa - b.gpa));
            estimate.ioctls += deletes.length + creates.length;
          },
          result: () => estimate,
        },
      });
      const final = replay(calls(text(name)))
        .layout.map(key)
        .sort();
      expect([...slots.values()].map(key).sort()).toEqual(final);
      expect(found.engine!.ioctls).toBeGreaterThan(0);
    }
  });
});

describe('the Chrome trace', () => {
  it('has a slice for every slot and transaction, and a pair of events for every hole', () => {
    for (const name of logs) {
      const drawing = new PerfettoTrace();
      const found = analysisOf(text(name), { observer: drawing, limit: 1 });
      const { traceEvents } = JSON.parse(drawing.finish()) as {
        traceEvents: { ph: string; cat?: string; dur?: number; ts: number }[];
      };
      const count = (ph: string, cat: string) =>
        traceEvents.filter((event) => event.ph === ph && event.cat === cat).length;
      expect(count('X', 'transaction')).toBe(found.transactions);
      expect([count('b', 'hole'), count('e', 'hole')]).toEqual([found.totalHoles, found.totalHoles]);
      expect(count('X', 'slot')).toBe(calls(text(name)).filter(({ size }) => size > 0).length);
      expect(traceEvents.filter(({ dur }) => dur !== undefined && dur < 0)).toEqual([]);
    }
  });
});

describe('layouts', () => {
  it('merged to their translation join what continues in both memories with the same flags', () => {
    const layout = new Layout();
    const events = read(
      log(
        create(0, 0, 2),
        create(1, 2, 2),
        create(2, 4, 2, { flags: 2 }),
        create(3, 6, 2, { ua: 999 }),
        create(4, 8, 1, { as: 1 }),
      ),
    ).events;
    for (const event of events) if (event.kind === 'slot') layout.apply(event);
    expect(layout.merged().map(({ addressSpace, gpa, size }) => [addressSpace, gpa / 4096, size / 4096])).toEqual([
      [0, 0, 4],
      [0, 4, 2],
      [0, 6, 2],
      [1, 8, 1],
    ]);
  });
});
