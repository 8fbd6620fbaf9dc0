import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { groupTransactions, readTrace, type TraceEvent } from '../../ts/trace/index.js';
import { History } from '../../ts/viewer/history.js';
import { marks, momentOf } from '../../ts/viewer/lanes.js';
import { noSlot } from '../../ts/viewer/records.js';
import { Timeline } from '../../ts/viewer/timeline.js';
import { describeTransaction } from '../../ts/viewer/words.js';

const folder = new URL('../data/qemu/', import.meta.url);
const logs = readdirSync(folder).filter((name) => name.endsWith('.log'));

async function* bytesOf(text: string | Buffer): AsyncGenerator<Uint8Array> {
  yield Buffer.from(text);
}

async function timelineOf(text: string | Buffer): Promise<{ timeline: Timeline; events: TraceEvent[] }> {
  const timeline = new Timeline();
  const events: TraceEvent[] = [];
  for await (const batch of readTrace(bytesOf(text)).batches()) {
    timeline.push(batch);
    events.push(...batch);
  }
  return { timeline, events };
}

/** What a plain replay of the calls leaves after each transaction: address space → slot → `gpa size host flags`. */
async function replay(events: readonly TraceEvent[]): Promise<Map<string, string[]>[]> {
  const slots = new Map<string, Map<number, string>>();
  const states: Map<string, string[]>[] = [];
  for await (const { steps } of groupTransactions(events)) {
    for (const { update } of steps) {
      if (update.result !== 0) continue;
      const key = `${update.vm}/${update.addressSpace}`;
      const space = slots.get(key) ?? new Map<number, string>();
      slots.set(key, space);
      if (update.size === 0) space.delete(update.slot);
      else space.set(update.slot, [update.gpa, update.size, update.hostAddress, update.flags].join(' '));
    }
    states.push(
      new Map([...slots].map(([key, space]) => [key, [...space].map(([id, text]) => `${id} ${text}`).sort()])),
    );
  }
  return states;
}

