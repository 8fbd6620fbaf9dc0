import { describe, expect, it } from 'vitest';
import { Grouper } from '../../ts/trace/index.js';
import { calls, replay, text } from './reference.js';
import { read, slotCalls } from './tools.js';

const set = (fd: string, fields: string, end = ' = 0') => `ioctl(${fd}, KVM_SET_USER_MEMORY_REGION, {${fields}})${end}`;
const fields =
  'slot=65538, flags=KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY, guest_phys_addr=0xc0000, memory_size=131072, userspace_addr=0x7f059da00000';
const small = (slot: number) =>
  `slot=${slot}, flags=0, guest_phys_addr=0x${slot}000, memory_size=4096, userspace_addr=0x7f0000000000`;
const expected = { addressSpace: 1, slot: 2, flags: 3, gpa: 0xc0000, size: 131072, hostAddress: 0x7f059da00000 };

describe('the recorded strace log', () => {
  const log = text('boot-pc.strace.log');

  it('gives the calls and the layout that a regular expression and a plain replay give', () => {
    const reference = calls(log);
    expect(reference.length).toBe(log.match(/KVM_SET_USER_MEMORY_REGION/g)!.length);
    const grouper = new Grouper();
    const found = slotCalls(log);
    for (const event of found) grouper.push(event);
    expect(found.map(({ line, time }) => ({ line, micros: time }))).toEqual(
      reference.map(({ line, micros }) => ({ line, micros })),
    );
    expect([...grouper.layouts.keys()]).toEqual(['fd 8']);
    expect(grouper.layouts.get('fd 8')!.slots()).toEqual(replay(reference).layout);
    expect(grouper.transactions).toBe(replay(reference).transactions);
  });
});

describe('the prefixes of strace', () => {
  it.each([
    ['', undefined, undefined],
    ['16311 ', undefined, 16311],
    ['[pid 16311] ', undefined, 16311],
    ['22:23:26 ', (22 * 3600 + 23 * 60 + 26) * 1e6, undefined],
    ['16311 22:23:26.535311 ', (22 * 3600 + 23 * 60 + 26) * 1e6 + 535311, 16311],
    ['[pid   311] 22:23:26.535311 ', (22 * 3600 + 23 * 60 + 26) * 1e6 + 535311, 311],
    ['1795472579.443605 ', 1795472579443605, undefined],
    ['16311 1795472579.443605 ', 1795472579443605, 16311],
    ['16311 1795472579.443605123 ', 1795472579443605, 16311],
    ['1795472579 ', 1795472579000000, undefined],
    ['16311 1795472579 ', 1795472579000000, 16311],
    ['     0.000129 ', 129, undefined],
    ['16311      1.000129 ', 1000129, 16311],
    ['16311 03:00:46.042420 (+     0.000129) ', (3 * 3600 + 46) * 1e6 + 42420, 16311],
  ])('%j: time %s, thread %s', (prefix, time, thread) => {
    const [event] = slotCalls(`${prefix}${set('8', fields)}\n`);
    expect(event).toMatchObject({ ...expected, vm: 'fd 8', time, thread, result: 0 });
  });

  it('relative times add up over all lines, foreign ones too', () => {
    const log = `     0.000000 openat(AT_FDCWD, "/dev/kvm", O_RDWR) = 3\n     0.000100 ${set('8', fields)}\n     0.000250 read(3, "", 1) = 0\n     0.000007 ${set('8', fields)}\n`;
    expect(slotCalls(log).map(({ time }) => time)).toEqual([100, 357]);
  });

  it('times of day go on past midnight', () => {
    const log = `23:59:59.999999 ${set('8', fields)}\n00:00:00.000001 ${set('8', fields)}\n`;
    const [before, after] = slotCalls(log);
    expect(after!.time! - before!.time!).toBe(2);
  });
});

describe('the decorations of strace', () => {
  it.each([
    set('13<anon_inode:kvm-vm>', fields),
    set('13<anon_inode:kvm-vm, odd>', fields, ' = 0 <0.000012>'),
    set(
      '13',
      fields.replace('KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY', '0x3 /* KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY */'),
    ),
    set('13', fields).replace('KVM_SET_USER_MEMORY_REGION', '0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */'),
    set('13', `${fields}, guest_memfd_offset=0, guest_memfd=-1`).replace('REGION', 'REGION2'),
    set('13', fields, '          = 0'),
  ])('%s', (line) => {
    expect(slotCalls(`${line}\n`)).toMatchObject([{ ...expected, vm: 'fd 13', result: 0, guestMemfd: undefined }]);
  });

  it('failed calls have the errno that strace names', () => {
    const log = `${set('8', fields, ' = -1 EEXIST (File exists)')}\n${set('8', fields, ' = -1 EINVAL (Invalid argument) <0.000009>')}\n`;
    expect(slotCalls(log).map(({ result }) => result)).toEqual([-17, -22]);
    expect(() => read(`${set('8', fields, ' = -1 EWHATEVER (x)')}\n`)).toThrow(/line 1 .*EWHATEVER/);
  });

  it('calls whose arguments or results are not shown are counted as unreadable', () => {
    const log = [
      set('8', fields),
      'ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffd494ad9e0) = 0',
      'ioctl(8, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffd494ad9e0) = 0',
      'ioctl(8, KVM_SET_USER_MEMORY_REGION, NULL) = -1 EFAULT (Bad address)',
      set('8', fields, ' = ?'),
      `17 ${set('8', fields).replace(') = 0', ' <unfinished ...>')}`,
      `18 ${set('8', fields).replace(') = 0', ' <unfinished ...>')}`,
      '18 +++ killed by SIGKILL +++',
      'ioctl(9, KVM_RUN, 0) = 0',
    ].join('\n');
    const { events, counts } = read(log);
    expect(events).toHaveLength(1);
    expect(counts).toEqual({ lines: 9, foreign: 2, malformed: 0, tooLong: 0, unreadable: 6 });
  });

  it('a call quoted in another call is foreign', () => {
    const quoted = `write(2, "${set('8', fields)}", 9) = 9\nwrite(2, "1@2.000003:kvm_set_user_memory Slot#1", 9) = 9\n`;
    expect(read(quoted)).toMatchObject({ events: [], format: undefined, counts: { foreign: 2 } });
  });
});

