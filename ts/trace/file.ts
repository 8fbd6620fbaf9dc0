import { type FileHandle, open } from 'node:fs/promises';
import { pipeline, Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { MemorySlotsError } from '../core/errors.js';
import { type ReadOptions, readTrace, type Trace } from './reader.js';

const pieceSize = 1 << 18;

/** Settings of {@link readTraceFile}. */
export interface FileOptions extends ReadOptions {
  /** Told now and then how many bytes of the file were read, and its size in bytes (0 if it has none). */
  readonly onProgress?: (read: number, size: number) => void;
}

/**
 * Reads the log in a file, `-` being the standard input. The file is opened when iteration begins, and closed when it
 * ends. Iterating throws `INVALID` for a file that can't be read.
 */
export function readTraceFile(path: string, options: FileOptions = {}): Trace {
  return readTrace(chunks(path, options.onProgress), options);
}

async function* chunks(path: string, onProgress: FileOptions['onProgress']): AsyncGenerator<Uint8Array> {
  if (path === '-') {
    yield* plain(counted(process.stdin, 0, onProgress));
    return;
  }
  try {
    await using file = await open(path);
    const { size } = await file.stat();
    yield* plain(counted(readAhead(file), size, onProgress));
  } catch (error) {
    if (error instanceof Error && 'syscall' in error) {
      throw new MemorySlotsError('INVALID', `the log ${path} can't be read: ${error.message}`, { cause: error });
    }
    throw error;
  }
}

/**
 * Takes gzip off. The reader could do it, but with Node's DecompressionStream a log of 1 GB takes 190 MB of memory,
 * with zlib's own stream 80.
 */
async function* plain(source: AsyncGenerator<Uint8Array>): AsyncGenerator<Uint8Array> {
  const { done, value: first } = await source.next();
  if (done) return;
  if (first[0] !== 0x1f || first[1] !== 0x8b) {
    yield first;
    yield* source;
    return;
  }
  const gunzip = createGunzip({ chunkSize: 1 << 16 });
  // The source uses its buffers again, and a stream reads ahead of its consumer.
  const copies = async function* () {
    yield first.slice();
    for await (const chunk of source) yield chunk.slice();
  };
  pipeline(Readable.from(copies()), gunzip, () => {});
  try {
    yield* gunzip;
  } catch (error) {
    if (error instanceof Error && 'code' in error && String(error.code).startsWith('Z_')) {
      throw new MemorySlotsError('INVALID', `the log's gzip data can't be read: ${error.message}`, { cause: error });
    }
    throw error;
  }
}

/** Reads into one buffer while the consumer works on the other: twice as fast as a stream of the file. */
async function* readAhead(file: FileHandle): AsyncGenerator<Uint8Array> {
  const buffers = [new Uint8Array(pieceSize), new Uint8Array(pieceSize)] as const;
  let pending = file.read(buffers[0], 0, pieceSize);
  try {
    for (let turn: 0 | 1 = 0; ; turn = turn === 0 ? 1 : 0) {
      const { buffer, bytesRead } = await pending;
      if (bytesRead === 0) return;
      pending = file.read(buffers[turn === 0 ? 1 : 0], 0, pieceSize);
      yield buffer.subarray(0, bytesRead);
    }
  } finally {
    // The file must not be closed under a read.
    await pending.catch(() => undefined);
  }
}

async function* counted(
  stream: AsyncIterable<Uint8Array>,
  size: number,
  onProgress: FileOptions['onProgress'],
): AsyncGenerator<Uint8Array> {
  let read = 0;
  for await (const chunk of stream) {
    yield chunk;
    read += chunk.length;
    onProgress?.(read, size);
  }
}
