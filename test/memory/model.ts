import { MemorySlotsError } from '../../ts/core/errors.js';
import { AddressSpace, type MemoryListener, MemoryMap, type Section } from '../../ts/memory/address-space.js';
import { type FlatRange, FlatView, rangeEnd } from '../../ts/memory/flat-view.js';
import { MemoryRegion } from '../../ts/memory/region.js';
import { rerender } from '../../ts/memory/render.js';

/** Numbers that depend on nothing but the seed: mulberry32. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** An integer from 0 to `end` − 1. */
  below(end: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * end);
  }

  chance(probability: number): boolean {
    return this.below(1000) < probability * 1000;
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)]!;
  }
}

/** Bytes in the small world of the random maps. */
export const worldSize = 48;

/** The plainest statement of what a region is: the reference the library is compared with. */
interface Plain {
  size: number;
  enabled: boolean;
  readonly: boolean;
  nonvolatile: boolean;
  unmergeable: boolean;
  logging: boolean;
  romMode: boolean;
  targetOffset: number;
  /** In the order they were added or moved. */
  children: { region: MemoryRegion; address: number; priority: number }[];
}

/** Who answers one address. */
export interface Painted {
  readonly region: MemoryRegion;
  readonly offset: number;
  readonly readonly: boolean;
  readonly nonvolatile: boolean;
}

/** A map under random edits next to a plain description of the same tree, which the painter walks byte by byte. */
export class MapModel {
  readonly map = new MemoryMap();
  readonly regions: MemoryRegion[] = [];
  readonly spaces: AddressSpace[] = [];
  readonly #random: Random;
  #plain = new Map<MemoryRegion, Plain>();

  constructor(random: Random, regionCount: number, spaceCount = 2) {
    this.#random = random;
    for (let index = 0; index < spaceCount; index++) {
      const root = this.#adopt(MemoryRegion.container(this.map, `root${index}`, worldSize));
      this.spaces.push(new AddressSpace(this.map, `space${index}`, root));
    }
    for (let index = 0; index < regionCount; index++) this.#adopt(this.#create(`r${index}`));
  }

  #adopt(region: MemoryRegion): MemoryRegion {
    this.regions.push(region);
    const { readonly, nonvolatile, unmergeable, romMode } = region;
    const [size, targetOffset] = [Number(region.size), Number(region.targetOffset)];
    const plain = { size, readonly, nonvolatile, unmergeable, romMode, targetOffset };
    this.#plain.set(region, { ...plain, enabled: true, logging: false, children: [] });
    return region;
  }

  #create(name: string): MemoryRegion {
    const random = this.#random;
    const size = 1 + random.below(random.chance(0.5) ? worldSize : 8);
    const unmergeable = random.chance(0.1);
    switch (random.below(8)) {
      case 0:
      case 1:
        return MemoryRegion.container(this.map, name, size);
      case 2:
        return MemoryRegion.ram(this.map, name, size, { unmergeable });
      case 3:
        return MemoryRegion.rom(this.map, name, size);
      case 4:
        return MemoryRegion.mmio(this.map, name, size);
      case 5:
        return MemoryRegion.romDevice(this.map, name, size);
      default:
        return MemoryRegion.alias(this.map, name, random.pick(this.regions), random.below(8), size);
    }
  }

  /** Makes one random edit in both; one the library refuses leaves both alone. */
  step(): void {
    const random = this.#random;
    const region = random.pick(this.regions);
    const plain = this.#plain.get(region)!;
    const chance = random.below(20);
    if (chance < 8) this.#toggleMembership(region);
    else if (chance < 12) this.#move(region);
    else if (chance < 14) {
      region.setEnabled(!plain.enabled);
      plain.enabled = !plain.enabled;
    } else if (chance < 15) {
      const size = this.spaces.some((space) => space.root === region) ? worldSize : 1 + random.below(worldSize);
      region.setSize(size);
      plain.size = size;
    } else if (chance < 16 && region.kind === 'alias') {
      plain.targetOffset = random.below(12);
      region.setTargetOffset(plain.targetOffset);
    } else if (chance < 17 && region.kind !== 'rom') {
      plain.readonly = !plain.readonly;
      region.setReadonly(plain.readonly);
    } else if (chance < 18) {
      plain.nonvolatile = !plain.nonvolatile;
      region.setNonvolatile(plain.nonvolatile);
    } else if (chance < 19 && region.kind === 'ram') {
      plain.logging = !plain.logging;
      region.setLogging(plain.logging);
    } else if (region.kind === 'rom-device') {
      plain.romMode = !plain.romMode;
      region.setRomMode(plain.romMode);
    } else {
      plain.unmergeable = !plain.unmergeable;
      region.setUnmergeable(plain.unmergeable);
    }
  }

  #toggleMembership(region: MemoryRegion): void {
    if (region.parent !== undefined && this.#random.chance(0.5)) {
      const siblings = this.#plain.get(region.parent)!;
      region.parent.remove(region);
      siblings.children = siblings.children.filter((child) => child.region !== region);
      return;
    }
    const container = this.#random.pick(this.regions);
    const [address, priority] = [this.#random.below(worldSize), this.#random.below(3) - 1];
    try {
      container.add(region, address, { priority });
    } catch (error) {
      if (error instanceof MemorySlotsError && error.code === 'INVALID') return;
      throw error;
    }
    this.#plain.get(container)!.children.push({ region, address, priority });
  }

  #move(region: MemoryRegion): void {
    if (region.parent === undefined) return;
    const siblings = this.#plain.get(region.parent)!;
    const at = siblings.children.findIndex((child) => child.region === region);
    const address = this.#random.below(worldSize);
    region.setAddress(address);
    if (siblings.children[at]!.address === address) return;
    const [moved] = siblings.children.splice(at, 1);
    siblings.children.push({ ...moved!, address });
  }

  /** Runs `edit` as a transaction that throws at its end, and puts the plain description back too. */
  undone(edit: () => void): void {
    const failure = new Error('on purpose');
    this.undoneBy(
      () =>
        this.map.transaction(() => {
          edit();
          throw failure;
        }),
      (error) => {
        if (error !== failure) throw error;
      },
    );
  }

  /** Runs `edit`; if it throws, puts the plain description back to what it was and hands the error to `refused`. */
  undoneBy(edit: () => void, refused: (error: unknown) => void): void {
    const copies = [...this.#plain].map(
      ([region, plain]) => [region, { ...plain, children: [...plain.children] }] as [MemoryRegion, Plain],
    );
    try {
      edit();
    } catch (error) {
      this.#plain = new Map(copies);
      refused(error);
    }
  }

  /** Who answers each byte of an address space, found by walking the plain description for each byte by itself. */
  paint(space: AddressSpace): (Painted | undefined)[] {
    const root = space.root;
    const base = this.#placeOf(root);
    return Array.from({ length: 2 * worldSize }, (_, gpa) => this.#look(root, gpa - base, false, false));
  }

  /** The logging mark and ROM mode a range of `region` should carry. */
  marks(region: MemoryRegion): { logging: boolean; romMode: boolean; unmergeable: boolean } {
    return this.#plain.get(region)!;
  }

  #placeOf(region: MemoryRegion): number {
    for (const plain of this.#plain.values()) {
      const child = plain.children.find((candidate) => candidate.region === region);
      if (child !== undefined) return child.address;
    }
    return 0;
  }

  #look(region: MemoryRegion, offset: number, readonlyAbove: boolean, nonvolatileAbove: boolean): Painted | undefined {
    const plain = this.#plain.get(region)!;
    if (!plain.enabled || offset < 0 || offset >= plain.size) return undefined;
    const readonly = readonlyAbove || plain.readonly;
    const nonvolatile = nonvolatileAbove || plain.nonvolatile;
    if (region.target !== undefined)
      return this.#look(region.target, offset + plain.targetOffset, readonly, nonvolatile);
    const newestFirst = plain.children.toReversed().sort((a, b) => b.priority - a.priority);
    for (const child of newestFirst) {
      const found = this.#look(child.region, offset - child.address, readonly, nonvolatile);
      if (found !== undefined) return found;
    }
    return region.kind === 'container' ? undefined : { region, offset, readonly, nonvolatile };
  }
}

