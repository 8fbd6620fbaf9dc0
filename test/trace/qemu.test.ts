import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readTraceFile } from '../../ts/trace/file.js';
import { Grouper, groupTransactions, type SlotUpdate, type TraceEvent } from '../../ts/trace/index.js';
import { calls, logs, recordings, replay, text } from './reference.js';
import { read } from './tools.js';

function only(log: string): SlotUpdate {
  const { events } = read(log);
  expect(events).toHaveLength(1);
  expect(events[0]!.kind).toBe('slot');
  return events[0] as SlotUpdate;
}

const call = 'kvm_set_user_memory Slot#3 flags=0x2 gpa=0xc0000 size=0x20000 ua=0x7f1e0c200000 ret=0';

describe('every recorded log of QEMU', () => {
  for (const name of logs.filter((file) => !file.includes('strace'))) {
    it(`${name}: the calls are those that a regular expression finds`, async () => {
      const expected = calls(text(name));
      const events: TraceEvent[] = [];
      for await (const event of readTraceFile(new URL(name, recordings).pathname)) events.push(event);
      const found = events.filter((event) => event.kind === 'slot');
      expect(found.length).toBe(text(name).match(/kvm_set_user_memory/g)!.length);
      expect(
        found.map((event) => ({
          line: event.line,
          micros: event.time ?? null,
          as: event.addressSpace,
          slot: event.slot,
          flags: event.flags,
          gpa: event.gpa,
          size: event.size,
          ua: event.hostAddress,
          ret: event.result,
        })),
      ).toEqual(expected);
    });

    it(`${name}: transactions and the layout at the end are those of a plain replay`, async () => {
      const expected = replay(calls(text(name)));
      const grouper = new Grouper();
      let transactions = 0;
      let steps = 0;
      for await (const transaction of groupTransactions(read(text(name)).events, grouper)) {
        expect(transaction.index).toBe(transactions++);
        steps += transaction.steps.length;
      }
      expect(transactions).toBe(expected.transactions);
      expect(steps).toBe(calls(text(name)).length);
      expect(grouper.layouts.get('vm')!.slots()).toEqual(expected.layout);
    });
  }

  it('reads the same in pieces of any size', () => {
    const log = text('boot-pc-qemu10.0.log');
    const whole = read(log);
    for (const piece of [1, 7, 64, 1000]) expect(read(log, {}, piece)).toEqual(whole);
  });

  it('counts lines that are none of its business', () => {
    const log = text('boot-pc-qemu10.0.log');
    expect(read(log).counts).toEqual({ lines: 43, foreign: 3, malformed: 0, tooLong: 0, unreadable: 0 });
  });
});

