import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { AddressSpace, type MemoryListener, MemoryMap, type Section } from '../../ts/memory/address-space.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { fullRender, MapModel, Mirror, plainRange, Random } from './model.js';

/** A map of one address space with `a` at 0 and `b` at 0x2000. */
function twoRegions() {
  const map = new MemoryMap();
  const root = MemoryRegion.container(map, 'root', 1n << 64n);
  const [a, b] = [MemoryRegion.ram(map, 'a', 0x1000), MemoryRegion.ram(map, 'b', 0x1000)];
  root.add(a, 0);
  root.add(b, 0x2000);
  return { map, root, a, b, space: new AddressSpace(map, 'memory', root) };
}

/** Writes down what it is told, as `name: what region@gpa`. */
function recorder(log: string[], name: string, more: MemoryListener = {}): MemoryListener {
  const note = (what: string) => (section: Section) => {
    const { region, gpa, addressSpace } = section;
    log.push(
      `${name}: ${what} ${region.name}@${gpa.toString(16)}${addressSpace.index === 0 ? '' : ` of ${addressSpace.index}`}`,
    );
  };
  return {
    begin: () => void log.push(`${name}: begin`),
    delete: note('delete'),
    add: note('add'),
    logStart: note('logStart'),
    logStop: note('logStop'),
    commit: () => void log.push(`${name}: commit`),
    ...more,
  };
}