/** The view rendered from nothing, whatever was rendered before. */
export function fullRender(space: AddressSpace): FlatView {
  const everything = [{ start: 0, end: 1n << 64n }];
  return rerender(space.root, FlatView.empty, everything, { regionVisits: 0, comparisons: 0 }).view;
}

/** A range without what makes it hard to read in a failed assertion. */
export function plainRange(range: FlatRange): Record<string, unknown> {
  const { gpa, size, offset, readonly, romMode, nonvolatile, logging, region } = range;
  return { gpa, size, offset, region: region.name, readonly, romMode, nonvolatile, logging };
}

/** Keeps a copy of the map from what it is told alone, and refuses whatever doesn't fit to what it holds. */
export class Mirror implements MemoryListener {
  readonly priority: number;
  readonly #ranges = new Map<number, Map<FlatRange['gpa'], FlatRange>>();
  #open = false;
  /** How many transactions it has been told of. */
  commits = 0;

  constructor(priority = 0) {
    this.priority = priority;
  }

  begin(): void {
    if (this.#open) throw new Error('begin within begin');
    this.#open = true;
  }

  delete(section: Section): void {
    const held = this.#held(section);
    if (held === undefined || JSON.stringify(plainRange(held)) !== JSON.stringify(plainRange(section))) {
      throw new Error(`deleted what isn't there: ${JSON.stringify(plainRange(section))}`);
    }
    this.#ranges.get(section.addressSpace.index)!.delete(section.gpa);
  }

  add(section: Section): void {
    if (!this.#open) throw new Error('add outside begin and commit');
    for (const held of this.ranges(section.addressSpace)) {
      if (held.gpa < rangeEnd(section) && section.gpa < rangeEnd(held)) throw new Error('added over what is there');
    }
    const ranges = this.#ranges.get(section.addressSpace.index) ?? new Map();
    this.#ranges.set(section.addressSpace.index, ranges.set(section.gpa, section));
  }

  unchanged(section: Section): void {
    if (this.#held(section)?.region !== section.region) throw new Error('unchanged, but not there');
  }

  logStart(section: Section): void {
    if (this.#held(section)?.logging !== false || !section.logging) throw new Error('log start out of turn');
    this.#ranges.get(section.addressSpace.index)!.set(section.gpa, section);
  }

  logStop(section: Section): void {
    if (this.#held(section)?.logging !== true || section.logging) throw new Error('log stop out of turn');
    this.#ranges.get(section.addressSpace.index)!.set(section.gpa, section);
  }

  commit(): void {
    if (!this.#open) throw new Error('commit without begin');
    this.#open = false;
    this.commits++;
  }

  #held(section: Section): FlatRange | undefined {
    return this.#ranges.get(section.addressSpace.index)?.get(section.gpa);
  }

  /** What it holds of one address space, by address. */
  ranges(space: AddressSpace): FlatRange[] {
    const ranges = [...(this.#ranges.get(space.index)?.values() ?? [])];
    return ranges.sort((a, b) => (a.gpa < b.gpa ? -1 : 1));
  }
}
