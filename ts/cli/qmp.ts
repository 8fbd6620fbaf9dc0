import { connect, type Socket } from 'node:net';
import { MemorySlotsError } from '../core/errors.js';

/** Milliseconds QEMU has to answer one command. */
const answerDeadline = 10_000;

/** What QEMU says first is matched like an answer to this. */
const greetingId = 0;

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
  readonly timer: NodeJS.Timeout;
}

/** A connection to QEMU's machine protocol (QMP) on a Unix socket: one JSON object a line, answers matched by id. */
export class Qmp {
  readonly #socket: Socket;
  readonly #path: string;
  readonly #pending = new Map<number, Pending>();
  #text = '';
  #commands = 0;
  #failure: MemorySlotsError | undefined;

  private constructor(socket: Socket, path: string) {
    this.#socket = socket;
    this.#path = path;
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => this.#receive(chunk));
    socket.on('error', (error) => this.#fail(`${path}: ${error.message}`));
    socket.on('close', () => this.#fail(`${path}: QEMU closed the connection`));
  }

  /**
   * Connects to the socket at `path` and greets. Throws `STATE` if nobody listens there or the connection breaks,
   * `TIMEOUT` if there is no answer within 10 s, as there is none while another client holds the socket. Raising
   * `signal` gives up.
   */
  static async connect(path: string, signal?: AbortSignal): Promise<Qmp> {
    const qmp = new Qmp(connect(path), path);
    const stop = () => qmp.close();
    signal?.addEventListener('abort', stop);
    try {
      await qmp.#answer(greetingId, 'a greeting (is another client connected?)');
      await qmp.command('qmp_capabilities');
      return qmp;
    } catch (error) {
      qmp.close();
      throw error;
    } finally {
      signal?.removeEventListener('abort', stop);
    }
  }

  /** Runs a command and resolves to what it returns. Throws `STATE` if QEMU refuses it, and as {@link connect} does. */
  async command(name: string, parameters: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    const id = ++this.#commands;
    const answer = this.#answer(id, `an answer to ${name}`);
    this.#socket.write(`${JSON.stringify({ execute: name, arguments: parameters, id })}\n`);
    return answer;
  }

  /** Runs a command of the human monitor and resolves to the text it prints. Throws as {@link command} does. */
  async monitor(line: string): Promise<string> {
    return String(await this.command('human-monitor-command', { 'command-line': line }));
  }

  /** Ends the connection; commands without an answer reject. */
  close(): void {
    this.#fail(`${this.#path}: the connection was closed`);
  }

  #answer(id: number, what: string): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) {
        reject(this.#failure);
        return;
      }
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(
          new MemorySlotsError('TIMEOUT', `${this.#path}: QEMU didn't send ${what} within ${answerDeadline / 1000} s`),
        );
      }, answerDeadline);
      this.#pending.set(id, { resolve, reject, timer });
    });
  }

  #settle(id: number): Pending | undefined {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    clearTimeout(pending?.timer);
    return pending;
  }

  #receive(chunk: string): void {
    this.#text += chunk;
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const line = this.#text.slice(0, end);
      this.#text = this.#text.slice(end + 1);
      this.#message(line);
    }
  }

  #message(line: string): void {
    let message: { QMP?: unknown; return?: unknown; error?: { desc?: string }; id?: number };
    try {
      message = JSON.parse(line);
    } catch {
      this.#fail(`${this.#path}: not QMP: ${line.slice(0, 100)}`);
      return;
    }
    if (message.QMP !== undefined) this.#settle(greetingId)?.resolve(undefined);
    else if (message.id !== undefined) {
      const pending = this.#settle(message.id);
      if (message.error === undefined) pending?.resolve(message.return);
      else pending?.reject(new MemorySlotsError('STATE', `QEMU refused: ${message.error.desc}`));
    }
  }

  #fail(problem: string): void {
    this.#failure ??= new MemorySlotsError('STATE', problem);
    this.#socket.destroy();
    for (const id of [...this.#pending.keys()]) this.#settle(id)!.reject(this.#failure);
  }
}