describe('a listener', () => {
  test('is told the map when attached and the opposite when detached, and nothing more', () => {
    const { map, a, space } = twoRegions();
    const log: string[] = [];
    const handle = map.addListener(recorder(log, 'l'), [space]);
    expect(log.splice(0)).toEqual(['l: begin', 'l: add a@0', 'l: add b@2000', 'l: commit']);
    handle.detach();
    expect(log.splice(0)).toEqual(['l: begin', 'l: delete a@0', 'l: delete b@2000', 'l: commit']);
    handle.detach();
    a.setAddress(0x8000);
    expect(log).toEqual([]);
  });

  test('hears begin and commit once a transaction, all deletes before all adds, by address space and address', () => {
    const { map, root, a, b, space } = twoRegions();
    const second = new AddressSpace(map, 'second', MemoryRegion.alias(map, 'all', root, 0, 0x10000));
    const log: string[] = [];
    map.addListener(recorder(log, 'l'), [second, space]);
    log.length = 0;
    map.transaction(() => {
      b.setAddress(0x4000);
      a.setAddress(0x6000);
      a.setAddress(0x5000);
    });
    expect(log).toEqual([
      'l: begin',
      'l: delete a@0',
      'l: delete b@2000',
      'l: delete a@0 of 1',
      'l: delete b@2000 of 1',
      'l: add b@4000',
      'l: add a@5000',
      'l: add b@4000 of 1',
      'l: add a@5000 of 1',
      'l: commit',
    ]);
  });

  test('hears nothing of edits that come to nothing, or of address spaces it does not follow', () => {
    const { map, a, root, space } = twoRegions();
    const other = new AddressSpace(map, 'other', MemoryRegion.container(map, 'other root', 0x10000));
    const log: string[] = [];
    map.addListener(recorder(log, 'l'), [other]);
    map.addListener(recorder(log, 'm'), [space]);
    log.length = 0;
    map.transaction(() => {
      a.setAddress(0x8000);
      a.setAddress(0);
    });
    root.add(MemoryRegion.container(map, 'empty', 0x1000), 0);
    map.transaction(() => undefined);
    expect(log).toEqual([]);
    other.root.add(MemoryRegion.ram(map, 'r', 0x1000), 0);
    expect(log).toEqual(['l: begin', 'l: add r@0 of 1', 'l: commit']);
  });

  test('hears log start and stop for a range that stays, and a mark on a range that comes', () => {
    const { map, a, b, space } = twoRegions();
    const log: string[] = [];
    const marks: boolean[] = [];
    map.addListener(recorder(log, 'l', { add: (section) => void marks.push(section.logging) }), [space]);
    log.length = 0;
    b.setLogging(true);
    b.setLogging(false);
    map.transaction(() => {
      a.setLogging(true);
      a.setAddress(0x1000);
    });
    expect(log).toEqual([
      ...['l: begin', 'l: logStart b@2000', 'l: commit'],
      ...['l: begin', 'l: logStop b@2000', 'l: commit'],
      ...['l: begin', 'l: delete a@0', 'l: commit'],
    ]);
    expect(marks).toEqual([false, false, true]);
  });

  test('hears of every range that stays if it wants to, in order with those that come', () => {
    const { map, root, b, space } = twoRegions();
    const log: string[] = [];
    const unchanged = ({ region }: Section) => void log.push(`l: unchanged ${region.name}`);
    map.addListener(recorder(log, 'l', { unchanged }), [space]);
    log.length = 0;
    map.transaction(() => {
      root.add(MemoryRegion.ram(map, 'c', 0x1000), 0x1000);
      b.setLogging(true);
    });
    expect(log).toEqual([
      'l: begin',
      'l: unchanged a',
      'l: add c@1000',
      'l: unchanged b',
      'l: logStart b@2000',
      'l: commit',
    ]);
  });

  test('hears in order of priority, with deletes the other way round, the first attached first among equals', () => {
    const { map, a, space } = twoRegions();
    const log: string[] = [];
    map.addListener(recorder(log, 'late', { priority: 10 }), [space]);
    map.addListener(recorder(log, 'early', { priority: -1 }), [space]);
    map.addListener(recorder(log, 'late too', { priority: 10 }), [space]);
    log.length = 0;
    a.setAddress(0x1000);
    const told = (what: string) => log.filter((line) => line.includes(what)).map((line) => line.split(':')[0]);
    expect(told('begin')).toEqual(['early', 'late', 'late too']);
    expect(told('delete')).toEqual(['late too', 'late', 'early']);
    expect(told('add')).toEqual(['early', 'late', 'late too']);
    expect(told('commit')).toEqual(['early', 'late', 'late too']);
    expect(log.findIndex((line) => line.includes('add'))).toBeGreaterThan(
      log.findLastIndex((line) => line.includes('delete')),
    );
  });

  test('must not edit the map, nor come or go, while it is told', () => {
    const { map, a, b, space } = twoRegions();
    const handle = map.addListener(new Mirror(), [space]);
    const attempts = [
      () => b.setEnabled(false),
      () => map.begin(),
      () => map.addListener({}, [space]),
      () => handle.detach(),
      () => new AddressSpace(map, 'more', space.root),
    ];
    for (const attempt of attempts) {
      const { detach } = map.addListener({ add: ({ region }) => void (region === a && a.address !== 0 && attempt()) }, [
        space,
      ]);
      const view = space.view;
      expect(() => a.setAddress(0x8000)).toThrow(expect.objectContaining({ code: 'STATE' }));
      expect(space.view).toBe(view);
      expect(a.address).toBe(0);
      detach();
    }
    expect(map.addressSpaces).toEqual([space]);
  });

  test('must not edit the map either while it is attached or detached inside a transaction', () => {
    const { map, a, space } = twoRegions();
    const edits: unknown[] = [];
    const edit = () => {
      try {
        a.setAddress(0x8000);
      } catch (error) {
        edits.push((error as { code?: string }).code);
      }
    };
    map.transaction(() => {
      const { detach } = map.addListener({ add: edit, delete: edit }, [space]);
      detach();
    });
    expect(edits.length).toBeGreaterThan(1);
    expect(new Set(edits)).toEqual(new Set(['STATE']));
    expect(a.address).toBe(0);
  });

  test('is refused for no address space, one given twice, or one of another map', () => {
    const { map, space } = twoRegions();
    const foreign = twoRegions().space;
    for (const spaces of [[], [space, space], [foreign]]) {
      expect(() => map.addListener({}, spaces)).toThrow(expect.objectContaining({ code: 'INVALID' }));
    }
  });

  test('that throws when attached is not attached, and one that throws when detached stays', () => {
    const { map, a, space } = twoRegions();
    let refuse = true;
    let commits = 0;
    const listener = {
      commit: () => {
        if (refuse) throw new Error('no');
        commits++;
      },
    };
    expect(() => map.addListener(listener, [space])).toThrow('no');
    refuse = false;
    a.setAddress(0x1000);
    expect(commits).toBe(0);
    const handle = map.addListener(listener, [space]);
    refuse = true;
    expect(() => handle.detach()).toThrow('no');
    refuse = false;
    a.setAddress(0x3000);
    expect(commits).toBe(2);
  });
});

