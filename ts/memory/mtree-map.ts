import { MemorySlotsError } from '../core/errors.js';
import { AddressSpace, MemoryMap } from './address-space.js';
import type { FlatRange } from './flat-view.js';
import { lineError, type MtreeBlock, type MtreeNode, type MtreeText } from './mtree-text.js';
import { MemoryRegion, type RegionOptions } from './region.js';

/** A memory map built from the text of `info mtree`. */
export interface TextMap {
  readonly map: MemoryMap;
  /** In the order of the text; several may have the same name. */
  readonly addressSpaces: readonly AddressSpace[];
  /** The outermost regions of an address space. */
  roots(space: AddressSpace): TextRoots;
  /** QEMU's word for a range: `ram`, `rom`, `romd`, `ramd`, `i/o`, or the unknown one of the text, `nv-` before it. */
  word(range: FlatRange): string;
  /** A region's priority, also where the region is outermost. */
  priority(region: MemoryRegion): number;
}

/** The outermost regions of an address space. */
export interface TextRoots {
  /** The region the text names; undefined where it is disabled, which QEMU doesn't print. */
  readonly named: MemoryRegion | undefined;
  /** The region QEMU starts rendering from, and its view names as root; undefined if there is none to render. */
  readonly shown: MemoryRegion | undefined;
}

/**
 * Builds the tree that `text` describes. What the text doesn't say is taken to be so:
 *
 * - of overlapping siblings of the same priority, the one at the higher address shows, which leaves none hidden inside
 *   a larger one; at the same address, the one printed first (QEMU prints the newest first);
 * - an `i/o` region with children has no content of its own, nor has one of at least 2^32 bytes without children,
 *   except those known by name to answer accesses (the root of the port addresses, `io`, a few devices, and IOMMUs);
 * - an alias of one byte has none (QEMU prints an empty one so, as for the closed windows of a PCI bridge);
 * - an alias isn't read-only;
 * - of several regions with the name of an alias's target, it is the one of the same kind and large enough that has
 *   something where the alias looks.
 *
 * Throws `INVALID` with the line where an alias's target is missing, where the text breaks off, or where a region would
 * contain itself, naming the cycle.
 */
export function buildMap(text: MtreeText): TextMap {
  const identity = new Identity(text);
  const builder = new Builder(identity);
  const map = builder.map;
  const roots = new Map<AddressSpace, TextRoots>();
  const addressSpaces = map.transaction(() => {
    for (const root of identity.primaries) builder.create(root);
    for (const root of identity.primaries) builder.connect(root);
    return text.blocks
      .filter(({ heading }) => heading === 'address-space')
      .flatMap(({ names, root }) => {
        const region = root === undefined ? undefined : builder.region(root);
        const shown = region === undefined ? undefined : shownRoot(region);
        const empty = MemoryRegion.container(map, '(none)', 1n << 64n);
        return names.map(({ name }) => {
          const space = new AddressSpace(map, name, shown ?? empty);
          roots.set(space, { named: region, shown });
          return space;
        });
      });
  });
  return {
    map,
    addressSpaces,
    roots: (space) => roots.get(space)!,
    word: (range) => {
      const kind = builder.origin(range.region)?.kind ?? 'i/o';
      return `${range.nonvolatile ? 'nv-' : ''}${range.readonly && kind === 'ram' ? 'rom' : kind}`;
    },
    priority: (region) => builder.origin(region)?.priority ?? region.priority,
  };
}

/**
 * Which lines are the same region: QEMU prints one again wherever it is the root of an address space or the target of
 * an alias, with all below it.
 */
class Identity {
  /** The trees that aren't part of another one. */
  readonly primaries: MtreeNode[] = [];
  /** The one line that stands for the region of an outermost line. */
  readonly #canonical = new Map<MtreeNode, MtreeNode>();
  /** The blocks an alias may mean, by name. */
  readonly #targets = new Map<string, MtreeNode[]>();
  /** Every other line of the primary trees, by name. */
  readonly #others = new Map<string, MtreeNode[]>();
  /** Blocks without a line of their own: regions that are disabled. */
  readonly #disabled = new Set<string>();

