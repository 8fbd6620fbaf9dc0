import { type Call, format, formatResult, Player, type Subject } from './kvm-calls.js';
import { type Edges, RandomCalls } from './kvm-random.js';

type Pair<T> = readonly [T, T];

/** Makes a new machine to compare. */
export type MakeSubject = () => Subject;

/** The first call on which two kernels disagree, after the fewest others that make them. */
export interface Mismatch {
  readonly calls: readonly Call[];
  /** What each said to the last call. */
  readonly answers: Pair<string>;
}

/** What a comparison found. */
export interface Comparison {
  readonly calls: number;
  readonly mismatch: Mismatch | undefined;
}

/** Calls after which both machines are replaced: what a mismatch is looked for in. */
const episodeCalls = 10_000;

/**
 * Makes `count` random calls on two kernels, and stops at the first to which they answer differently. `report` is told
 * how many calls were made, from time to time.
 */
export function compare(
  makers: Pair<MakeSubject>,
  edges: Edges,
  count: number,
  seed: number,
  report: (calls: number) => void = () => {},
): Comparison {
  for (let done = 0, episode = 0; done < count; episode++) {
    const random = new RandomCalls((seed + Math.imul(episode, 0x9e3779b1)) >>> 0, edges);
    const calls: Call[] = [];
    const players: Pair<Player> = [new Player(makers[0]()), new Player(makers[1]())];
    try {
      for (; calls.length < episodeCalls && done < count; done++) {
        const call = random.next();
        calls.push(call);
        const { result, difference } = ask(players, call);
        if (difference !== undefined) return { calls: done + 1, mismatch: shrink(makers, calls, difference) };
        if (result === 0) random.accepted(call);
      }
    } finally {
      for (const player of players) player.close();
    }
    report(done);
  }
  return { calls: count, mismatch: undefined };
}

/** What the first kernel says to `call`, and both answers if they differ. */
function ask(players: Pair<Player>, call: Call): { result: number; difference: Pair<string> | undefined } {
  const [first, second] = [players[0].play(call), players[1].play(call)];
  let difference: Pair<string> | undefined;
  if (first !== second) difference = [formatResult(first), formatResult(second)];
  else if (call.kind === 'get dirty log' && first === 0) {
    const [a, b] = [players[0].bitmap, players[1].bitmap];
    const at = a.findIndex((byte, index) => byte !== b[index]);
    if (at >= 0) difference = [`0, and byte ${at} of the log is ${a[at]}`, `0, and byte ${at} of the log is ${b[at]}`];
  }
  return { result: first, difference };
}

/** The calls up to the first difference when `calls` are made on new machines; undefined if there is none. */
function replay(makers: Pair<MakeSubject>, calls: readonly Call[]): Mismatch | undefined {
  const players: Pair<Player> = [new Player(makers[0]()), new Player(makers[1]())];
  try {
    for (const [index, call] of calls.entries()) {
      const { difference } = ask(players, call);
      if (difference !== undefined) return { calls: calls.slice(0, index + 1), answers: difference };
    }
    return undefined;
  } finally {
    for (const player of players) player.close();
  }
}

/** Leaves out calls, in ever smaller groups, as long as the rest still makes the kernels disagree. */
function shrink(makers: Pair<MakeSubject>, calls: readonly Call[], answers: Pair<string>): Mismatch {
  let best: Mismatch = { calls, answers };
  for (let group = Math.ceil(calls.length / 2); ; group = Math.ceil(group / 2)) {
    for (let at = Math.max(0, best.calls.length - 1 - group); ; at = Math.max(0, at - group)) {
      // The last call is where they differ: it stays.
      const end = Math.min(at + group, best.calls.length - 1);
      const rest = [...best.calls.slice(0, at), ...best.calls.slice(end)];
      best = (end > at ? replay(makers, rest) : undefined) ?? best;
      if (at === 0) break;
    }
    if (group === 1) return best;
  }
}

/** The sequence and the answers, one call a line. */
export function describe({ calls, answers }: Mismatch, names: Pair<string>): string {
  const lines = calls.map((call, index) => `${String(index + 1).padStart(4)}  ${format(call)}`);
  return [...lines, ...names.map((name, index) => `      ${name}: ${answers[index as 0 | 1]}`)].join('\n');
}