describe('the forms of a slot call', () => {
  const base = {
    addressSpace: 0,
    slot: 3,
    flags: 2,
    gpa: 0xc0000,
    size: 0x20000,
    hostAddress: 0x7f1e0c200000,
    result: 0,
  };

  it('2.12 to 9.0: the address space is in the high half of the slot', () => {
    expect(only(`${call}\n`)).toMatchObject({ ...base, time: undefined, thread: undefined });
    expect(only(`${call.replace('#3', '#65539')}\n`)).toMatchObject({ ...base, addressSpace: 1 });
  });

  it('9.1 on, with and without guest_memfd', () => {
    const newer = call.replace('Slot#3', 'AddrSpace#1 Slot#3');
    expect(only(`${newer}\n`)).toMatchObject({ ...base, addressSpace: 1, guestMemfd: undefined });
    const nonsense = newer.replace(' ret', ' guest_memfd=-1 guest_memfd_offset=0xfffffffffffff123 ret');
    expect(only(`${nonsense}\n`)).toMatchObject({ ...base, addressSpace: 1, guestMemfd: undefined });
    const real = newer.replace(' ret', ' guest_memfd=11 guest_memfd_offset=0x200000 ret');
    expect(only(`${real}\n`)).toMatchObject({ ...base, guestMemfd: { fd: 11, offset: 0x200000 }, addressSpace: 1 });
  });

  it('confidential-computing forks append fields after the result', () => {
    expect(only(`${call} restricted_fd=-1 restricted_offset=0x0\n`)).toMatchObject(base);
  });

  it('a failed call has a negative errno', () => {
    expect(only(`${call.replace('ret=0', 'ret=-17')}\n`)).toMatchObject({ ...base, result: -17 });
  });

  it('the last line may lack its newline, and lines may end with CR LF', () => {
    expect(only(call)).toMatchObject(base);
    expect(only(`${call}\r\n`)).toMatchObject(base);
  });

  it.each([
    ['16380@1795472615.711844:', 1795472615711844, 16380],
    ['2025-07-21T18:43:28.089797Z ', Date.UTC(2025, 6, 21, 18, 43, 28) * 1000 + 89797, undefined],
    ['2025-07-21T18:43:28Z ', Date.UTC(2025, 6, 21, 18, 43, 28) * 1000, undefined],
    ['2025-07-21T18:61:28.000001Z ', undefined, undefined],
    ['2024-02-29T23:59:59.000001Z ', Date.UTC(2024, 1, 29, 23, 59, 59) * 1000 + 1, undefined],
    ['Nov 24 02:00:01 host qemu[12]: ', undefined, undefined],
    ['12: ', undefined, undefined],
    ['\ufeff', undefined, undefined],
  ])('the prefix %j gives the time %s and the thread %s', (prefix, time, thread) => {
    expect(only(`${prefix}${call}\n`)).toMatchObject({ ...base, time, thread });
  });

  it('the plain form is read as the general one is', () => {
    const number = (bits: number) => fc.bigInt(0n, 2n ** BigInt(bits)).map((value) => value & ~0xfffn);
    const prefixes = [
      '',
      '12@1795472615.711844:',
      '7@1795472615.711845:',
      '2025-07-21T18:43:28.089797Z ',
      '12@1795472616.000000:',
    ];
    const one = fc.record({
      prefix: fc.constantFrom(...prefixes),
      space: fc.option(fc.integer({ min: 0, max: 12 })),
      slot: fc.integer({ min: 0, max: 0xffff }),
      flags: fc.integer({ min: 0, max: 7 }),
      gpa: number(52),
      size: number(47),
      ua: number(57),
      memfd: fc.constantFrom(
        '',
        ' guest_memfd=-1 guest_memfd_offset=0xfffffffffffff123',
        ' guest_memfd=3 guest_memfd_offset=0x1000',
      ),
      result: fc.constantFrom(0, 0, 0, -17),
    });
    fc.assert(
      fc.property(fc.array(one, { minLength: 1, maxLength: 10 }), (parts) => {
        const lines = parts.map(({ prefix, space, slot, flags, gpa, size, ua, memfd, result }) => {
          const id = `${space === null ? '' : ` AddrSpace#${space}`} Slot#${slot}`;
          const memory = `flags=0x${flags} gpa=0x${gpa.toString(16)} size=0x${size.toString(16)} ua=0x${ua.toString(16)}`;
          return `${prefix}kvm_set_user_memory${id} ${memory}${memfd} ret=${result}`;
        });
        const plain = read(lines.join('\n')).events;
        expect(plain).toEqual(read(lines.map((line) => `${line} restricted_fd=-1`).join('\n')).events);
        expect(plain).toMatchObject(
          parts.map(({ space, slot, flags, gpa, size, ua, result }) => {
            const numbers = { gpa: Number(gpa), size: Number(size), hostAddress: Number(ua) };
            return { addressSpace: space ?? 0, slot, flags, ...numbers, result };
          }),
        );
      }),
    );
  });

  it('numbers of more than 53 bits are taken only where a JS number holds them exactly', () => {
    expect(only(`${call.replace('0x7f1e0c200000', '0x1fffffffff9f000')}\n`).hostAddress).toBe(0x1fffffffff9f000);
    expect(only(`${call.replace('0x7f1e0c200000', '0xfffffffffffff000')}\n`).hostAddress).toBe(2 ** 64 - 4096);
    expect(() => read(`x\n${call.replace('0x7f1e0c200000', '0x1fffffffffffff1')}\n`)).toThrow(
      /line 2 can't be read: 'ua=0x' has a number too large to be held exactly/,
    );
    expect(() => read(`${call.replace('0x20000', '0x10000000000000000')}\n`)).toThrow(
      /line 1 .* 'size=0x' has a number/,
    );
  });
});