describe('a timeline', () => {
  test.for(logs)('shows the same slots at every transaction of %s as a plain replay, in any order', async (name) => {
    const { timeline, events } = await timelineOf(readFileSync(new URL(name, folder)));
    const states = await replay(events);
    expect(timeline.length).toBe(states.length);
    const history = new History(timeline);
    const { ranges } = timeline;
    const order = states.map((_, index) => index).sort((a, b) => ((a * 7919) % 97) - ((b * 7919) % 97));
    for (const transaction of order) {
      for (const [space, { vm, addressSpace }] of timeline.spaces.entries()) {
        const alive = history.alive(space, transaction);
        const shown = [...alive].map((row) =>
          [ranges.id, ranges.gpa, ranges.size, ranges.host, ranges.flags].map((column) => column.at(row)).join(' '),
        );
        expect(shown.sort()).toEqual(states[transaction]!.get(`${vm}/${addressSpace}`) ?? []);
        const gpas = [...alive].map((row) => ranges.gpa.at(row));
        expect(gpas).toEqual([...gpas].sort((a, b) => a - b));
      }
    }
  });

  test('tells kept, deleted, created and changed slots apart, and shows the hole between', async () => {
    const { timeline } = await timelineOf(
      [
        'kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x30000 ua=0x7f0000000000 ret=0',
        'kvm_set_user_memory Slot#1 flags=0x0 gpa=0x100000 size=0x1000 ua=0x7f0000100000 ret=0',
        'kvm_set_user_memory Slot#2 flags=0x0 gpa=0x200000 size=0x1000 ua=0x7f0000200000 ret=0',
        'kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x0 ua=0x7f0000000000 ret=0',
        'kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x10000 ua=0x7f0000000000 ret=0',
        'kvm_set_user_memory Slot#3 flags=0x0 gpa=0x20000 size=0x10000 ua=0x7f0000020000 ret=0',
        'kvm_set_user_memory Slot#2 flags=0x1 gpa=0x200000 size=0x1000 ua=0x7f0000200000 ret=0',
      ].join('\n'),
    );
    const moment = momentOf(new History(timeline), 0, timeline.length - 1);
    const lane = (key: string) => {
      const { starts, ends, marks: marked } = moment.lanes.find((candidate) => candidate.key === key)!;
      return Array.from(starts, (start, index) => [start, ends[index]! - start, marks[marked[index]!]]);
    };
    expect(lane('before')).toEqual([
      [0, 0x30000, 'deleted'],
      [0x100000, 0x1000, 'kept'],
      [0x200000, 0x1000, 'changed'],
    ]);
    expect(lane('between')).toEqual([
      [0, 0x10000, 'hole'],
      [0x20000, 0x10000, 'hole'],
      [0x100000, 0x1000, 'kept'],
      [0x200000, 0x1000, 'kept'],
    ]);
    expect(lane('after')).toEqual([
      [0, 0x10000, 'created'],
      [0x20000, 0x10000, 'created'],
      [0x100000, 0x1000, 'kept'],
      [0x200000, 0x1000, 'changed'],
    ]);
    const sentence = describeTransaction(timeline.figures(timeline.length - 1), false);
    expect(sentence).toContain('1 slot deleted, 2 slots created, flags of 1 slot changed');
    expect(sentence).toContain('128 KiB in 2 places had no memory for a while: a vCPU touching it');
  });

  test('shows slots that continue each other as one to the guest, unless flags or host memory differ', async () => {
    const slot = (id: number, gpa: string, host: string, flags = 0) =>
      `kvm_set_user_memory Slot#${id} flags=0x${flags} gpa=0x${gpa} size=0x1000 ua=0x${host} ret=0`;
    const { timeline } = await timelineOf(
      [slot(0, '0', '10000'), slot(1, '1000', '11000'), slot(2, '2000', '12000', 2), slot(3, '3000', '20000', 2)].join(
        '\n',
      ),
    );
    const { lanes } = momentOf(new History(timeline), 0, 0);
    const flat = lanes.find(({ key }) => key === 'flat')!;
    expect([...flat.starts]).toEqual([0, 0x2000, 0x3000]);
    expect([...flat.ends]).toEqual([0x2000, 0x3000, 0x4000]);
  });

  test('says that vCPUs were held where a log of this library shows it', async () => {
    const { timeline } = await timelineOf(
      [
        '1@1.000000:memslots_commit transaction=1',
        '1@1.000001:kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 gpa=0x0 size=0x2000 ua=0x10000 guest_memfd=-1 guest_memfd_offset=0x0 ret=0',
        '1@1.000100:memslots_commit transaction=2',
        '1@1.000101:memslots_window_begin transaction=2',
        '1@1.000102:kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 gpa=0x0 size=0x0 ua=0x10000 guest_memfd=-1 guest_memfd_offset=0x0 ret=0',
        '1@1.000103:kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x10000 guest_memfd=-1 guest_memfd_offset=0x0 ret=0',
        '1@1.000105:memslots_window_end transaction=2',
      ].join('\n'),
    );
    const figures = timeline.figures(1);
    expect(figures.window).toBe(4);
    expect(figures.holes).toHaveLength(1);
    expect(figures.tornDown).toBe(0x2000);
    expect(describeTransaction(figures, false)).toContain('all vCPUs were held for 4 µs: none could see it');
    const { lanes } = momentOf(new History(timeline), 0, 1);
    const between = lanes.find(({ key }) => key === 'between')!;
    expect(Array.from(between.marks, (mark) => marks[mark])).toEqual(['held']);
  });

  test('shows snapshots of flat views, and as a transaction only what differs between two', async () => {
    const view = (ranges: readonly string[]) =>
      ['FlatView #0', ' AS "memory", root: system', ' Root memory region: system', ...ranges, '', ''].join('\n');
    const ram = '  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM';
    const io = '  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem';
    const high = '  00000000000c0000-0000000007ffffff (prio 0, ram): pc.ram @00000000000c0000 KVM';
    const { timeline } = await timelineOf(view([ram, io]) + view([ram, io]) + view([ram, io, high]));
    expect(timeline.length).toBe(2);
    expect(timeline.spaces).toMatchObject([{ name: 'memory', source: 'snapshots' }]);
    const { lanes, after } = momentOf(new History(timeline), 0, 1);
    expect(lanes.map(({ key }) => key)).toEqual(['regions', 'flat', 'before', 'after']);
    expect(lanes.find(({ key }) => key === 'after')!.starts).toHaveLength(2);
    expect([...after].map((row) => timeline.ranges.id.at(row) === noSlot)).toEqual([false, true, false]);
    expect([0, 1].map((index) => timeline.figures(index).slots)).toEqual([1, 2]);
  });

  test('can begin again with what it shows now, forgetting the past', async () => {
    const { timeline } = await timelineOf(readFileSync(new URL('churn-pc-qemu10.0.log', folder)));
    const later = new Timeline();
    later.push(timeline.present());
    const [old, young] = [new History(timeline), new History(later)];
    for (const space of timeline.spaces.keys()) {
      const rows = (history: History) =>
        [...history.alive(space, history.timeline.length - 1)].map((row) => {
          const { gpa, size, host, id } = history.timeline.ranges;
          return [gpa, size, host, id].map((column) => column.at(row));
        });
      expect(rows(young)).toEqual(rows(old));
    }
  });
});
