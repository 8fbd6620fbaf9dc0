import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MemorySlotsError } from '../../ts/core/errors.js';
import { Analyzer, analyze, longestLine, readTrace, TraceParser } from '../../ts/trace/index.js';
import { text } from './reference.js';
import { read } from './tools.js';

const seeds = [
  text('boot-pc-qemu10.0.log'),
  text('boot-pc-qemu7.2.log').replace(/^\d+@\d+\.\d+:/gm, '2026-11-23T22:22:59.445313Z '),
  text('boot-pc.strace.log'),
  text('boot-pc.strace.log').replace(/\) = 0$/gm, ' <unfinished ...>\n16311 22:23:27.000000 <... ioctl resumed>) = 0'),
  'FlatView #0\n AS "memory", root: system\n Root memory region: system\n  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\n\n',
  '{"kind":"slot","vm":"vm","addressSpace":0,"slot":1,"flags":0,"gpa":0,"size":4096,"hostAddress":4096,"result":0}\n{"kind":"commit","transaction":1}\n',
  'memslots_commit transaction=1\nkvm_run_exit cpu_index 1, reason 6\nkvm_slots_grow 1 -> 2\nkvm_clear_dirty_log slot#1 start 0x1 size 0x2\n',
].map((seed) => new TextEncoder().encode(seed));

const change = fc.oneof(
  fc.record({ kind: fc.constant('set' as const), at: fc.nat(), bytes: fc.uint8Array({ minLength: 1, maxLength: 8 }) }),
  fc.record({ kind: fc.constant('cut' as const), at: fc.nat(), length: fc.nat({ max: 200 }) }),
  fc.record({ kind: fc.constant('copy' as const), at: fc.nat(), from: fc.nat(), length: fc.nat({ max: 200 }) }),
  fc.record({
    kind: fc.constant('insert' as const),
    at: fc.nat(),
    text: fc.constantFrom(
      '\n',
      '99999999999999999999',
      'ffffffffffffffffffffff',
      '-',
      '\r',
      '\0',
      '<',
      '"',
      '{',
      '=',
      ' KVM',
      '#',
    ),
  }),
);

function changed(seed: Uint8Array, changes: readonly (typeof change extends fc.Arbitrary<infer T> ? T : never)[]) {
  let bytes = Array.from(seed.subarray(0, 3000));
  for (const one of changes) {
    const at = one.at % Math.max(bytes.length, 1);
    if (one.kind === 'set') bytes.splice(at, one.bytes.length, ...one.bytes);
    else if (one.kind === 'cut') bytes.splice(at, one.length);
    else if (one.kind === 'insert') bytes.splice(at, 0, ...new TextEncoder().encode(one.text));
    else bytes.splice(at, 0, ...bytes.slice(one.from % Math.max(bytes.length, 1)).slice(0, one.length));
  }
  if (bytes.length > 10_000) bytes = bytes.slice(0, 10_000);
  return Uint8Array.from(bytes);
}

function lineCount(bytes: Uint8Array): number {
  const lines = bytes.reduce((count, byte) => count + (byte === 10 ? 1 : 0), 0);
  return lines + (bytes.length > 0 && bytes.at(-1) !== 10 ? 1 : 0);
}

describe('damaged logs', () => {
  it('strictly: are read, or refused with the number of a line', () => {
    let refused = 0;
    fc.assert(
      fc.property(fc.constantFrom(...seeds), fc.array(change, { minLength: 1, maxLength: 6 }), (seed, changes) => {
        try {
          read(changed(seed, changes));
        } catch (error) {
          expect(error).toBeInstanceOf(MemorySlotsError);
          expect((error as Error).message).toMatch(/^line \d+ can't be read: /);
          refused++;
        }
      }),
      { numRuns: 3000 },
    );
    expect(refused).toBeGreaterThan(100);
  });

  it('leniently: are always read, every line accounted for, in pieces of any size alike, and analysed', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...seeds),
        fc.array(change, { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 1, max: 500 }),
        (seed, changes, piece) => {
          const bytes = changed(seed, changes);
          const whole = read(bytes, { lenient: true });
          expect(read(bytes, { lenient: true }, piece)).toEqual(whole);
          expect(whole.counts.lines).toBe(lineCount(bytes));
          const { foreign, malformed } = whole.counts;
          if (whole.format === 'qemu') expect(whole.events.length + foreign + malformed).toBe(whole.counts.lines);
          const analyzer = new Analyzer();
          for (const event of whole.events) analyzer.push(event);
          const { updates, failures, transactions, holes, maxSlots } = analyzer.finish(whole);
          expect(updates).toBe(whole.events.filter(({ kind }) => kind === 'slot').length);
          expect(failures + transactions).toBeLessThanOrEqual(updates * 2);
          expect(maxSlots).toBeLessThanOrEqual(updates + 10);
          for (const { size } of holes) expect(size).toBeGreaterThan(0);
        },
      ),
      { numRuns: 1500 },
    );
  });

  it('random bytes are no log', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 5000 }), fc.integer({ min: 1, max: 5000 }), (bytes, piece) => {
        const { events, format, counts } = read(bytes, {}, piece);
        expect({ events, format }).toEqual({ events: [], format: undefined });
        expect(counts).toMatchObject({ lines: lineCount(bytes), foreign: lineCount(bytes) });
      }),
      { numRuns: 500 },
    );
  });

  it('random bytes that begin like gzip are refused', async () => {
    const bytes = new Uint8Array(1000).fill(7);
    bytes.set([0x1f, 0x8b]);
    const source = new Response(bytes).body!;
    await expect(analyze(readTrace(source, { lenient: true }))).rejects.toThrow(/gzip data can't be read/);
  });
});

describe('lines of 100 MB', () => {
  it.each([
    'kvm_set_user_memory Slot#',
    'ioctl(8<',
    '16311 22:23:26 ioctl(8, KVM_SET_USER_MEMORY_REGION, {',
    '{"kind":"',
    'FlatView #',
    '>',
  ])('of %s are skipped, counted, and not kept', (start) => {
    const parser = new TraceParser();
    const whole = 'kvm_set_user_memory Slot#3 flags=0x2 gpa=0xc0000 size=0x20000 ua=0x7f1e0c200000 ret=0\n';
    const events = parser.push(new TextEncoder().encode(whole + start));
    const filler = new Uint8Array(longestLine).fill('>'.charCodeAt(0));
    const before = process.memoryUsage().arrayBuffers;
    for (let index = 0; index < 100; index++) events.push(...parser.push(filler));
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(8 * longestLine);
    events.push(...parser.push(new TextEncoder().encode(`\n${whole}`)), ...parser.end());
    expect(events.map(({ line }) => line)).toEqual([1, 3]);
    expect(parser.counts).toMatchObject({ lines: 3, tooLong: 1, foreign: 0 });
  });

  it('just below the limit take no longer than others of their length', () => {
    // Each would take hours if a pattern were tried from every place of the line.
    const starts = [
      'ioctl(8<',
      'ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=',
      '  0000000000000000-',
      ' AS "',
      '[pid ',
      ')',
      '<... ioctl resumed>',
    ];
    for (const start of starts) {
      for (const fill of ['>', ' ', ')', ') = 4<', '0', '}', '"', 'a|', '@']) {
        const log = `FlatView #0\n${start}${fill.repeat((longestLine - 100) / fill.length)}\n`;
        for (const first of ['', 'ioctl(9, KVM_CREATE_VM, 0) = 9\n']) read(first + log, { lenient: true });
      }
    }
  });
});
