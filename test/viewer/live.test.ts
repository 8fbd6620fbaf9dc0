import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { followPrograms, followQemu } from '../../ts/cli/view-live.js';
import { Machine, MemoryRegion, shareMachine } from '../../ts/index.js';
import { readTrace, type TraceEvent } from '../../ts/trace/index.js';
import { Timeline } from '../../ts/viewer/timeline.js';

let folder: string;
let runtime: string | undefined;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'memslots-live-'));
  runtime = process.env.XDG_RUNTIME_DIR;
  process.env.XDG_RUNTIME_DIR = folder;
});

afterEach(() => {
  if (runtime === undefined) delete process.env.XDG_RUNTIME_DIR;
  else process.env.XDG_RUNTIME_DIR = runtime;
  rmSync(folder, { recursive: true, force: true });
});

/** Feeds a timeline with what `stream` says, until `enough`. */
async function follow(stream: Readable, enough: (timeline: Timeline) => boolean): Promise<Timeline> {
  const timeline = new Timeline();
  for await (const batch of readTrace(stream).batches()) {
    timeline.push(batch as TraceEvent[]);
    if (enough(timeline)) break;
  }
  return timeline;
}

/** The slots that a timeline shows at its end, as a machine tells them. */
function slotsOf(timeline: Timeline): { id: number; gpa: number; size: number; flags: number }[] {
  return [...timeline.present()]
    .flatMap((event) => (event.kind === 'slot' ? [event] : []))
    .map(({ slot, gpa, size, flags }) => ({ id: slot, gpa, size, flags }))
    .sort((a, b) => a.gpa - b.gpa);
}

async function machineWithRam(): Promise<{ machine: Machine; ram: MemoryRegion }> {
  const machine = await Machine.create({ backend: 'simulated', policy: 'exact', simulated: { memoryBytes: 1 << 25 } });
  const ram = MemoryRegion.ram(machine.map, 'ram', 1 << 20, { memory: machine.allocate(1 << 24) });
  machine.transaction(() => machine.system.add(ram, 0x100000));
  return { machine, ram };
}

describe('a program that shares its machine', () => {
  test('is told whole: the slots it had, then every commit', async () => {
    const source = await followPrograms(() => {});
    const { machine, ram } = await machineWithRam();
    try {
      const shared = await shareMachine(machine);
      for (const size of [2, 3, 1]) machine.transaction(() => ram.setSize(size << 20));
      const timeline = await follow(source.trace.open(), ({ length }) => length === 4);
      expect(timeline.length).toBe(4);
      expect(slotsOf(timeline)).toEqual(machine.slots().map(({ id, gpa, size, flags }) => ({ id, gpa, size, flags })));
      // A commit without vCPUs still takes its window.
      expect(timeline.figures(2).holes).toMatchObject([{ gpa: 0x100000, size: 2 << 20, inhibited: true }]);
      shared.close();
      await shared.ended;
    } finally {
      await machine.close();
      source.close();
    }
  });

  test('shows holes that vCPUs could see when its updates are naive', async () => {
    const source = await followPrograms(() => {});
    const { machine, ram } = await machineWithRam();
    try {
      await shareMachine(machine);
      machine.updates = 'naive';
      machine.transaction(() => ram.setSize(2 << 20));
      const timeline = await follow(source.trace.open(), ({ length }) => length === 2);
      expect(timeline.figures(1).holes).toMatchObject([{ gpa: 0x100000, size: 1 << 20, inhibited: false }]);
    } finally {
      await machine.close();
      source.close();
    }
  });

  test('tells nothing of another machine of the same process', async () => {
    const source = await followPrograms(() => {});
    const [one, other] = [await machineWithRam(), await machineWithRam()];
    try {
      await shareMachine(one.machine);
      other.machine.transaction(() => other.ram.setSize(4 << 20));
      one.machine.transaction(() => one.ram.setSize(2 << 20));
      const timeline = await follow(source.trace.open(), ({ length }) => length === 2);
      expect(slotsOf(timeline)).toMatchObject([{ size: 2 << 20 }]);
    } finally {
      await one.machine.close();
      await other.machine.close();
      source.close();
    }
  });

  test('uses a socket that nobody else can reach, and says so when no viewer waits', async () => {
    const { machine } = await machineWithRam();
    try {
      await expect(shareMachine(machine)).rejects.toThrow(/no viewer is waiting at .*run 'memslots view --live' first/);
      const source = await followPrograms(() => {});
      expect(statSync(join(source.path, '..')).mode & 0o077).toBe(0);
      await expect(followPrograms(() => {})).rejects.toThrow("another 'memslots view --live' is waiting");
      source.close();
    } finally {
      await machine.close();
    }
  });
});

/** A QMP server that answers `info mtree -f` with the text that `flat` gives, and remembers what it was asked. */
function fakeQemu(path: string, flat: () => string): { server: Server; asked: string[]; sockets: Set<Socket> } {
  const asked: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.write('{"QMP": {"version": {}, "capabilities": []}}\r\n');
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      for (const line of text.split('\n').filter((part) => part !== '')) {
        const { execute, arguments: parameters, id } = JSON.parse(line);
        asked.push(parameters['command-line'] ?? execute);
        const answer = execute === 'qmp_capabilities' ? {} : flat();
        socket.write(`${JSON.stringify({ return: answer, id })}\r\n`);
      }
    });
  });
  server.listen(path);
  return { server, asked, sockets };
}

test('a QEMU is shown by its flat views, asked for nothing else, and told again only when they have changed', async () => {
  const path = join(folder, 'qmp.sock');
  const head = ['FlatView #0', ' AS "memory", root: system', ' Root memory region: system'];
  const low = '  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM';
  const high = '  0000000000100000-00000000001fffff (prio 0, ram): pc.ram @0000000000100000 KVM';
  let looks = 0;
  const { server, asked, sockets } = fakeQemu(path, () => {
    looks++;
    return [...head, low, ...(looks > 2 ? [high] : []), '', ''].join('\r\n');
  });
  const source = await followQemu(path, () => {});
  try {
    const timeline = await follow(source.trace.open(), ({ length }) => length === 2);
    expect(timeline.length).toBe(2);
    expect([0, 1].map((index) => timeline.figures(index).slots)).toEqual([1, 2]);
    expect(new Set(asked)).toEqual(new Set(['qmp_capabilities', 'info mtree -f']));
  } finally {
    source.close();
    for (const socket of sockets) socket.destroy();
    server.close();
  }
});
