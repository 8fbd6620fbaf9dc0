import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { lstatSync, mkdirSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MemorySlotsError } from '../core/errors.js';
import type { Machine, PublishedCommit } from '../kvm/machine.js';
import { formatEvent, type LoggedEvent, type SlotUpdate } from '../trace/index.js';

/** Bytes that may wait in a connection before commits are told in sum instead of one by one. */
const mostWaiting = 4 * 1024 * 1024;

/** A machine that is shown live. */
export interface SharedMachine {
  /** Resolves when the viewer is gone, or {@link close} was called. */
  readonly ended: Promise<void>;
  close(): void;
}

/**
 * The socket where `memslots view --live` waits for programs of this user: in a folder that nobody else can enter,
 * which is made if it isn't there. Throws `STATE` if somebody else has made it.
 */
export function liveSocketPath(): string {
  const user = process.getuid?.() ?? 0;
  const folder = join(process.env.XDG_RUNTIME_DIR ?? tmpdir(), `kvm-memslots-${user}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { uid, mode } = lstatSync(folder);
  if (uid !== user || (mode & 0o077) !== 0) {
    throw new MemorySlotsError(
      'STATE',
      `${folder} isn't this user's alone: what is shown live could be read by others`,
    );
  }
  return join(folder, 'view.sock');
}

/**
 * Shows a machine's memory slots in the browser, live: run `memslots view --live`, then make this one call.
 *
 * ```js
 * await shareMachine(machine);
 * ```
 *
 * The slots there are now are told first, then every commit. Told to the viewer are addresses (host-virtual ones too),
 * sizes and flags, never contents of memory. It costs a commit some microseconds, keeps no process alive, and ends by
 * itself when the viewer does. Owner thread only. Rejects with `STATE` if no viewer is waiting.
 */
export async function shareMachine(machine: Machine): Promise<SharedMachine> {
  const path = liveSocketPath();
  const socket = connect(path);
  await new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('error', (error) => {
      const message = `no viewer is waiting at ${path} (${error.message}): run 'memslots view --live' first`;
      reject(new MemorySlotsError('STATE', message, { cause: error }));
    });
  });
  socket.unref();
  return new Sharing(machine, socket);
}

class Sharing implements SharedMachine {
  readonly ended: Promise<void>;
  readonly #machine: Machine;
  readonly #socket: Socket;
  readonly #onCommit = (message: unknown) => this.#commit(message as PublishedCommit);
  /** The slots as the viewer knows them. */
  readonly #told = new Map<string, SlotUpdate>();
  #commits = 0;
  #behind = false;

  constructor(machine: Machine, socket: Socket) {
    this.#machine = machine;
    this.#socket = socket;
    this.ended = new Promise((resolve) => {
      socket.once('close', () => {
        unsubscribe('kvm-memslots:commit', this.#onCommit);
        resolve();
      });
    });
    // A viewer that went away is no error of the program's.
    socket.on('error', () => {});
    socket.on('drain', () => this.#catchUp());
    this.#tellSum();
    subscribe('kvm-memslots:commit', this.#onCommit);
  }

  close(): void {
    this.#socket.end();
  }

  #commit({ machine, calls, microseconds, windowMicroseconds }: PublishedCommit): void {
    if (machine !== this.#machine) return;
    if (this.#socket.writableLength > mostWaiting) this.#behind = true;
    if (this.#behind) return;
    const end = now();
    const start = end - microseconds;
    // When each call was made isn't known: they are spread over the commit.
    const each = microseconds / Math.max(1, calls.length);
    const updates = calls.map(({ kind, slot }, index) =>
      updateOf({ ...slot, size: kind === 'delete' ? 0 : slot.size }, start + (index + 1) * each),
    );
    const transaction = ++this.#commits;
    const inWindow: LoggedEvent[] =
      windowMicroseconds === undefined
        ? updates
        : [
            { kind: 'window-begin', ...at(end - windowMicroseconds), transaction },
            ...updates,
            { kind: 'window-end', ...at(end), transaction },
          ];
    this.#tell([{ kind: 'commit', ...at(start), transaction }, ...inWindow]);
  }

  #catchUp(): void {
    if (!this.#behind) return;
    this.#behind = false;
    this.#tellSum();
  }

  /** What has changed since the viewer was last told, as one commit. */
  #tellSum(): void {
    const time = now();
    const present = new Map<string, SlotUpdate>();
    for (const addressSpace of this.#machine.smm === undefined ? [0] : [0, 1]) {
      for (const { id, gpa, size, flags, memory, offset } of this.#machine.slots(addressSpace)) {
        const update = updateOf({ addressSpace, id, gpa, size, flags, host: memory.hostAddress + offset }, time);
        present.set(keyOf(update), update);
      }
    }
    const stays = (a: SlotUpdate, b: SlotUpdate | undefined) =>
      b !== undefined && a.gpa === b.gpa && a.size === b.size && a.flags === b.flags && a.hostAddress === b.hostAddress;
    const deletes = [...this.#told.values()].filter((slot) => !stays(slot, present.get(keyOf(slot))));
    const creates = [...present.values()].filter((slot) => !stays(slot, this.#told.get(keyOf(slot))));
    this.#tell([
      { kind: 'commit', ...at(time), transaction: ++this.#commits },
      ...deletes.map((slot) => ({ ...slot, ...at(time), size: 0 })),
      ...creates,
    ]);
  }

  #tell(events: readonly LoggedEvent[]): void {
    for (const event of events) {
      if (event.kind !== 'slot') continue;
      if (event.size === 0) this.#told.delete(keyOf(event));
      else this.#told.set(keyOf(event), event);
    }
    this.#socket.write(`${events.map(formatEvent).join('\n')}\n`);
  }
}

function keyOf({ addressSpace, slot }: SlotUpdate): string {
  return `${addressSpace}:${slot}`;
}

/** Microseconds since the epoch. */
function now(): number {
  return (performance.timeOrigin + performance.now()) * 1000;
}

function at(time: number): { line: number; time: number; thread: number } {
  return { line: 0, time, thread: process.pid };
}

function updateOf(
  slot: { addressSpace: number; id: number; gpa: number; size: number; flags: number; host: number },
  time: number,
): SlotUpdate {
  return {
    kind: 'slot',
    ...at(time),
    vm: '',
    addressSpace: slot.addressSpace,
    slot: slot.id,
    flags: slot.flags & 7,
    gpa: slot.gpa,
    size: slot.size,
    hostAddress: slot.host,
    guestMemfd: undefined,
    result: 0,
  };
}
