import { lstatSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { PassThrough, type Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { MemorySlotsError } from '../core/errors.js';
import { liveSocketPath } from '../replay/live.js';
import { formatEvent, Grouper, longestLine, type SlotUpdate, TraceParser } from '../trace/index.js';
import { Qmp } from './qmp.js';
import type { ServedTrace } from './view-server.js';

/** Bytes of a live trace that are kept for pages that come later; older ones are told in sum. */
const mostHistory = 8 * 1024 * 1024;
/** Bytes that may wait for a page that doesn't read; it then loses its connection, and comes back. */
const mostWaiting = 16 * 1024 * 1024;
/** Milliseconds between two looks at a QEMU, and before one that went away is tried again. */
const lookInterval = 250;
const retryInterval = 1_000;

/** A trace that goes on: what pages that are open hear, and what those hear first that come later. */
class Feed {
  readonly #snapshot: () => string;
  readonly #readers = new Set<PassThrough>();
  #history: string[] = [];
  #bytes = 0;

  /** `snapshot` says in the trace's own form what all that was pushed so far comes to. */
  constructor(snapshot: () => string) {
    this.#snapshot = snapshot;
  }

  push(text: string): void {
    this.#history.push(text);
    this.#bytes += text.length;
    for (const reader of this.#readers) {
      if (reader.readableLength + reader.writableLength > mostWaiting) reader.destroy();
      else reader.write(text);
    }
    if (this.#bytes <= mostHistory) return;
    this.#history = [this.#snapshot()];
    this.#bytes = this.#history[0]!.length;
  }

  /** Ends what pages read, and forgets it: something else begins. */
  restart(): void {
    this.#history = [];
    this.#bytes = 0;
    for (const reader of this.#readers) reader.end();
    this.#readers.clear();
  }

  open(): Readable {
    const reader = new PassThrough();
    for (const text of this.#history) reader.write(text);
    this.#readers.add(reader);
    reader.on('close', () => this.#readers.delete(reader));
    return reader;
  }
}

/** A live trace being served, until it is closed. */
export interface LiveSource {
  readonly trace: ServedTrace;
  close(): void;
}

/**
 * Waits for a program that calls `shareMachine`, on this user's own socket; a program that comes later takes the place
 * of the one before. `note` is told who comes and goes. Throws `STATE` if another viewer waits there.
 */
export async function followPrograms(note: (text: string) => void): Promise<LiveSource & { readonly path: string }> {
  const path = liveSocketPath();
  let layout = new Grouper();
  let parser = new TraceParser({ lenient: true });
  const feed = new Feed(() => {
    const slots = [...layout.layouts.values()].flatMap((slots) => [...slots]);
    return [...slots.map((slot: SlotUpdate) => formatEvent(slot)), ''].join('\n');
  });
  let current: Socket | undefined;
  const server = createServer((socket) => {
    current?.destroy();
    current = socket;
    layout = new Grouper();
    parser = new TraceParser({ lenient: true });
    feed.restart();
    note('a program has connected');
    socket.setEncoding('latin1');
    let rest = '';
    socket.on('data', (chunk: string) => {
      if (current !== socket) return;
      // Whole lines only, so that a page may begin to read between any two pieces.
      const end = chunk.lastIndexOf('\n') + 1;
      const text = end === 0 ? '' : rest + chunk.slice(0, end);
      rest = end === 0 ? rest + chunk : chunk.slice(end);
      if (rest.length > longestLine) socket.destroy();
      if (text === '') return;
      for (const event of parser.push(Buffer.from(text, 'latin1'))) layout.push(event);
      feed.push(text);
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      if (current === socket) note('the program has gone');
    });
  });
  await removeStale(path);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
  return {
    path,
    trace: { name: 'a program', live: true, open: () => feed.open() },
    close: () => {
      current?.destroy();
      server.close();
      feed.restart();
    },
  };
}

/** Takes away a socket that a viewer left behind. Throws `STATE` if it is still there to answer. */
async function removeStale(path: string): Promise<void> {
  try {
    lstatSync(path);
  } catch {
    return;
  }
  const answers = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (answers) throw new MemorySlotsError('STATE', `another 'memslots view --live' is waiting at ${path}`);
  rmSync(path, { force: true });
}

/**
 * Looks at the flat views of the QEMU whose QMP socket is `path`, again and again, and tells when they have changed. A
 * QEMU that goes away is awaited. Throws `STATE` or `TIMEOUT` if it can't be reached at first.
 */
export async function followQemu(path: string, note: (text: string) => void): Promise<LiveSource> {
  const ended = new AbortController();
  let last = '';
  const feed = new Feed(() => last);
  const look = async (qmp: Qmp): Promise<void> => {
    while (!ended.signal.aborted) {
      const flat = await qmp.monitor('info mtree -f');
      // An empty line ends the last view.
      const text = `${flat.replaceAll('\r', '').trimEnd()}\n\n`;
      if (text !== last) {
        last = text;
        feed.push(text);
      }
      await sleep(lookInterval, undefined, { signal: ended.signal });
    }
  };
  let qmp: Qmp | undefined = await Qmp.connect(path, ended.signal);
  const follow = async (): Promise<void> => {
    while (!ended.signal.aborted) {
      try {
        qmp ??= await Qmp.connect(path, ended.signal);
        await look(qmp);
      } catch (error) {
        if (qmp !== undefined && !ended.signal.aborted) note((error as Error).message);
        qmp?.close();
        qmp = undefined;
        await sleep(retryInterval, undefined, { signal: ended.signal }).catch(() => {});
      }
    }
    qmp?.close();
  };
  ended.signal.addEventListener('abort', () => qmp?.close());
  void follow();
  return {
    trace: { name: 'QEMU', live: true, open: () => feed.open() },
    close: () => {
      ended.abort();
      feed.restart();
    },
  };
}
