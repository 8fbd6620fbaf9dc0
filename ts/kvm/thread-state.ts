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
 * (`wchan`: `handle_userfault` for a page that a userfaultfd handler is to bring). Where the kernel doesn't say, what it
 * may be. Takes a while: for errors.
 */
export function describeThread(id: number): string {
  if (id === 0) return 'thread unknown';
  try {
    const stat = readFileSync(`/proc/self/task/${id}/stat`, 'latin1');
    // The name stands in parentheses and may hold any character.
    const state = stat.slice(stat.lastIndexOf(')') + 2)[0]!;
    const place = readFileSync(`/proc/self/task/${id}/wchan`, 'latin1');
    const waiting = place === '' || place === '0' ? possibleWait() : `, waiting in ${place}`;
    return `thread ${id}, state ${state} (${states[state] ?? 'unknown'})${waiting}`;
  } catch {
    return `thread ${id}, which has ended or can't be looked at`;
  }
}

/**
 * A thread that waits for a page inside the kernel and has a signal that it can't take there, as a kicked vCPU's, doesn't
 * sleep: it looks for the page again and again.
 */
function possibleWait(): string {
  // Ranges registered with a userfaultfd have a flag: missing, write-protected or minor faults (proc(5), smaps).
  const registered = /^VmFlags:.* u[mwi]\b/m.test(readFileSync('/proc/self/smaps', 'latin1'));
  return registered
    ? ', perhaps waiting in handle_userfault: memory of this process is registered with userfaultfd'
    : '';
}