describe('calls that strace splits', () => {
  it('are put together per thread, take the time at which they began and come when they end', () => {
    const start = (slot: number) => set('8', small(slot)).replace(') = 0', ' <unfinished ...>');
    const log = [
      `11 00:00:01.000000 ${start(1)}`,
      `12 00:00:02.000000 ${start(2)}`,
      '12 00:00:03.000000 <... ioctl resumed>) = 0 <0.000012>',
      `13 00:00:04.000000 ${set('8', small(3))}`,
      '11 00:00:05.000000 <... ioctl resumed> ) = -1 EEXIST (File exists)',
      '99 00:00:06.000000 <... ioctl resumed>) = 0',
    ].join('\n');
    expect(slotCalls(log).map(({ slot, line, time, result }) => [slot, line, time, result])).toEqual([
      [2, 3, 2e6, 0],
      [3, 4, 4e6, 0],
      [1, 5, 1e6, -17],
    ]);
  });

  it("strace's own notes may break a line", () => {
    const whole = set('8', fields);
    const log = `${whole.slice(0, -5)}strace: Process 24498 attached\n${whole.slice(-5)}\n${whole}\n`;
    expect(slotCalls(log)).toMatchObject([
      { ...expected, line: 2 },
      { ...expected, line: 3 },
    ]);
  });

  it('a torn last line is an error with its number, or a counted skip', () => {
    const log = `${set('8', fields)}\n${set('8', fields).slice(0, 90)}`;
    expect(() => read(log)).toThrow(/line 2 can't be read: .*the log ends in the middle/);
    expect(read(log, { lenient: true }).counts).toMatchObject({ malformed: 1 });
  });
});

describe('virtual machines', () => {
  const vms = (...lines: string[]) => slotCalls(lines.join('\n')).map(({ vm }) => vm);
  const create = (fd: number) => `ioctl(3, KVM_CREATE_VM, 0) = ${fd}<anon_inode:kvm-vm>`;

  it('are told apart by file descriptor', () => {
    expect(vms(create(8), create(9), set('8', small(1)), set('9', small(1)))).toEqual(['fd 8', 'fd 9']);
  });

  it('a descriptor that is closed and used again is another', () => {
    expect(vms(create(8), set('8', small(1)), 'close(8) = 0', create(8), set('8', small(1)))).toEqual([
      'fd 8',
      'fd 8 (2)',
    ]);
    expect(vms(set('8', small(1)), 'close(8) = 0', set('8', small(1)))).toEqual(['fd 8', 'fd 8 (2)']);
    expect(vms(create(8), set('8', small(1)), create(8), set('8', small(1)))).toEqual(['fd 8', 'fd 8 (2)']);
  });

  it('the threads of one process share descriptors, whether or not the log shows their birth', () => {
    expect(vms(`11 ${create(8)}`, `13 ${set('8', small(1))}`, `11 ${set('8', small(1))}`)).toEqual(['fd 8', 'fd 8']);
    const clone = '11 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD, stack=0x1} => {parent_tid=[13]}, 88) = 13';
    expect(vms(clone, `13 ${create(8)}`, `11 ${set('8', small(1))}`)).toEqual(['fd 8']);
  });

  it('processes do not', () => {
    const fork = '11 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD) = 20';
    const thread = '20 clone3({flags=CLONE_VM|CLONE_THREAD} <unfinished ...>';
    const log = [
      `11 ${create(8)}`,
      fork,
      '20 close(8) = 0',
      `20 ${create(8)}`,
      thread,
      '20 <... clone3 resumed> => {parent_tid=[12]}, 88) = 12',
    ];
    expect(vms(...log, `11 ${set('8', small(1))}`, `20 ${set('8', small(1))}`, `12 ${set('8', small(1))}`)).toEqual([
      'fd 8',
      'fd 8 (2)',
      'fd 8 (2)',
    ]);
    // Without the births, a thread is taken for the process that began last before it.
    const two = [`11 ${create(8)}`, `20 ${create(8)}`];
    expect(vms(...two, `13 ${set('8', small(1))}`, `21 ${set('8', small(1))}`)).toEqual(['fd 8', 'fd 8 (2)']);
  });
});
