import { existsSync, readFileSync, readlinkSync } from 'node:fs';

/** Letters of /proc/PID/stat (proc(5)). */
const states: Readonly<Record<string, string>> = {
  R: 'running',
  S: 'sleeping',
  D: 'in uninterruptible sleep',
  T: 'stopped',
  t: 'stopped by a tracer',
  Z: 'a zombie',
  X: 'dead',
};

/** The calling thread's kernel id, or 0 where there is no Linux /proc. */
export function currentThread(): number {
  try {
    return Number(readlinkSync('/proc/thread-self').split('/').at(-1));
  } catch {
    return 0;
  }
}

/** Whether thread `id` of this process exists. True where one can't tell. */
export function threadExists(id: number): boolean {
  return id === 0 || !existsSync('/proc/self/task') || existsSync(`/proc/self/task/${id}`);
}

/**
 * What thread `id` of this process is at, for people: its state and, if it sleeps, the kernel function it sleeps in
 * (`wchan`: `handle_userfault` for a page that a userfaultfd handler is to bring).
 */
export function describeThread(id: number): string {
  if (id === 0) return 'thread unknown';
  try {
    const stat = readFileSync(`/proc/self/task/${id}/stat`, 'latin1');
    // The name stands in parentheses and may hold any character.
    const state = stat.slice(stat.lastIndexOf(')') + 2)[0]!;
    const place = readFileSync(`/proc/self/task/${id}/wchan`, 'latin1');
    const waiting = place === '' || place === '0' ? '' : `, waiting in ${place}`;
    return `thread ${id}, state ${state} (${states[state] ?? 'unknown'})${waiting}`;
  } catch {
    return `thread ${id}, which has ended or can't be looked at`;
  }
}
