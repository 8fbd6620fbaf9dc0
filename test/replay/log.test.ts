import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Arena } from '../../ts/core/arena.js';
import { errno } from '../../ts/core/core.js';
import { SimulatedBackend } from '../../ts/kvm/simulated.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { readTraceFile } from '../../ts/trace/file.js';
import type { LoggedEvent } from '../../ts/trace/format.js';
import { Grouper } from '../../ts/trace/index.js';
import { withMachine } from '../kvm/backends.js';
import { FaultyBackend } from '../kvm/faulty-backend.js';

const recording = 'test/data/qemu/churn-pc-qemu10.0.log';
const folder = mkdtempSync(join(tmpdir(), 'memslots-log-'));

describe('the log that replay writes', () => {
  const path = join(folder, 'slots.log');
  const out = execFileSync(process.execPath, ['dist/cli.js', 'replay', recording, '--json', '--log', path], {
    encoding: 'utf8',
  });
  const figures = JSON.parse(out);

  it('has a line for each call, window and commit, which our reader reads back to the same layout', async () => {
    const counts: Record<string, number> = {};
    const grouper = new Grouper();
    let last = 0;
    for await (const event of readTraceFile(path)) {
      counts[event.kind] = (counts[event.kind] ?? 0) + 1;
      grouper.push(event);
      expect(event.time).toBeGreaterThanOrEqual(last);
      last = event.time!;
    }
    expect(counts.slot).toBe(figures.ioctls);
    expect([counts['window-begin'], counts['window-end']]).toEqual([figures.inhibits, figures.inhibits]);
    expect(counts.commit).toBe(grouper.transactions);
    const merged = [...grouper.layouts.values()][0]!.merged();
    expect(merged.map(({ gpa, size, flags }) => [gpa, size, flags])).toEqual(
      figures.finalLayout.map(({ gpa, size, flags }: { gpa: number; size: number; flags: number }) => [
        gpa,
        size,
        flags,
      ]),
    );
  });

  it("is of QEMU's form, so that tools for QEMU's logs understand it", () => {
    const line =
      /^\d+@\d+\.\d{6}:kvm_set_user_memory AddrSpace#0 Slot#\d+ flags=0x\w+ gpa=0x\w+ size=0x\w+ ua=0x\w+ guest_memfd=-1 guest_memfd_offset=0x0 ret=0$/;
    const calls = readFileSync(path, 'utf8')
      .split('\n')
      .filter((text) => text.includes('kvm_set_user_memory'));
    expect(calls.length).toBe(figures.ioctls);
    for (const call of calls) expect(call).toMatch(line);
  });

  it('can be replayed itself', () => {
    const again = execFileSync(process.execPath, ['dist/cli.js', 'replay', path, '--json'], { encoding: 'utf8' });
    expect(JSON.parse(again).ioctls).toBeLessThanOrEqual(figures.ioctls);
  });
});

describe('the events of a commit that fails', () => {
  it('are its calls, the failing one, the rollback, and the calls that undo', async () => {
    const events: LoggedEvent[] = [];
    let faulty: FaultyBackend | undefined;
    const backend = (arena: Arena) => {
      faulty = new FaultyBackend(arena, new SimulatedBackend(arena, { callMicroseconds: 0 }));
      return faulty;
    };
    await withMachine({ backend, policy: 'exact', onEvent: (event) => events.push(event) }, (machine) => {
      const memory = machine.allocate(0x4000);
      const ram = MemoryRegion.ram(machine.map, 'ram', 0x2000, { memory });
      machine.system.add(ram, 0);
      events.length = 0;
      faulty!.failAfter({ after: 1, errno: errno.ENOMEM });
      expect(() => ram.setSize(0x4000)).toThrow(/ENOMEM/);
    });
    const told = events.map((event) =>
      event.kind === 'slot' ? `${event.size === 0 ? 'delete' : `create ${event.size}`}: ${event.result}` : event.kind,
    );
    expect(told).toEqual([
      'commit',
      'window-begin',
      'delete: 0',
      'create 16384: -12',
      'rollback',
      'create 8192: 0',
      'window-end',
    ]);
  });
});
