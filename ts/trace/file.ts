import { open } from 'node:fs/promises';
import { MemorySlotsError } from '../core/errors.js';
import { type ReadOptions, readTrace, type Trace } from './reader.js';

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
    yield* counted(process.stdin, 0, onProgress);
    return;
  }
  try {
    const file = await open(path);
    const { size } = await file.stat();
    yield* counted(file.createReadStream({ highWaterMark: 1 << 18 }), size, onProgress);
  } catch (error) {
    if (error instanceof Error && 'syscall' in error) {
      throw new MemorySlotsError('INVALID', `the log ${path} can't be read: ${error.message}`, { cause: error });
    }
    throw error;
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