describe('a listener that refuses a commit', () => {
  /** Fails in `method` when told to, having put itself back as the contract asks of a commit that throws. */
  class Refusing extends Mirror {
    refuse: 'begin' | 'delete' | 'add' | 'commit' | undefined;
    #saved: Section[][] = [];

    constructor(
      priority: number,
      readonly spaces: readonly AddressSpace[],
    ) {
      super(priority);
    }

    /** Throws once if it is to refuse `method`. */
    #maybe(method: string): void {
      if (this.refuse !== method) return;
      this.refuse = undefined;
      throw new Error('refused');
    }

    override begin(): void {
      this.#maybe('begin');
      this.#saved = this.spaces.map((space) => this.ranges(space) as Section[]);
      super.begin();
    }

    override delete(section: Section): void {
      this.#maybe('delete');
      super.delete(section);
    }

    override add(section: Section): void {
      this.#maybe('add');
      super.add(section);
    }

    override commit(): void {
      super.commit();
      if (this.refuse !== 'commit') return;
      // What it owes the map: to hold again what it held at begin.
      super.begin();
      for (const space of this.spaces) for (const range of this.ranges(space)) super.delete(range as Section);
      for (const section of this.#saved.flat()) super.add(section);
      super.commit();
      this.#maybe('commit');
    }
  }

  test.each(['begin', 'delete', 'add', 'commit'] as const)(
    'leaves tree, views, and all listeners as they were, throwing from %s of any of three',
    (method) => {
      fc.assert(
        fc.property(fc.integer({ min: 0, max: 2 ** 31 }), fc.integer({ min: 0, max: 2 }), (seed, which) => {
          const random = new Random(seed);
          const model = new MapModel(random, 12);
          for (let step = 0; step < 20; step++) model.step();
          const mirrors = [0, 1, 2].map((priority) => new Refusing(priority, model.spaces));
          for (const mirror of mirrors) model.map.addListener(mirror, model.spaces);
          const held = () => mirrors.map((mirror) => model.spaces.map((space) => mirror.ranges(space).map(plainRange)));
          for (let round = 0; round < 8; round++) {
            const [before, views] = [held(), model.spaces.map((space) => space.view)];
            let refused = false;
            model.undoneBy(
              () => {
                mirrors[which]!.refuse = method;
                model.map.transaction(() => {
                  for (let more = random.below(5); more >= 0; more--) model.step();
                });
              },
              (error) => {
                refused = true;
                expect((error as Error).message).toBe('refused');
              },
            );
            mirrors[which]!.refuse = undefined;
            if (refused) {
              expect(held()).toEqual(before);
              expect(model.spaces.map((space) => space.view)).toEqual(views);
            }
            for (const space of model.spaces)
              expect(space.view.ranges.map(plainRange)).toEqual(fullRender(space).ranges.map(plainRange));
            model.step();
            for (const space of model.spaces) {
              expect(space.view.ranges.map(plainRange)).toEqual(fullRender(space).ranges.map(plainRange));
              for (const mirror of mirrors)
                expect(mirror.ranges(space).map(plainRange)).toEqual(space.view.ranges.map(plainRange));
            }
          }
        }),
        { numRuns: 60 },
      );
    },
  );

  test('has the earlier ones told the opposite and the later ones told rollback, the latest first', () => {
    const { map, a, space } = twoRegions();
    const log: string[] = [];
    let refuse = false;
    const commit = () => {
      if (refuse) throw new Error('refused');
    };
    map.addListener(recorder(log, '1'), [space]);
    map.addListener({ commit }, [space]);
    map.addListener(recorder(log, '3', { rollback: () => void log.push('3: rollback') }), [space]);
    map.addListener(recorder(log, '4'), [space]);
    log.length = 0;
    refuse = true;
    expect(() => a.setAddress(0x1000)).toThrow('refused');
    const undone = log.slice(log.indexOf('1: commit') + 1);
    expect(undone).toEqual([
      ...['4: commit', '4: begin', '4: delete a@1000', '4: add a@0', '4: commit'],
      '3: rollback',
      ...['1: begin', '1: delete a@1000', '1: add a@0', '1: commit'],
    ]);
    expect(a.address).toBe(0);
  });

  test('has the others find tree and views as they were when they are brought back', () => {
    const { map, a, space } = twoRegions();
    const seen: [string, unknown, unknown][] = [];
    const look = (what: string) => () => void seen.push([what, a.address, space.view.ranges[0]?.gpa]);
    let refuse = false;
    map.addListener({ commit: look('1') }, [space]);
    map.addListener(
      {
        commit: () => {
          if (refuse) throw new Error('refused');
        },
      },
      [space],
    );
    map.addListener({ commit: look('3') }, [space]);
    map.addListener({ begin: () => undefined, rollback: look('4') }, [space]);
    seen.length = 0;
    refuse = true;
    expect(() => a.setAddress(0x1000)).toThrow('refused');
    expect(seen).toEqual([
      ['1', 0x1000, 0x1000],
      ['4', 0, 0],
      ['3', 0, 0],
      ['3', 0, 0],
      ['1', 0, 0],
    ]);
  });

  test('has a log start undone by a log stop that shows the range as it was', () => {
    const { map, a, space } = twoRegions();
    const marks: string[] = [];
    let refuse = false;
    map.addListener({ logStop: ({ logging }) => void marks.push(`stop ${logging}`) }, [space]);
    map.addListener(
      {
        commit: () => {
          if (refuse) throw new Error('refused');
        },
      },
      [space],
    );
    refuse = true;
    expect(() => a.setLogging(true)).toThrow('refused');
    expect(marks).toEqual(['stop false']);
    expect(a.logging).toBe(false);
    expect(space.view.find(0)!.logging).toBe(false);
  });

  test('takes the edits of an open begin() with it, and the map goes on', () => {
    const { map, a, b, space } = twoRegions();
    let refuse = false;
    const commit = () => {
      if (refuse) throw new Error('refused');
    };
    map.addListener({ commit }, [space]);
    refuse = true;
    map.begin();
    a.setAddress(0x4000);
    b.setEnabled(false);
    expect(() => map.commit()).toThrow('refused');
    expect([a.address, b.enabled]).toEqual([0, true]);
    refuse = false;
    a.setAddress(0x4000);
    expect(space.view.find(0x4000)?.region).toBe(a);
  });

  test('is named along with another one that then fails to go back', () => {
    const { map, a, space } = twoRegions();
    let commits = 0;
    const stuck = () => {
      if (++commits === 3) throw new Error('stuck');
    };
    map.addListener({ commit: stuck }, [space]);
    let refuse = false;
    const commit = () => {
      if (refuse) throw new Error('refused');
    };
    map.addListener({ commit }, [space]);
    refuse = true;
    expect(() => a.setAddress(0x1000)).toThrow(
      expect.objectContaining({ code: 'STATE', message: expect.stringMatching(/refused.*stuck/) }),
    );
    expect([a.address, space.view.find(0)?.region]).toEqual([0, a]);
  });
});
