import { formatSize, hex } from '../core/checks.js';
import type { AnalysisObserver, Hole, TransactionSummary } from './analysis.js';
import type { SlotUpdate } from './event.js';

/** The track of a VM's transactions; slots have those above it. */
const transactionTrack = 1;

/**
 * Writes Chrome's trace-event JSON, which Perfetto opens: each VM is a process, each slot id a track with a slice for
 * each slot that had it, the transactions a track of slices, holes asynchronous slices. Times are the log's, in
 * microseconds; a log without times is drawn with a microsecond for each line.
 */
export class PerfettoTrace implements AnalysisObserver {
  #text = '{"displayTimeUnit":"ms","traceEvents":[\n';
  #separator = '';
  #end = 0;
  #holes = 0;
  readonly #processes = new Map<string, number>();
  readonly #tracks = new Set<string>();

  /** What was written since the last call. */
  take(): string {
    const text = this.#text;
    this.#text = '';
    return text;
  }

  /** The last piece of the file: after the analysis has finished. */
  finish(): string {
    return `${this.take()}\n]}\n`;
  }

  slot(slot: SlotUpdate, until: SlotUpdate | undefined): void {
    const { addressSpace, gpa, size, hostAddress, flags } = slot;
    const track = 2 + addressSpace * 0x10000 + slot.slot;
    const start = timeOf(slot);
    const end = until === undefined ? Math.max(this.#end, start) : timeOf(until);
    this.#write({
      ph: 'X',
      ...this.#track(slot.vm, track, `address space ${addressSpace} slot ${slot.slot}`),
      name: `${formatSize(size)} at ${hex(gpa)}`,
      cat: 'slot',
      ts: start,
      dur: Math.max(end - start, 0),
      args: { gpa: hex(gpa), size: hex(size), hostAddress: hex(hostAddress), flags, line: slot.line },
    });
  }

  transaction(summary: TransactionSummary): void {
    const { transaction, vm, addressSpace, line, time, endTime, deletes, creates, bytesTornDown, holes } = summary;
    const start = time ?? line;
    const end = Math.max(endTime ?? start, start);
    this.#end = Math.max(this.#end, end);
    this.#write({
      ph: 'X',
      ...this.#track(vm, transactionTrack, 'transactions'),
      name: `transaction ${transaction}`,
      cat: 'transaction',
      ts: start,
      dur: end - start,
      args: { addressSpace, line, deletes, creates, bytesTornDown, holes },
    });
  }

  hole({ vm, transaction, gpa, size, reshape, deleted, created }: Hole): void {
    const { pid } = this.#track(vm, transactionTrack, 'transactions');
    const common = {
      pid,
      tid: transactionTrack,
      cat: 'hole',
      id: this.#holes++,
      name: `${formatSize(size)} at ${hex(gpa)} unmapped`,
    };
    const start = timeOf(deleted);
    this.#write({ ph: 'b', ...common, ts: start, args: { transaction, gpa: hex(gpa), size: hex(size), reshape } });
    this.#write({ ph: 'e', ...common, ts: Math.max(timeOf(created), start) });
  }

  #track(vm: string, tid: number, name: string): { pid: number; tid: number } {
    let pid = this.#processes.get(vm);
    if (pid === undefined) {
      pid = this.#processes.size + 1;
      this.#processes.set(vm, pid);
      this.#write({ ph: 'M', pid, name: 'process_name', args: { name: `VM ${vm}` } });
    }
    const key = `${pid}/${tid}`;
    if (!this.#tracks.has(key)) {
      this.#tracks.add(key);
      this.#write({ ph: 'M', pid, tid, name: 'thread_name', args: { name } });
      this.#write({ ph: 'M', pid, tid, name: 'thread_sort_index', args: { sort_index: tid } });
    }
    return { pid, tid };
  }

  #write(event: object): void {
    this.#text += this.#separator + JSON.stringify(event);
    this.#separator = ',\n';
  }
}

function timeOf({ time, line }: SlotUpdate): number {
  return time ?? line;
}
