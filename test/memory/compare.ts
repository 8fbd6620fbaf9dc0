import { isRamKind, readViews, type TextRange } from '../../ts/memory/flat-text.js';
import { type FlatView, isRamLike } from '../../ts/memory/flat-view.js';
import { buildMap } from '../../ts/memory/mtree-map.js';
import { readMtree } from '../../ts/memory/mtree-text.js';

/** Who backs which addresses at what offset: what the text of a tree fully determines. */
export interface Backing {
  readonly gpa: bigint;
  readonly size: bigint;
  readonly region: string;
  readonly offset: bigint;
}

function merged(
  ranges: readonly { gpa: number | bigint; size: number | bigint; region: string; offset: number | bigint }[],
): Backing[] {
  const result: Backing[] = [];
  for (const range of ranges) {
    const [gpa, size, offset] = [BigInt(range.gpa), BigInt(range.size), BigInt(range.offset)];
    const last = result.at(-1);
    if (last && last.region === range.region && last.gpa + last.size === gpa && last.offset + last.size === offset) {
      result[result.length - 1] = { ...last, size: last.size + size };
    } else result.push({ gpa, size, region: range.region, offset });
  }
  return result;
}

/** The RAM-like ranges of a view, adjacent equal ones merged. */
export function backingOf(view: FlatView): Backing[] {
  return merged(view.ranges.filter(isRamLike).map((range) => ({ ...range, region: range.region.name })));
}

/** The RAM-like ranges of what `info mtree -f` printed, adjacent equal ones merged. */
export function backingOfText(ranges: readonly TextRange[]): Backing[] {
  return merged(ranges.filter(({ kind }) => isRamKind(kind)));
}

/** The address spaces of both texts whose names are unique, with what each text says backs them. */
export function compare(tree: string, flat: string): { name: string; fromTree: Backing[]; fromFlat: Backing[] }[] {
  const { addressSpaces } = buildMap(readMtree(tree));
  const flatByName = new Map<string, Backing[][]>();
  for (const view of readViews(flat)) {
    for (const { name } of view.addressSpaces) {
      flatByName.set(name, [...(flatByName.get(name) ?? []), backingOfText(view.ranges)]);
    }
  }
  return addressSpaces.flatMap((space) => {
    const found = flatByName.get(space.name) ?? [];
    if (found.length !== 1) return [];
    return { name: space.name, fromTree: backingOf(space.view), fromFlat: found[0]! };
  });
}