describe('the events beside slot calls', () => {
  it('are read with their numbers', () => {
    const log = [
      '1@2.000003:kvm_run_exit cpu_index 1, reason 6',
      'kvm_slots_grow 16 -> 32',
      'kvm_clear_dirty_log slot#65537 start 0x40 size 0x80',
      'memslots_commit transaction=4',
      'memslots_window_begin transaction=4',
      'memslots_rollback transaction=4 ret=-12',
      'memslots_window_end transaction=4',
    ].join('\n');
    expect(read(log).events).toMatchObject([
      { kind: 'run-exit', line: 1, time: 2000003, thread: 1, vcpu: 1, reason: 6 },
      { kind: 'slots-grow', line: 2, from: 16, to: 32 },
      { kind: 'clear-dirty-log', line: 3, slot: 65537, start: 0x40, size: 0x80 },
      { kind: 'commit', line: 4, transaction: 4 },
      { kind: 'window-begin', line: 5, transaction: 4 },
      { kind: 'rollback', line: 6, transaction: 4, result: -12 },
      { kind: 'window-end', line: 7, transaction: 4 },
    ]);
  });
});

describe('messages that speak of an event', () => {
  it('are foreign', () => {
    const log = [
      'qemu: warning: trace event kvm_set_user_memory does not exist',
      'qemu: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=0: Invalid argument',
      'kvm_set_user_memory_extra 1',
    ].join('\n');
    expect(read(log)).toMatchObject({ events: [], format: undefined, counts: { foreign: 3 } });
  });
});

describe('a line that is cut', () => {
  it('names itself, or is skipped and counted when lenient', () => {
    for (let length = 'kvm_set_user_memory '.length; length < call.length; length++) {
      const log = `warning\n${call.slice(0, length)}`;
      expect(() => read(log), log).toThrow(/line 2 can't be read: .*the log ends in the middle of this line/);
      expect(read(log, { lenient: true }).counts).toMatchObject({ lines: 2, foreign: 1, malformed: 1 });
    }
  });

  it('never borrows from the line after it', () => {
    for (let length = 'kvm_set_user_memory '.length; length < call.length; length++) {
      const { events, counts } = read(`${call.slice(0, length)}\n${call}\n${call}\n`, { lenient: true });
      expect(events.map(({ line }) => line)).toEqual([2, 3]);
      expect(counts.malformed).toBe(1);
    }
  });

  it('is refused when another line was written into it', () => {
    expect(() => read(`${call}16380@1795472615.711844:${call}\n`)).toThrow(/line 1/);
  });
});

describe('lines above 1 MiB', () => {
  it('are skipped and counted, whatever the size of the pieces they come in', () => {
    const log = `${call}\n${'x'.repeat(3 << 20)}\n${call}\n${call} a=${'y'.repeat(1 << 20)}\n${call}\n${'z'.repeat(2 << 20)}`;
    for (const piece of [4099, 1 << 16, 1 << 24]) {
      const { events, counts } = read(log, {}, piece);
      expect(events.map(({ line }) => line)).toEqual([1, 3, 5]);
      expect(counts).toEqual({ lines: 6, foreign: 0, malformed: 0, tooLong: 3, unreadable: 0 });
    }
  });
});
