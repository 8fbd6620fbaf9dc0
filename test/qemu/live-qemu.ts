import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Qmp } from '../../ts/cli/qmp.js';

const program = 'qemu-system-x86_64';

/** Why no QEMU can run here, or undefined if one can. */
export function whyNoQemu(): string | undefined {
  if (spawnSync(program, ['--version']).status !== 0) return `${program} isn't installed`;
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return '/dev/kvm is missing or not accessible';
  }
  return undefined;
}

/** A QEMU whose vCPUs never run, driven through its monitor and through writes to its device registers. */
export class LiveQemu {
  readonly qmp: Qmp;
  readonly #process: ChildProcess;
  readonly #directory: string;
  readonly #server: Server;
  readonly #qtest: Socket;
  #reply: ((line: string) => void) | undefined;

  private constructor(process: ChildProcess, directory: string, server: Server, qtest: Socket, qmp: Qmp) {
    this.#process = process;
    this.#directory = directory;
    this.#server = server;
    this.#qtest = qtest;
    this.qmp = qmp;
    let text = '';
    qtest.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const line = text.slice(0, end);
        text = text.slice(end + 1);
        if (/^(OK|FAIL|ERR)/.test(line)) this.#reply?.(line);
      }
    });
  }

  /** Starts QEMU with `options` beyond what every run has. */
  static async start(options: readonly string[]): Promise<LiveQemu> {
    const directory = mkdtempSync(join(tmpdir(), 'memslots-qemu-'));
    const [qtestPath, qmpPath] = [join(directory, 'qtest'), join(directory, 'qmp')];
    const server = createServer();
    const connected = new Promise<Socket>((resolve) => server.once('connection', resolve));
    await new Promise<void>((resolve) => server.listen(qtestPath, resolve));
    const accelerator = options.includes('-accel') ? [] : ['-accel', 'kvm'];
    const common = [...accelerator, '-S', '-display', 'none', '-nodefaults', '-serial', 'none', '-qtest-log', 'none'];
    const sockets = ['-qtest', `unix:${qtestPath}`, '-qmp', `unix:${qmpPath},server=on,wait=off`];
    const child = spawn(program, [...common, ...sockets, ...options], { stdio: ['ignore', 'ignore', 'pipe'] });
    let complaints = '';
    child.stderr!.setEncoding('utf8').on('data', (chunk: string) => {
      complaints += chunk;
    });
    const ended = new Promise<never>((_, reject) => {
      child.once('exit', (code) => reject(new Error(`QEMU ended with ${code}: ${complaints}`)));
    });
    ended.catch(() => undefined);
    try {
      const qtest = await Promise.race([connected, ended]);
      for (let tries = 0; ; tries++) {
        try {
          return new LiveQemu(child, directory, server, qtest, await Qmp.connect(qmpPath));
        } catch (error) {
          if (tries === 100) throw error;
          await Promise.race([sleep(50), ended]);
        }
      }
    } catch (error) {
      child.kill('SIGKILL');
      server.close();
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /** The path of the QMP socket is free for another client once {@link qmp} is closed. */
  get qmpPath(): string {
    return join(this.#directory, 'qmp');
  }

  /** What the tree and the flat view are at this moment. */
  async state(): Promise<{ tree: string; flat: string }> {
    return { tree: await this.qmp.monitor('info mtree'), flat: await this.qmp.monitor('info mtree -f') };
  }

  /** Writes 1, 2 or 4 bytes (`b`, `w`, `l`) to PCI configuration space of function 0 of a device. */
  async configure(device: number, offset: number, value: number, width: 'b' | 'w' | 'l' = 'l', bus = 0): Promise<void> {
    const address = (0x80000000 | (bus << 16) | (device << 11) | (offset & ~3)) >>> 0;
    await this.#tell(`outl 0xcf8 0x${address.toString(16)}`);
    await this.#tell(`out${width} 0x${(0xcfc + (offset & 3)).toString(16)} 0x${(value >>> 0).toString(16)}`);
  }

  async stop(): Promise<void> {
    this.qmp.close();
    const exited = new Promise((resolve) => this.#process.once('exit', resolve));
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      this.#process.kill('SIGKILL');
      await exited;
    }
    this.#qtest.destroy();
    this.#server.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #tell(line: string): Promise<void> {
    const answer = await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`QEMU didn't answer '${line}'`)), 10_000);
      this.#reply = (reply) => {
        clearTimeout(timer);
        resolve(reply);
      };
      this.#qtest.write(`${line}\n`);
    });
    if (!answer.startsWith('OK')) throw new Error(`QEMU refused '${line}': ${answer}`);
  }
}
