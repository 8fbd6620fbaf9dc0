import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { buildCli, runCli, startCli } from './built-cli.js';

const directory = mkdtempSync(join(tmpdir(), 'memslots-watch-'));
const path = join(directory, 'qmp');
let cli = '';

/** Speaks enough QMP to be watched: answers the monitor command with whatever `flat` is at the time. */
class FakeQemu {
  flat = '';
  looks = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  constructor(answer?: (line: string) => string | undefined) {
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.on('error', () => undefined);
      socket.write('{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": []}}\r\n');
      socket.setEncoding('utf8').on('data', (text: string) => {
        for (const line of text.split('\n').filter((part) => part !== '')) {
          const { execute, id } = JSON.parse(line) as { execute: string; id: number };
          socket.write('{"event": "RESUME", "timestamp": {}}\r\n');
          const special = answer?.(line);
          if (special !== undefined) socket.write(special);
          else if (execute === 'human-monitor-command') {
            this.looks++;
            // Answers come in pieces.
            const reply = `${JSON.stringify({ return: this.flat, id })}\r\n`;
            socket.write(reply.slice(0, 10));
            setImmediate(() => socket.write(reply.slice(10)));
          } else socket.write(`${JSON.stringify({ return: {}, id })}\r\n`);
        }
      });
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(path, resolve));
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  /** Resolves once two more looks have begun, so that what `flat` was at the call has been told. */
  async seen(): Promise<void> {
    const until = this.looks + 2;
    while (this.looks < until) await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

const range = (gpa: number, name: string, kvm = ' KVM') =>
  `  ${gpa.toString(16).padStart(16, '0')}-${(gpa + 0xfff).toString(16).padStart(16, '0')} (prio 0, ram): ${name}${kvm}\r\n`;
const view = (...ranges: string[]) =>
  `FlatView #0\r\n AS "I/O", root: io\r\n Root memory region: io\r\n${range(0, 'port', '')}\r\n` +
  `FlatView #1\r\n AS "cpu", root: system\r\n AS "memory", root: system\r\n Root memory region: system\r\n${ranges.join('')}\r\n`;

let servers: FakeQemu[] = [];

async function serve(flat: string, answer?: (line: string) => string | undefined): Promise<FakeQemu> {
  const server = new FakeQemu(answer);
  server.flat = flat;
  await server.listen();
  servers.push(server);
  return server;
}

beforeAll(async () => {
  cli = await buildCli();
});
afterEach(async () => {
  for (const server of servers) await server.stop();
  servers = [];
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe('memslots watch', () => {
  test('prints ranges as KVM maps and unmaps them, over a restart of QEMU, and ends with 0 on Ctrl-C', async () => {
    const first = await serve(view(range(0x1000, 'a'), range(0x2000, 'b', '')));
    const { process, ended } = startCli(cli, ['watch', '--qmp', path, '--json', '--interval', '5']);
    await first.seen();
    first.flat = view(range(0x1000, 'a'), range(0x2000, 'b'));
    await first.seen();
    first.flat = view(range(0x2000, 'b'));
    await first.seen();
    await first.stop();
    servers = [];
    const second = await serve(view(range(0x3000, 'c')));
    await second.seen();
    process.kill('SIGINT');
    const { status, stdout, stderr } = await ended;
    const events = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    const told = events.map(({ event, removed, added, addressSpace }) =>
      event === 'change'
        ? [
            addressSpace,
            ...removed.map((x: { region: string }) => `-${x.region}`),
            ...added.map((x: { region: string }) => `+${x.region}`),
          ]
        : event,
    );
    expect(told).toEqual([
      ...['connected', ['memory', '+a'], ['memory', '+b'], ['memory', '-a'], 'disconnected'],
      ...['connected', ['memory', '+c']],
    ]);
    expect(events.every(({ time }) => !Number.isNaN(Date.parse(time)))).toBe(true);
    expect(events[1].added).toEqual([
      { gpa: 0x1000, size: 0x1000, kind: 'ram', region: 'a', offset: 0, readonly: false },
    ]);
    expect([status, stderr]).toEqual([0, '']);
  });

  test('prints lines for people without --json, and ends when its reader goes away', async () => {
    const server = await serve(view(range(0x1000, 'a')));
    const { process, ended } = startCli(cli, ['watch', '--qmp', path, '--interval', '5']);
    await server.seen();
    process.stdout.destroy();
    server.flat = view(range(0x2000, 'a'));
    const { status, stdout } = await ended;
    expect(status).toBe(0);
    const withoutTimes = stdout.replaceAll(/^\S+Z /gm, '');
    expect(withoutTimes).toBe('connected\nmemory + 0000000000001000-0000000000001fff (prio 0, ram): a\n');
  });

  test('fails at once if nobody listens, or what listens is not QMP', async () => {
    const none = await runCli(cli, ['watch', '--qmp', join(directory, 'nobody')]);
    expect([none.status, none.stderr]).toEqual([1, expect.stringMatching(/nobody: connect ENOENT/)]);
    await serve('', () => 'HTTP/1.1 400 Bad Request\r\n');
    const other = await runCli(cli, ['watch', '--qmp', path]);
    expect([other.status, other.stderr]).toEqual([1, expect.stringContaining('not QMP: HTTP/1.1 400 Bad Request')]);
  });

  test('stops at text it cannot read, naming the line', async () => {
    await serve('FlatView #0\r\n AS "memory", root: system\r\n  0000-\r\n');
    const { status, stderr } = await runCli(cli, ['watch', '--qmp', path]);
    expect([status, stderr]).toEqual([1, expect.stringContaining('line 3: not a range of a flat view')]);
  });

  test('needs a socket', async () => {
    const { status, stderr } = await runCli(cli, ['watch']);
    expect([status, stderr]).toEqual([2, expect.stringContaining('watch needs --qmp SOCKET')]);
  });
});