  constructor(text: MtreeText) {
    const rooted = text.blocks.filter((block): block is MtreeBlock & { root: MtreeNode } => block.root !== undefined);
    const signatures = new Signatures();
    const inner = new Set<string>();
    for (const { root } of rooted) {
      for (const node of below(root)) inner.add(signatures.of(node));
    }
    if (!text.whole) expectWhole(text, rooted);
    // A region of an address space stands for the blocks of the same content, of which each is another region.
    const spaces = rooted.filter(({ heading }) => heading === 'address-space').map(({ root }) => root);
    const blocks = rooted.filter(({ heading }) => heading === 'memory-region').map(({ root }) => root);
    const known = new Map<string, MtreeNode[]>();
    const learn = (root: MtreeNode) => {
      this.primaries.push(root);
      this.#canonical.set(root, root);
      for (const node of [root, ...below(root)]) append(known, signatures.of(node), node);
    };
    const distinct = new Map(spaces.map((root) => [signatures.of(root), root]));
    for (const [signature, root] of distinct) if (!inner.has(signature)) learn(root);
    for (const root of spaces) {
      const twin = known.get(signatures.of(root))?.[0];
      if (twin !== undefined) this.#canonical.set(root, twin);
    }
    const claimed = new Set<MtreeNode>();
    // Larger trees first, so that what is inside one is known before its own block is looked at.
    const bySize = blocks.map((root) => ({ root, lines: below(root).length })).sort((a, b) => b.lines - a.lines);
    for (const { root } of bySize) {
      const twin = known.get(signatures.of(root))?.find((node) => !claimed.has(node));
      if (twin === undefined) learn(root);
      else this.#canonical.set(root, twin);
      claimed.add(twin ?? root);
    }
    for (const root of spaces) {
      if (!this.#canonical.has(root)) this.#canonical.set(root, known.get(signatures.of(root))![0]!);
    }
    for (const { heading, names, root } of text.blocks) {
      if (heading === 'address-space') continue;
      if (root === undefined) this.#disabled.add(names[0]!.name);
      else append(this.#targets, names[0]!.name, this.of(root));
    }
    for (const root of this.primaries) {
      for (const node of [root, ...below(root)]) append(this.#others, nameOf(node), node);
    }
  }

  /** The line that stands for the region of `node`, which is outermost in its tree or part of a primary one. */
  of(node: MtreeNode): MtreeNode {
    return this.#canonical.get(node) ?? node;
  }

  /** What an alias shows, if it is enabled, and its own name. */
  target(alias: MtreeNode): { name: string; target: MtreeNode | undefined } {
    const readings = alias.alias!.readings;
    for (const lines of [this.#targets, this.#others]) {
      for (const { name, target } of readings) {
        const choices = (lines.get(target) ?? []).filter((choice) => choice !== alias);
        const best = choices.reduce<MtreeNode | undefined>(
          (chosen, choice) =>
            chosen !== undefined && likeness(alias, chosen) >= likeness(alias, choice) ? chosen : choice,
          undefined,
        );
        if (best !== undefined) return { name, target: best };
      }
    }
    const disabled = readings.find(({ target }) => this.#disabled.has(target));
    if (disabled !== undefined) return { name: disabled.name, target: undefined };
    throw lineError(alias.at, `the text has no region '${readings[0]!.target}', which this alias shows`);
  }
}

/** How well a region fits to what an alias says of its target. */
function likeness(alias: MtreeNode, target: MtreeNode): number {
  const from = alias.alias!.offset;
  const to = from + alias.size;
  const shows = (node: MtreeNode) => node.enabled && node.offset < to && node.offset + node.size > from;
  const filled = target.children.length === 0 ? target.kind !== 'i/o' : target.children.some(shows);
  return (target.kind === alias.kind ? 4 : 0) + (to <= target.size ? 2 : 0) + (filled ? 1 : 0);
}

/** `i/o` regions that QEMU's flat views show, though they have children or are as large as containers usually are. */
const answering = /^(?:io|rtc|vga\.mmio|megasas-mmio|gpex_mmio_window|amd_iommu|vtd-[0-9a-f.]+-dmar)$/;

/** Turns lines into regions. */
class Builder {
  readonly map = new MemoryMap();
  readonly #identity: Identity;
  /** Stands for what isn't printed because it is disabled. */
  readonly #nothing = MemoryRegion.container(this.map, '(disabled)', 1);
  readonly #regions = new Map<MtreeNode, MemoryRegion>();
  readonly #origins = new Map<MemoryRegion, MtreeNode>();

  constructor(identity: Identity) {
    this.#identity = identity;
  }

  origin(region: MemoryRegion): MtreeNode | undefined {
    return this.#origins.get(region);
  }

  region(root: MtreeNode): MemoryRegion {
    return this.#regions.get(this.#identity.of(root))!;
  }

  /** Makes the regions of a tree, without putting them together. */
  create(root: MtreeNode): void {
    for (const node of [root, ...below(root)]) this.#create(node, []);
  }

  #create(node: MtreeNode, showing: readonly MtreeNode[]): MemoryRegion {
    const made = this.#regions.get(node);
    if (made !== undefined) return made;
    const options = { nonvolatile: node.nonvolatile };
    let region: MemoryRegion;
    if (node.alias === undefined) region = this.#leafOrContainer(node, options);
    else {
      if (showing.includes(node)) {
        const chain = [...showing.slice(showing.indexOf(node)), node].map((line) => `alias '${nameOf(line)}'`);
        throw lineError(node.at, `an alias that shows itself, ${chain.join(' > ')}`);
      }
      const { name, target } = this.#identity.target(node);
      const shown = target === undefined ? this.#nothing : this.#create(target, [...showing, node]);
      region = MemoryRegion.alias(this.map, name, shown, node.alias.offset, node.size, options);
    }
    if (!node.enabled || (node.alias !== undefined && node.size === 1n)) region.setEnabled(false);
    this.#regions.set(node, region);
    this.#origins.set(region, node);
    return region;
  }

  #leafOrContainer(node: MtreeNode, options: RegionOptions): MemoryRegion {
    const { map } = this;
    const { name, size } = node;
    switch (node.kind) {
      case 'ram':
        return MemoryRegion.ram(map, name, size, options);
      case 'rom':
        return MemoryRegion.rom(map, name, size, options);
      case 'ramd':
        return MemoryRegion.ramDevice(map, name, size, options);
      case 'romd':
        return MemoryRegion.romDevice(map, name, size, options);
      case 'i/o': {
        const bare = node.children.length > 0 || size >= 1n << 32n;
        return bare && !answering.test(name)
          ? MemoryRegion.container(map, name, size, options)
          : MemoryRegion.mmio(map, name, size, undefined, options);
      }
      default:
        return MemoryRegion.mmio(map, name, size, undefined, options);
    }
  }

  /** Puts the regions of a tree together. */
  connect(root: MtreeNode): void {
    // An outermost line's address is its region's in a container the text doesn't show.
    if (root.offset !== 0n) {
      const around = MemoryRegion.container(this.map, '(not shown)', 1n << 64n);
      around.add(this.#regions.get(root)!, root.offset, { priority: root.priority });
    }
    for (const node of [root, ...below(root)]) {
      const container = this.#regions.get(node)!;
      for (const child of oldestFirst(node.children)) {
        try {
          container.add(this.#regions.get(child)!, child.offset, { priority: child.priority });
        } catch (error) {
          if (error instanceof MemorySlotsError) throw lineError(child.at, error.message, { cause: error });
          throw error;
        }
      }
    }
  }
}

/**
 * Where QEMU starts rendering: a container whose one enabled child starts where it does stands for that child, and an
 * alias of all of a region for the region. The child is rendered at the address it has in its container, even where the
 * container is itself at an address, as the one for hot-plugged memory is.
 */
function shownRoot(root: MemoryRegion): MemoryRegion | undefined {
  let region = root;
  for (;;) {
    if (!region.enabled) return undefined;
    if (region.readonly || region.nonvolatile) return region;
    const { target } = region;
    if (target !== undefined) {
      if (region.targetOffset !== 0 || region.size < target.size) return region;
      region = target;
      continue;
    }
    if (region.kind !== 'container') return region;
    const [only, ...others] = region.children.filter((child) => child.enabled);
    if (only === undefined) return undefined;
    if (others.length > 0 || only.address !== 0 || only.size > region.size) return region;
    region = only;
  }
}

/** Children in an order of adding that makes those show that {@link buildMap} takes to show. */
function oldestFirst(children: readonly MtreeNode[]): MtreeNode[] {
  // QEMU's order is by address, so only a run at one address has to be turned round.
  return children
    .map((node, index) => ({ node, index }))
    .sort((a, b) => (a.node.offset < b.node.offset ? -1 : a.node.offset > b.node.offset ? 1 : b.index - a.index))
    .map(({ node }) => node);
}

/** Short strings that are the same for two lines exactly if all they and the lines below them say is the same. */
class Signatures {
  readonly #numbers = new Map<string, number>();
  readonly #known = new Map<MtreeNode, string>();

  of(node: MtreeNode): string {
    const known = this.#known.get(node);
    if (known !== undefined) return known;
    const alias = node.alias?.offset ?? '';
    const below = node.children.map((child) => this.of(child)).join();
    const text = JSON.stringify([shallow(node), node.enabled, String(alias), below]);
    const number = this.#numbers.get(text) ?? this.#numbers.size;
    this.#numbers.set(text, number);
    this.#known.set(node, String(number));
    return String(number);
  }
}

/** What a line says of its region, apart from what may change while it is printed again. */
function shallow(node: MtreeNode): string {
  return JSON.stringify([
    node.name,
    node.kind,
    node.nonvolatile,
    node.priority,
    String(node.size),
    String(node.offset),
  ]);
}

/**
 * Throws if the last tree, after which the text ends without an empty line, breaks off: if its outermost region isn't
 * the one its heading names, or if it is only the beginning of what is printed of that region elsewhere.
 */
function expectWhole(text: MtreeText, rooted: readonly (MtreeBlock & { root: MtreeNode })[]): void {
  const block = rooted.at(-1);
  if (block === undefined || block !== text.blocks.at(-1)) return;
  const last = block.root;
  const names = last.alias?.readings.map(({ name }) => name) ?? [last.name];
  if (block.heading === 'memory-region' && !names.includes(block.names[0]!.name)) {
    throw lineError(text.last, `the text ends within the tree of '${block.names[0]!.name}'`);
  }
  const printed = [last, ...below(last)];
  const end = printed.at(-1)!;
  for (const { heading, root } of rooted) {
    for (const twin of heading === 'address-space' ? [root, ...below(root)] : below(root)) {
      if (twin === last || shallow(twin) !== shallow(last)) continue;
      const all = [twin, ...below(twin)];
      const counterpart = all[printed.length - 1];
      if (counterpart === undefined) continue;
      const alike = printed.every((node, index) => node === end || shallow(node) === shallow(all[index]!));
      const whole = all.length === printed.length && shallow(end) === shallow(counterpart);
      const cut = counterpart.at.content.trim().startsWith(end.at.content.trim());
      if (alike && !whole && cut) {
        throw lineError(
          text.last,
          `the text ends within the tree of '${last.name}', which line ${twin.at.number} begins in full`,
        );
      }
    }
  }
}

/** Every line below `node`, in the order of the text. */
function below(node: MtreeNode): MtreeNode[] {
  return node.children.flatMap((child) => [child, ...below(child)]);
}

function nameOf(node: MtreeNode): string {
  return node.alias === undefined ? node.name : node.alias.readings[0]!.name;
}

function append<K, V>(lists: Map<K, V[]>, key: K, value: V): void {
  const list = lists.get(key);
  if (list === undefined) lists.set(key, [value]);
  else list.push(value);
}
