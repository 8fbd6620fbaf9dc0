import { formatRange, hex, mustBeCount } from '../core/checks.js';
import { errnoName } from '../core/core.js';
import { MemorySlotsError } from '../core/errors.js';
import type { CallHooks, Change, KernelCall } from '../kvm/simulated-kernel.js';
import { describeFlags } from './layout.js';

/** A call that was made, and what became of it. */
export interface RecordedCall extends KernelCall {
  /** What it did to the slots; `nothing` for a call that failed, or that found the slot as it should be. */
  readonly change: Change;
  /** 0 or a negative errno. */
  readonly result: number;
}

/** Remembers all calls that set memory slots. Register it with `hooks` or `kernel.addHooks`. */
export class CallRecorder implements CallHooks {
  readonly #calls: RecordedCall[] = [];
  #change: Change = 'nothing';

  /** The calls so far, in order. */
  get calls(): readonly RecordedCall[] {
    return this.#calls;
  }

  /** The calls so far, a line each: what was done, to which slot, where, and the result. */
  get lines(): string[] {
    return this.#calls.map((call) => `${describeCall(call, call.change)}: ${describeResult(call.result)}`);
  }

  /** Forgets the calls so far. */
  clear(): void {
    this.#calls.length = 0;
  }

  before(): undefined {
    this.#change = 'nothing';
  }

  published(_call: KernelCall, change: Change): void {
    this.#change = change;
  }

  after(call: KernelCall, result: number): void {
    this.#calls.push({ ...call, change: result < 0 ? 'nothing' : this.#change, result });
  }
}

function describeResult(result: number): string {
  return result < 0 ? errnoName(result) : 'ok';
}

/** A call in words: `create slot 3 [0x0, 0x1000) (4 KiB) read-only`. */
export function describeCall(call: KernelCall, change: Change): string {
  const { request } = call;
  if (request === null) return `${call.name} with an unreadable argument`;
  const space = request.slot >>> 16;
  const slot = `slot ${request.slot & 0xffff}${space === 0 ? '' : ` of address space ${space}`}`;
  const deletes = request.size === 0 || request.size === 0n;
  const verb = change === 'nothing' ? (deletes ? 'delete' : 'set') : change;
  if (deletes) return `${verb} ${slot} (GPA ${hex(request.gpa)})`;
  const flags = request.flags === 0 ? '' : ` ${describeFlags(request.flags)}`;
  return `${verb} ${slot} ${formatRange(request.gpa, request.size)}${flags}`;
}

/** Makes chosen calls fail, or take longer. Register it with `hooks` or `kernel.addHooks`. */
export class Faults implements CallHooks {
  readonly #failures = new Map<number, number>();
  readonly #delays = new Map<number, number>();
  #calls = 0;

  /** The `nth` call from now on, counted from 1, does nothing and fails with `errno` (a positive number). */
  fail(nth: number, errno: number): this {
    if (!(Number.isInteger(errno) && errno > 0)) {
      throw new MemorySlotsError('INVALID', `an errno is a positive integer, not ${errno}`);
    }
    this.#failures.set(this.#number(nth), errno);
    return this;
  }

  /** The `nth` call from now on, counted from 1, returns `microseconds` later: a hole that it made lasts longer. */
  delay(nth: number, microseconds: number): this {
    this.#delays.set(this.#number(nth), mustBeCount('a delay', microseconds));
    return this;
  }

  /** Takes back what hasn't happened yet. */
  clear(): void {
    this.#failures.clear();
    this.#delays.clear();
  }

  before(): number | undefined {
    return this.#failures.get(++this.#calls);
  }

  after(): void {
    const delay = this.#delays.get(this.#calls);
    if (delay === undefined) return;
    const end = performance.now() + delay / 1000;
    while (performance.now() < end);
  }

  #number(nth: number): number {
    if (!(mustBeCount('the number of a call', nth) > 0)) {
      throw new MemorySlotsError('INVALID', 'calls are counted from 1');
    }
    return this.#calls + nth;
  }
}
