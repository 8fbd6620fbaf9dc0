import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { readTraceFile } from '../../ts/trace/file.js';
import { formatEvent, readTrace, type TraceEvent, toJson } from '../../ts/trace/index.js';
import { logs, recordings, text } from './reference.js';
import { read } from './tools.js';

async function* pieces(bytes: Uint8Array, size: number) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function all(trace: AsyncIterable<TraceEvent>) {
  const events: TraceEvent[] = [];
  for await (const event of trace) events.push(event);
  return events;
}

/** Without the line numbers, which another form may change. */
const bare = (events: readonly TraceEvent[]) => events.map((event) => ({ ...event, line: 0 }));

describe('snapshots of info mtree -f', () => {
  const { snapshots } = JSON.parse(
    gunzipSync(readFileSync(new URL('churn-pc-qemu7.2.snaps.json.gz', recordings))).toString(),
  ) as { snapshots: { flat: string }[] };

  it('give every flat view with every range', () => {
    for (const { flat } of snapshots.slice(0, 20)) {
      const { events, format } = read(`(qemu) info mtree -f\r\n${flat}`);
      expect(format).toBe('mtree');
      const views = events.filter((event) => event.kind === 'flat-view');
      expect(views.length).toBe(flat.match(/^FlatView #/gm)!.length);
      expect(views.flatMap(({ ranges }) => ranges).length).toBe(flat.match(/^ {2}[0-9a-f]{16}-/gm)!.length);
      expect(views.flatMap(({ addressSpaces }) => addressSpaces).length).toBe(flat.match(/^ AS "/gm)!.length);
      expect(views.flatMap(({ ranges }) => ranges.filter(({ kvm }) => kvm)).length).toBe(
        flat.match(/ KVM\r?$/gm)!.length,
      );
    }
  });

  it('names may hold blanks and colons; ends are inclusive; offsets and marks are optional', () => {
    const flat = [
      'FlatView #3',
      ' AS "memory", root: system',
      ' AS "cpu-memory-0", root: system, alias x',
      ' Root memory region: system',
      '  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM',
      '  00000000000c0000-00000000000dffff (prio -1, nv-romd): dev: 1 @x @00000000000c0000 KVM',
      '  0000000100000000-ffffffffffffffff (prio 0, i/o): end',
      '',
      'FlatView #4',
      '  No rendered FlatView',
    ].join('\n');
    expect(read(flat).events).toEqual([
      {
        kind: 'flat-view',
        line: 1,
        time: undefined,
        thread: undefined,
        view: 3,
        addressSpaces: ['memory', 'cpu-memory-0'],
        ranges: [
          { gpa: 0, size: 0xa0000, type: 'ram', nonVolatile: false, priority: 0, name: 'pc.ram', offset: 0, kvm: true },
          {
            gpa: 0xc0000,
            size: 0x20000,
            type: 'romd',
            nonVolatile: true,
            priority: -1,
            name: 'dev: 1 @x',
            offset: 0xc0000,
            kvm: true,
          },
          {
            gpa: 2 ** 32,
            size: 2 ** 64 - 2 ** 32,
            type: 'i/o',
            nonVolatile: false,
            priority: 0,
            name: 'end',
            offset: 0,
            kvm: false,
          },
        ],
      },
      { kind: 'flat-view', line: 9, time: undefined, thread: undefined, view: 4, addressSpaces: [], ranges: [] },
    ]);
  });

  it('a torn range is an error with its line', () => {
    const flat = 'FlatView #0\n  0000000000000000-000000000009ffff (prio 0, ra';
    expect(() => read(flat)).toThrow(/line 2 can't be read: the range has another form/);
  });
});

describe("the library's own forms", () => {
  const events = [
    ...read(text('boot-pc-qemu10.0.log')).events,
    ...read(
      '7@1795472579.443605:kvm_run_exit cpu_index 1, reason 6\n8@1.000000:kvm_clear_dirty_log slot#1 start 0x1 size 0x2\n',
    ).events,
    ...read('1@2.000003:memslots_commit transaction=1\n1@2.000003:memslots_window_begin transaction=1\n').events,
    ...read('1@2.000003:memslots_rollback transaction=1 ret=-12\n1@2.000003:memslots_window_end transaction=1\n')
      .events,
    ...read(
      'kvm_set_user_memory AddrSpace#1 Slot#3 flags=0x4 gpa=0x0 size=0x1000 ua=0x1000 guest_memfd=4 guest_memfd_offset=0x1000 ret=-22\n',
    ).events,
  ] as Exclude<TraceEvent, { kind: 'flat-view' }>[];

  it("what is written in QEMU's form is read back", () => {
    expect(bare(read(events.map(formatEvent).join('\n')).events)).toEqual(bare(events));
  });

  it('what is written as JSON is read back', () => {
    const views = read(
      'FlatView #0\n AS "memory", root: x\n  0000000000000000-000000000009ffff (prio 0, ram): a KVM\n',
    ).events;
    const { events: found, format } = read([...events, ...views].map(toJson).join('\n'));
    expect(format).toBe('json');
    expect(bare(found)).toEqual(bare([...events, ...views]));
  });

  it.each([
    ['{"kind":"slot"}', /slot.vm is undefined/],
    ['{"kind":"slot","vm":"vm","addressSpace":0,"slot":-1', /it isn't JSON/],
    ['{"kind":"nothing"}', /there is no kind of event 'nothing'/],
    ['{"kind":"commit","transaction":1.5}', /commit.transaction is 1.5/],
    ['{"kind":"flat-view","view":0,"addressSpaces":[],"ranges":[null]}', /flat-view.ranges\[0\] isn't an object/],
  ])('%s is refused', (line, message) => {
    expect(() => read(line)).toThrow(message);
  });
});

describe('compressed logs', () => {
  const log = new TextEncoder().encode(text('churn-pc-qemu7.2.log'));
  const plain = read(log).events;

  it('are read alike, in pieces of any size', async () => {
    const compressed = gzipSync(log);
    for (const size of [1, 1000, 1 << 20]) expect(await all(readTrace(pieces(compressed, size)))).toEqual(plain);
    expect(await all(readTrace(new Response(new Uint8Array(compressed)).body!))).toEqual(plain);
  });

  it('say so when they are cut or damaged', async () => {
    const compressed = gzipSync(log);
    await expect(all(readTrace(pieces(compressed.subarray(0, 2000), 100)))).rejects.toThrow(/gzip data can't be read/);
    compressed[compressed.length - 6]! ^= 1;
    await expect(all(readTrace(pieces(compressed, 100)))).rejects.toThrow(/gzip data can't be read/);
  });

  it('in a file are read alike, may end early, and say so when they are cut', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'memslots-'));
    try {
      const path = join(folder, 'log.gz');
      writeFileSync(path, gzipSync(log));
      expect(await all(readTraceFile(path))).toEqual(plain);
      for await (const { line } of readTraceFile(path)) {
        expect(line).toBe(1);
        break;
      }
      const member = gzipSync(log);
      writeFileSync(path, Buffer.concat([member, member]));
      expect((await all(readTraceFile(path))).length).toBe(2 * plain.length);
      writeFileSync(path, member.subarray(0, 2000));
      await expect(all(readTraceFile(path))).rejects.toThrow(/gzip data can't be read/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("a source's own error isn't taken for damage", async () => {
    async function* failing() {
      yield gzipSync(log).subarray(0, 2000);
      throw new Error('the cable came out');
    }
    await expect(all(readTrace(failing()))).rejects.toThrow('the cable came out');
  });
});

describe('a stream that can only be read, as in some browsers,', () => {
  /** `bytes` as a ReadableStream without an iterator, and whether it was let go of. */
  function readOnly(bytes: Uint8Array) {
    const source = pieces(bytes, 1000);
    const state = { cancelled: false };
    const reader = {
      read: () => source.next(),
      cancel: async () => {
        state.cancelled = true;
      },
    };
    return { state, stream: { getReader: () => reader } as unknown as ReadableStream<Uint8Array> };
  }

  it('is read as others are', async () => {
    const bytes = readFileSync(new URL('boot-pc-qemu10.0.log', recordings));
    const { stream } = readOnly(bytes);
    expect(await all(readTrace(stream))).toEqual(await all(readTrace(pieces(bytes, 1 << 16))));
  });

  it('is let go of when the reading ends early', async () => {
    const { stream, state } = readOnly(readFileSync(new URL('boot-pc-qemu10.0.log', recordings)));
    for await (const _ of readTrace(stream)) break;
    expect(state.cancelled).toBe(true);
  });
});

describe('files', () => {
  it('every recording is known by its content', async () => {
    for (const name of logs) {
      const trace = readTraceFile(new URL(name, recordings).pathname);
      await all(trace);
      expect(trace.format).toBe(name.includes('strace') ? 'strace' : 'qemu');
    }
  });

  it('one that is missing, or a folder, is named', async () => {
    await expect(all(readTraceFile('/nonexistent/log'))).rejects.toThrow(
      /the log \/nonexistent\/log can't be read: ENOENT/,
    );
    await expect(all(readTraceFile(recordings.pathname))).rejects.toThrow(/can't be read: EISDIR/);
  });

  it('iteration may end early', async () => {
    const trace = readTraceFile(new URL('churn-pc-qemu7.2.log', recordings).pathname);
    for await (const event of trace) {
      expect(event.line).toBe(1);
      break;
    }
  });

  it('progress reaches the size of the file', async () => {
    const path = new URL('churn-pc-qemu7.2.log', recordings).pathname;
    const seen: number[][] = [];
    await all(readTraceFile(path, { onProgress: (bytes, size) => seen.push([bytes, size]) }));
    expect(seen.at(-1)).toEqual([39527, 39527]);
  });
});
