import { describe, expect, it } from 'vitest';
import { analyze, readTrace } from '../../ts/trace/index.js';
import { calls, replay, text } from './reference.js';

/**
 * A recording played over and over: at its end everything is deleted, so that the next round begins alike. Each round
 * is one piece, and starts a second after the last.
 */
function rounds(count: number) {
  const lines = text('churn-pc-qemu10.0.log')
    .split('\n')
    .filter((line) => line.includes('kvm_set_user_memory'));
  const first = replay(calls(lines.join('\n')));
  const sweep = first.layout.map(({ slot, gpa, hostAddress }) => {
    const address = `gpa=0x${gpa.toString(16)} size=0x0 ua=0x${hostAddress.toString(16)}`;
    return `16380@1795472615.999999:kvm_set_user_memory AddrSpace#0 Slot#${slot} flags=0x0 ${address} guest_memfd=-1 guest_memfd_offset=0x0 ret=0`;
  });
  const round = [...lines, ...sweep];
  // The first transaction of a round continues the sweep before it, so that the second round isn't quite like the first.
  const once = replay(calls(round.join('\n')));
  const twice = replay(calls([...round, ...round].join('\n')));
  const total = (of: (one: typeof once) => number) => of(once) + (of(twice) - of(once)) * (count - 1);
  async function* pieces() {
    for (let index = 0; index < count; index++) {
      const seconds = 1795472615 + index;
      yield new TextEncoder().encode(round.map((line) => `${line.replace(/@\d+/, `@${seconds}`)}\n`).join(''));
    }
  }
  return { pieces: pieces(), updates: round.length, maxSlots: once.maxSlots, total };
}

describe('a log of 1,000,000 updates', () => {
  it('is analysed like the recording that it repeats, in bounded memory', async () => {
    const count = Math.ceil(1_000_000 / rounds(0).updates);
    const { pieces, updates, maxSlots, total } = rounds(count);
    let most = 0;
    async function* watched() {
      let index = 0;
      for await (const piece of pieces) {
        if (index++ % 50 === 0) most = Math.max(most, process.memoryUsage().rss);
        yield piece;
      }
    }
    const start = process.memoryUsage().rss;
    const found = await analyze(readTrace(watched()));
    expect(found.updates).toBe(updates * count);
    expect(found.updates).toBeGreaterThanOrEqual(1_000_000);
    expect(found.transactions).toBe(total(({ transactions }) => transactions));
    expect(found.totalHoles).toBe(total(({ holes }) => holes.length));
    expect(found.maxSlots).toBe(maxSlots);
    expect(found.holes.length).toBe(10_000);
    expect(most - start).toBeLessThan(200 * 2 ** 20);
  }, 120_000);
});
