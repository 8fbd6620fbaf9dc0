import type { AddressSpace } from './address-space.js';
import type { TextRange, TextView } from './flat-text.js';
import { buildMap, type TextMap } from './mtree-map.js';
import { readMtree } from './mtree-text.js';
import type { MemoryRegion } from './region.js';

/** The flat map of one address space of a text. */
export interface FlattenedSpace {
  /** Unique within the text: of several address spaces with one name, those after the first have ` #2`, ` #3` added. */
  readonly key: string;
  readonly name: string;
  /** The root the text names. */
  readonly root: string;
  /** Where rendering starts; undefined if there is nothing to render. */
  readonly shownRoot: MemoryRegion | undefined;
  readonly ranges: readonly TextRange[];
}

/**
 * The flat maps that the tree in `text`, the output of QEMU's `info mtree`, comes to, in the order of the text. What
 * the text leaves open is decided as {@link buildMap} says. Throws `INVALID` with the line of whatever is malformed.
 */
export function flatten(text: string): FlattenedSpace[] {
  const built = buildMap(readMtree(text));
  const count = new Map<string, number>();
  return built.addressSpaces.map((space) => {
    const times = (count.get(space.name) ?? 0) + 1;
    count.set(space.name, times);
    const { named, shown } = built.roots(space);
    return {
      key: times === 1 ? space.name : `${space.name} #${times}`,
      name: space.name,
      root: named?.name ?? '(disabled)',
      shownRoot: shown,
      ranges: rangesOf(built, space),
    };
  });
}

/** The maps as QEMU groups them: address spaces whose rendering starts at the same region share one. */
export function viewsOf(spaces: readonly FlattenedSpace[]): TextView[] {
  const groups = new Map<MemoryRegion | undefined, FlattenedSpace[]>();
  for (const space of spaces) groups.set(space.shownRoot, [...(groups.get(space.shownRoot) ?? []), space]);
  return [...groups.values()].map((group) => ({
    addressSpaces: group.map(({ name, root }) => ({ name, root })),
    root: group[0]!.shownRoot?.name,
    ranges: group[0]!.ranges,
  }));
}

function rangesOf(built: TextMap, space: AddressSpace): TextRange[] {
  return space.view.ranges.map((range) => ({
    gpa: range.gpa,
    size: range.size,
    priority: built.priority(range.region),
    kind: built.word(range),
    region: range.region.name,
    offset: range.offset,
    kvm: false,
  }));
}
