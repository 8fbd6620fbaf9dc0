import { describe, expect, it } from 'vitest';
import { gateBits } from '../../ts/kvm/gate.js';
import { openCore } from './core.js';

const { shut, closed, paused } = gateBits;
const keepOut = shut | closed | paused;

/** A gate whose word is `word`. */
function gateOf(word: number) {
  const { arena, core } = openCore();
  const gate = arena.allocate(128, 128);
  const { words } = arena;
  words[gate >>> 2] = word;
  return { core, gate, word: () => words[gate >>> 2] };
}

describe('a gate', () => {
  it('lets everybody in while nothing keeps them out, and counts them', () => {
    const { core, gate, word } = gateOf(gateBits.awaited);
    expect([core.gate_enter(gate, keepOut), core.gate_enter(gate, keepOut)]).toEqual([1, 1]);
    expect(word()).toBe(gateBits.awaited | 2);
  });

  it.each([shut, closed, paused])('that has bit %i lets nobody in, and is as it was', (bit) => {
    // One is inside already, which makes no difference.
    const { core, gate, word } = gateOf(bit | 1);
    expect(core.gate_enter(gate, keepOut)).toBe(0);
    expect(word()).toBe(bit | 1);
  });

  it('tells who leaves whether it is shut', () => {
    const { core, gate, word } = gateOf(shut | 2);
    expect(core.gate_leave(gate) & shut).toBe(shut);
    expect(word()).toBe(shut | 1);
    const open = gateOf(1);
    expect(open.core.gate_leave(open.gate) & shut).toBe(0);
    expect(open.word()).toBe(0);
  });
});
