import { closeSync, openSync, writeSync } from 'node:fs';
import { MemorySlotsError } from '../core/errors.js';
import { formatEvent, type LoggedEvent } from '../trace/format.js';

/** Characters that are gathered before they are written. */
const batch = 1 << 16;

/** A log of slot calls in QEMU's form, as `--log FILE` writes it. */
export class SlotLog {
  readonly #file: number;
  #text = '';

  /** Creates or empties the file. Throws `INVALID` if that can't be done. */
  constructor(path: string) {
    try {
      this.#file = openSync(path, 'w');
    } catch (error) {
      throw new MemorySlotsError('INVALID', `the log ${path} can't be written: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }

  /** For a machine's `onEvent`. */
  readonly write = (event: LoggedEvent): void => {
    this.#text += `${formatEvent({ ...event, thread: process.pid })}\n`;
    if (this.#text.length > batch) this.#flush();
  };

  close(): void {
    this.#flush();
    closeSync(this.#file);
  }

  #flush(): void {
    writeSync(this.#file, this.#text);
    this.#text = '';
  }
}
