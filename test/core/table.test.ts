import { fc, test } from '@fast-check/vitest';
import { describe, expect, it } from 'vitest';
import { errno } from '../../ts/core/core.js';
import { openCore, rangeOf } from './core.js';

const page = 0x1000;

/** A plain list that does the same as a table. */
class Reference {
  readonly ranges = new Map<number, { gpa: number; size: number }>();
  readonly capacity: number;

  constructor(capacity: number) {
    this.capacity = capacity;
  }

  find(gpa: number): number {
    for (const [id, range] of this.ranges) if (gpa >= range.gpa && gpa < range.gpa + range.size) return id;
    return -errno.ENOENT;
  }

  above(gpa: number): number {
    const next = [...this.ranges].filter(([, range]) => range.gpa > gpa).sort((a, b) => a[1].gpa - b[1].gpa)[0];
    return this.find(gpa) >= 0 ? this.find(gpa) : (next?.[0] ?? -errno.ENOENT);
  }

  overlap(gpa: number, size: number): number {
    const hit = [...this.ranges]
      .filter(([, range]) => range.gpa < gpa + size && gpa < range.gpa + range.size)
      .sort((a, b) => a[1].gpa - b[1].gpa)[0];
    return hit?.[0] ?? -errno.ENOENT;
  }

  freeId(): number {
    for (let id = 0; id < this.capacity; id++) if (!this.ranges.has(id)) return id;
    return -errno.ENOSPC;
  }

  insert(gpa: number, size: number, id: number | undefined): number {
    if (size === 0) return -errno.EINVAL;
    if (this.ranges.size === this.capacity) return -errno.ENOSPC;
    if (id !== undefined && (id >= this.capacity || this.ranges.has(id))) return -errno.EINVAL;
    if (this.overlap(gpa, size) >= 0) return -errno.EEXIST;
    const taken = id ?? this.freeId();
    this.ranges.set(taken, { gpa, size });
    return taken;
  }

  remove(id: number): number {
    return this.ranges.delete(id) ? 0 : -errno.ENOENT;
  }
}

const operation = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('insert' as const),
      at: fc.nat(40),
      pages: fc.nat(5),
      id: fc.option(fc.nat(13), { nil: undefined }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('remove' as const), id: fc.nat(13) }) },
);

describe('a table', () => {
  test.prop([fc.array(operation, { maxLength: 60 }), fc.constantFrom(1, 3, 12)], { numRuns: 300 })(
    'answers every question as a plain list does, whatever was inserted and removed',
    (operations, capacity) => {
      const { arena, core } = openCore(1 << 16);
      const table = arena.allocate(core.table_size(capacity));
      const range = arena.allocate(arena.layout.range.bytes);
      expect(core.table_init(table, capacity)).toBe(0);
      const reference = new Reference(capacity);
      const write = (gpa: number, size: number, id: number) =>
        arena.writeRange(range, rangeOf({ gpa, size, id, host: gpa + 7 }));
      for (const step of operations) {
        if (step.kind === 'remove') {
          expect(core.remove(table, step.id)).toBe(reference.remove(step.id));
        } else {
          write(step.at * page, step.pages * page, step.id ?? arena.layout.constants.ANY_ID);
          expect(core.insert(table, range)).toBe(reference.insert(step.at * page, step.pages * page, step.id));
        }
        expect(core.free_id(table)).toBe(reference.freeId());
        for (const gpa of [0, 3, 17, 30, 46].flatMap((at) => [at * page, at * page + page - 1])) {
          expect(core.find(table, gpa)).toBe(reference.find(gpa));
          expect(core.find_at_or_above(table, gpa)).toBe(reference.above(gpa));
          write(gpa - (gpa % page), 2 * page, 0);
          expect(core.overlap(table, range)).toBe(reference.overlap(gpa - (gpa % page), 2 * page));
        }
      }
      const list = arena.allocate(capacity * arena.layout.range.bytes);
      expect(core.list(table, list)).toBe(reference.ranges.size);
      const listed = Array.from({ length: reference.ranges.size }, (_, index) =>
        arena.readRange(list + index * arena.layout.range.bytes),
      );
      const wanted = [...reference.ranges].sort((a, b) => a[1].gpa - b[1].gpa);
      expect(listed.map(({ id, gpa, size, host }) => [id, { gpa, size }, host])).toEqual(
        wanted.map(([id, { gpa, size }]) => [id, { gpa, size }, gpa + 7]),
      );
      for (const { gpa, size, id } of listed) {
        write(gpa, size, 0);
        expect(core.match(table, range)).toBe(id);
        write(gpa, size + page, 0);
        expect(core.match(table, range)).toBe(-errno.ENOENT);
      }
    },
  );
});

describe('a table', () => {
  it('refuses sizes that nothing could have, and capacities', () => {
    const { arena, core } = openCore(1 << 16);
    expect(core.table_size(0)).toBe(-errno.EINVAL);
    expect(core.table_size(2 ** 24 + 1)).toBe(-errno.EINVAL);
    expect(core.map_size(2 ** 24)).toBe(-errno.EINVAL);
    const table = arena.allocate(core.table_size(4));
    core.table_init(table, 4);
    const range = arena.allocate(arena.layout.range.bytes);
    arena.writeRange(range, rangeOf({ gpa: 0x1000, size: 0x1000 }));
    // gpa + size wraps 2^64.
    arena.setU32(range + arena.layout.range.gpa + 4, 0xffffffff);
    arena.setU32(range + arena.layout.range.gpa, 0xfffff000);
    expect(core.insert(table, range)).toBe(-errno.EINVAL);
    expect(core.find(table, 0x1000)).toBe(-errno.ENOENT);
  });
});
