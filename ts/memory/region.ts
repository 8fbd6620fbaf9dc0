import { formatRange, hex } from '../core/checks.js';
import { MemorySlotsError } from '../core/errors.js';
import { type Address, add, addressSpaceEnd, higher, lower, mustBeAddress, subtract } from './address.js';
import { Children } from './children.js';
import type { GuestMemory } from './guest-memory.js';
import type { Transactions } from './transactions.js';

/**
 * What a region is:
 *
 * - `container`: nothing of its own, only its children show;
 * - `ram`, `rom`: host memory the guest may write, or only read;
 * - `ram-device`: memory of a device mapped into the guest;
 * - `rom-device`: reads come from host memory and writes go to handlers in ROM mode, everything goes to handlers out
 *   of it (flash chips);
 * - `mmio`: every access goes to handlers;
 * - `alias`: a range of another region shown at another place;
 * - `reservation`: keeps addresses from others, and answers nothing.
 */
export type RegionKind = 'container' | 'ram' | 'ram-device' | 'rom' | 'rom-device' | 'mmio' | 'alias' | 'reservation';

/** What answers accesses to MMIO, and to a ROM device. Called on the thread that handles the access. */
export interface MmioHandlers {
  /** Fills `data` (1 to 8 bytes, guest byte order) from `offset`, in bytes from the start of the region. */
  read?(offset: number, data: Uint8Array): void;
  /** Takes `data` (1 to 8 bytes, guest byte order) written at `offset`, in bytes from the start of the region. */
  write?(offset: number, data: Uint8Array): void;
}

/** Properties any region may start with. */
export interface RegionOptions {
  /** See {@link MemoryRegion.setReadonly}. */
  readonly readonly?: boolean;
  /** See {@link MemoryRegion.setNonvolatile}. */
  readonly nonvolatile?: boolean;
  /** See {@link MemoryRegion.setUnmergeable}. */
  readonly unmergeable?: boolean;
}

/** Properties of a region backed by host memory. */
export interface BackedOptions extends RegionOptions {
  /** What backs it. A map that is only looked at needs none. */
  readonly memory?: GuestMemory;
  /** Where in `memory` the region starts, in bytes; 0 unless given. */
  readonly memoryOffset?: number;
}

/** What a region tells those that show it as their root: addresses whose content may have changed. */
export interface RootUser {
  /** Marks [`start`, `end`), in the user's own addresses. */
  invalidate(start: Address, end: Address): void;
}

const lastAddress = subtract(addressSpaceEnd, 1);

/** Chains longer than this are shortened in messages. */
const longestChain = 12;

/**
 * A node of the memory tree: a name, a size, and a kind, with children at offsets inside it. Where children overlap,
 * the one of higher priority shows; among equal ones, the one added or moved last. A region that has content of its own
 * shows through the gaps its children leave. A region is in at most one container; aliases show it at further places.
 *
 * Every setter is a transaction of its own unless one is open, takes effect at once in the tree, and becomes visible in
 * the address spaces when the outermost transaction ends. Setters throw `INVALID` for impossible values and change
 * nothing then, `STATE` while listeners are told of a change, and what a listener throws. Owner thread only.
 */
export class MemoryRegion {
  readonly kind: RegionKind;
  readonly name: string;
  /** Identity in this map: a small positive integer. */
  readonly id: number;
  /** Host memory behind the region, if any. */
  readonly memory: GuestMemory | undefined;
  /** Where in {@link memory} the region starts, in bytes. */
  readonly memoryOffset: number;
  /** What answers accesses that no host memory does. */
  readonly handlers: MmioHandlers | undefined;
  /** What an alias shows; undefined for every other kind. */
  readonly target: MemoryRegion | undefined;

  readonly #map: Transactions;
  #size: Address;
  #address: Address = 0;
  #priority = 0;
  #parent: MemoryRegion | undefined;
  #age = 0;
  /** Most regions never have any. */
  #children: Children<MemoryRegion> | undefined;
  #targetOffset: Address;
  #enabled = true;
  #readonly: boolean;
  #nonvolatile: boolean;
  #unmergeable: boolean;
  #logging = false;
  #romMode: boolean;
  /**
   * Aliases of this region that may be visible somewhere. An alias is listed here only while it is itself in use, so
   * that the ones thrown away don't live as long as their target.
   */
  readonly #aliases = new Set<MemoryRegion>();
  readonly #roots = new Set<RootUser>();
  #uses = 0;

  private constructor(
    map: Transactions,
    kind: RegionKind,
    name: string,
    size: Address,
    options: BackedOptions = {},
    more: { handlers?: MmioHandlers | undefined; target?: MemoryRegion; targetOffset?: Address } = {},
  ) {
    this.#map = map;
    this.kind = kind;
    this.name = name;
    this.memory = options.memory;
    this.memoryOffset = Number(
      mustBeAddress(`memoryOffset of '${name}'`, options.memoryOffset ?? 0, 0, Number.MAX_SAFE_INTEGER),
    );
    this.handlers = more.handlers;
    this.target = more.target;
    this.#targetOffset = mustBeAddress(`offset of alias '${name}'`, more.targetOffset ?? 0, 0, lastAddress);
    this.#size = this.#mustFit(size);
    this.#readonly = kind === 'rom' || options.readonly === true;
    this.#nonvolatile = options.nonvolatile === true;
    this.#unmergeable = options.unmergeable === true;
    this.#romMode = kind === 'rom-device';
    this.id = map.nextRegionId();
  }

  /** A region with no content of its own. `size` in bytes, up to 2^64. Throws `INVALID` for an impossible size. */
  static container(map: Transactions, name: string, size: Address, options?: RegionOptions): MemoryRegion {
    return new MemoryRegion(map, 'container', name, size, options);
  }

  /** Memory the guest reads and writes. `size` in bytes. Throws `INVALID` if `memory` is too small for it. */
  static ram(map: Transactions, name: string, size: Address, options?: BackedOptions): MemoryRegion {
    return new MemoryRegion(map, 'ram', name, size, options);
  }

  /** Memory of a device mapped into the guest. `size` in bytes. Throws `INVALID` if `memory` is too small for it. */
  static ramDevice(map: Transactions, name: string, size: Address, options?: BackedOptions): MemoryRegion {
    return new MemoryRegion(map, 'ram-device', name, size, options);
  }

  /** Memory the guest only reads. `size` in bytes. Throws `INVALID` if `memory` is too small for it. */
  static rom(map: Transactions, name: string, size: Address, options?: BackedOptions): MemoryRegion {
    return new MemoryRegion(map, 'rom', name, size, options);
  }

  /** Memory in ROM mode (the state it starts in), MMIO out of it. `size` in bytes. Throws `INVALID` as {@link rom}. */
  static romDevice(
    map: Transactions,
    name: string,
    size: Address,
    options?: BackedOptions & { readonly handlers?: MmioHandlers },
  ): MemoryRegion {
    return new MemoryRegion(map, 'rom-device', name, size, options, { handlers: options?.handlers });
  }

  /** Addresses that handlers answer. `size` in bytes. Throws `INVALID` for an impossible size. */
  static mmio(
    map: Transactions,
    name: string,
    size: Address,
    handlers?: MmioHandlers,
    options?: RegionOptions,
  ): MemoryRegion {
    return new MemoryRegion(map, 'mmio', name, size, options, { handlers });
  }

  /** Addresses kept from others. `size` in bytes. Throws `INVALID` for an impossible size. */
  static reservation(map: Transactions, name: string, size: Address, options?: RegionOptions): MemoryRegion {
    return new MemoryRegion(map, 'reservation', name, size, options);
  }

  /**
   * Another view of `target`: `size` bytes of it from `offset` on; where they reach past its end, nothing shows.
   * Throws `INVALID` for an impossible range or a target of another map.
   */
  static alias(
    map: Transactions,
    name: string,
    target: MemoryRegion,
    offset: Address,
    size: Address,
    options?: RegionOptions,
  ): MemoryRegion {
    if (target.#map !== map) {
      throw new MemorySlotsError('INVALID', `alias '${name}' and its target '${target.name}' belong to different maps`);
    }
    return new MemoryRegion(map, 'alias', name, size, options, { target, targetOffset: offset });
  }

  /** Size in bytes, 1 to 2^64. */
  get size(): Address {
    return this.#size;
  }
  /** Offset in its container, in bytes; 0 outside one. */
  get address(): Address {
    return this.#address;
  }
  /** Rank among its siblings: higher shows over lower. */
  get priority(): number {
    return this.#priority;
  }
  get parent(): MemoryRegion | undefined {
    return this.#parent;
  }
  /** When the region came to its place among its siblings: higher is later. */
  get age(): number {
    return this.#age;
  }
  /** By descending priority, the newest first among equals. */
  get children(): readonly MemoryRegion[] {
    return this.#children?.ordered ?? [];
  }
  /** For rendering: adds to `out` the children that reach into [`start`, `end`), offsets in bytes, in no order. */
  collectChildren(start: Address, end: Address, out: MemoryRegion[]): void {
    this.#children?.collect(start, end, out);
  }
  /** Where in its target an alias starts, in bytes. */
  get targetOffset(): Address {
    return this.#targetOffset;
  }
  get enabled(): boolean {
    return this.#enabled;
  }
  get readonly(): boolean {
    return this.#readonly;
  }
  get nonvolatile(): boolean {
    return this.#nonvolatile;
  }
  get unmergeable(): boolean {
    return this.#unmergeable;
  }
  get logging(): boolean {
    return this.#logging;
  }
  /** Whether a ROM device is in ROM mode; false for every other kind. */
  get romMode(): boolean {
    return this.#romMode;
  }

  /**
   * Puts `child` at `offset` bytes into this region; what reaches past the end doesn't show. `priority` (any integer,
   * 0 unless given) decides overlaps with its siblings, ties going to the child added last. Throws `INVALID` if `child`
   * already is in a container, if this is an alias, or if the map would contain itself, naming the cycle.
   */
  add(child: MemoryRegion, offset: Address, options: { readonly priority?: number } = {}): void {
    const at = mustBeAddress(`offset of '${child.name}' in '${this.name}'`, offset, 0, lastAddress);
    const priority = options.priority ?? 0;
    if (!Number.isSafeInteger(priority)) {
      throw new MemorySlotsError('INVALID', `priority of '${child.name}' must be an integer, not ${priority}`);
    }
    if (child.#map !== this.#map) {
      throw new MemorySlotsError('INVALID', `'${child.name}' and '${this.name}' belong to different maps`);
    }
    if (this.kind === 'alias') {
      throw new MemorySlotsError('INVALID', `'${this.name}' is an alias: add '${child.name}' to its target instead`);
    }
    if (child.#parent !== undefined) {
      const place = `${hex(child.#address)} in '${child.#parent.name}'`;
      throw new MemorySlotsError('INVALID', `'${child.name}' can't be added to '${this.name}': it is at ${place}`);
    }
    const cycle = this.#cycleWith(child);
    if (cycle !== undefined) {
      throw new MemorySlotsError(
        'INVALID',
        `'${child.name}' can't be added to '${this.name}': it would contain itself, ${cycle}`,
      );
    }
    child.#edit(() => {
      const takeBack = child.#place(at, priority, this.#map.nextAge());
      this.#insert(child);
      return () => {
        this.#extract(child);
        takeBack();
      };
    });
  }

  /** Takes `child` out. Throws `INVALID` if it isn't directly in this region. */
  remove(child: MemoryRegion): void {
    if (child.#parent !== this) {
      const where = child.#parent === undefined ? 'in no container' : `in '${child.#parent.name}'`;
      throw new MemorySlotsError('INVALID', `'${child.name}' can't be removed from '${this.name}': it is ${where}`);
    }
    child.#edit(() => {
      this.#extract(child);
      const takeBack = child.#place(0, 0, 0);
      return () => {
        takeBack();
        this.#insert(child);
      };
    });
  }

  /**
   * Moves the region to `offset` bytes into its container, where it counts as the newest of its priority, as if removed
   * and added again. Where it is already, nothing changes. Throws `INVALID` outside a container.
   */
  setAddress(offset: Address): void {
    const at = mustBeAddress(`offset of '${this.name}'`, offset, 0, lastAddress);
    const parent = this.#parent;
    if (parent === undefined) throw new MemorySlotsError('INVALID', `'${this.name}' can't move: it is in no container`);
    if (at === this.#address) return;
    this.#edit(() => {
      const age = this.#map.nextAge();
      let takeBack = () => {};
      this.#inPlace(() => {
        takeBack = this.#place(at, this.#priority, age);
      });
      return () => this.#inPlace(takeBack);
    });
  }

  /** Sets the size in bytes. Throws `INVALID` for 0, more than 2^64, or more than its memory holds. */
  setSize(size: Address): void {
    const before = this.#size;
    const after = this.#mustFit(size);
    this.#set(before, after, (value) => {
      this.#inPlace(() => {
        this.#size = value;
      });
    });
  }

  /** Makes an alias start `offset` bytes into its target. Throws `INVALID` on any other kind. */
  setTargetOffset(offset: Address): void {
    const after = mustBeAddress(`offset of alias '${this.name}'`, offset, 0, lastAddress);
    this.#mustBe('has no target', 'alias');
    this.#set(this.#targetOffset, after, (value) => {
      this.#targetOffset = value;
    });
  }

  /** Shows or hides the region with everything in it. */
  setEnabled(enabled: boolean): void {
    this.#set(this.#enabled, enabled, (value) => {
      this.#enabled = value;
    });
  }

  /** Whether the guest may not write the region and everything in it. Throws `INVALID` to make ROM writable. */
  setReadonly(readonly: boolean): void {
    if (this.kind === 'rom' && !readonly) {
      throw new MemorySlotsError('INVALID', `'${this.name}' is ROM and can't become writable`);
    }
    this.#set(this.#readonly, readonly, (value) => {
      this.#readonly = value;
    });
  }

  /** Marks the region and everything in it as memory that outlives the machine. */
  setNonvolatile(nonvolatile: boolean): void {
    this.#set(this.#nonvolatile, nonvolatile, (value) => {
      this.#nonvolatile = value;
    });
  }

  /** Keeps the region's ranges from being joined with adjacent ones. */
  setUnmergeable(unmergeable: boolean): void {
    this.#set(this.#unmergeable, unmergeable, (value) => {
      this.#unmergeable = value;
    });
  }

  /** Whether guest writes to the region are logged. Throws `INVALID` on kinds without memory. */
  setLogging(logging: boolean): void {
    this.#mustBe('has no dirty log', 'ram', 'ram-device', 'rom', 'rom-device');
    this.#set(this.#logging, logging, (value) => {
      this.#logging = value;
    });
  }

  /** Puts a ROM device in or out of ROM mode. Throws `INVALID` on any other kind. */
  setRomMode(romMode: boolean): void {
    this.#mustBe('has no ROM mode', 'rom-device');
    this.#set(this.#romMode, romMode, (value) => {
      this.#romMode = value;
    });
  }

  /** For address spaces: `user` shows this region from now on, as an edit of the open transaction. */
  addRoot(user: RootUser): void {
    this.#edit(() => {
      this.#roots.add(user);
      this.#retain();
      return () => {
        this.#roots.delete(user);
        this.#release();
      };
    });
  }

  /** The region's map, to check that what is put together belongs together. */
  belongsTo(map: Transactions): boolean {
    return this.#map === map;
  }

  #mustBe(lack: string, ...kinds: RegionKind[]): void {
    if (!kinds.includes(this.kind)) throw new MemorySlotsError('INVALID', `'${this.name}' (${this.kind}) ${lack}`);
  }

  #mustFit(size: Address): Address {
    const exact = mustBeAddress(`size of '${this.name}'`, size, 1, addressSpaceEnd);
    if (this.memory !== undefined && this.memoryOffset + Number(exact) > this.memory.size) {
      const asked = formatRange(this.memoryOffset, exact);
      const message = `'${this.name}' needs ${asked} of its memory, which has only ${hex(this.memory.size)} bytes`;
      throw new MemorySlotsError('INVALID', message);
    }
    return exact;
  }

  #set<T>(before: T, after: T, assign: (value: T) => void): void {
    if (before === after) return;
    this.#edit(() => {
      assign(after);
      return () => assign(before);
    });
  }

  /** Makes one edit of this region: `change` makes it and returns how to undo it. */
  #edit(change: () => () => void): void {
    const make = () => {
      this.#touch();
      this.#map.record(change());
      this.#touch();
    };
    // Edits can't fail half-way, so in an open transaction none needs one of its own.
    if (this.#map.inTransaction) make();
    else this.#map.transaction(make);
  }

  /** Marks every address that shows any of this region, in every address space. */
  #touch(): void {
    if (this.#uses === 0) return;
    const pending: { region: MemoryRegion; start: Address; end: Address }[] = [];
    let next: (typeof pending)[number] | undefined = { region: this, start: 0, end: this.#size };
    for (; next !== undefined; next = pending.pop()) {
      let [region, start, end]: [MemoryRegion | undefined, Address, Address] = [next.region, next.start, next.end];
      // Up through the containers; what shows elsewhere on the way comes later.
      while (region?.enabled && start < end) {
        for (const alias of region.#aliases) {
          const from = higher(subtract(start, alias.#targetOffset), 0);
          pending.push({ region: alias, start: from, end: lower(subtract(end, alias.#targetOffset), alias.#size) });
        }
        start = add(start, region.#address);
        end = add(end, region.#address);
        for (const user of region.#roots) user.invalidate(start, end);
        region = region.#parent;
        if (region !== undefined) end = lower(end, region.#size);
      }
    }
  }

  /** How `child` would contain itself were it put into this region, as `'a' > alias 'b' > 'a'`; undefined if not. */
  #cycleWith(child: MemoryRegion): string | undefined {
    if (child.target === undefined && child.#children === undefined && child !== this) return undefined;
    // An alias that isn't in use yet is unknown to its target, so what it leads to is looked for as well.
    const below: MemoryRegion[] = [];
    for (let step: MemoryRegion | undefined = child; step !== undefined; step = step.target) below.push(step);
    const inside = new Map<MemoryRegion, MemoryRegion | undefined>([[this, undefined]]);
    for (const [here] of inside) {
      const reached = below.indexOf(here);
      if (reached >= 0) {
        const chain = below.slice(0, reached);
        for (let step: MemoryRegion | undefined = here; step !== undefined; step = inside.get(step)) chain.push(step);
        const names = [...chain, child].map(({ kind, name }) => (kind === 'alias' ? `alias '${name}'` : `'${name}'`));
        if (names.length > longestChain) names.splice(longestChain - 1, names.length - longestChain, '...');
        return names.join(' > ');
      }
      for (const around of [here.#parent, ...here.#aliases]) {
        if (around !== undefined && !inside.has(around)) inside.set(around, here);
      }
    }
    return undefined;
  }

  /** Gives the region, which is among nobody's children now, another place: how to take that back. */
  #place(address: Address, priority: number, age: number): () => void {
    const before = [this.#address, this.#priority, this.#age] as const;
    [this.#address, this.#priority, this.#age] = [address, priority, age];
    return () => {
      [this.#address, this.#priority, this.#age] = before;
    };
  }

  /** Makes a change of where the region lies, which its container is to know of. */
  #inPlace(change: () => void): void {
    const siblings = this.#parent === undefined ? undefined : this.#parent.#children;
    siblings?.remove(this);
    change();
    siblings?.insert(this);
  }

  #insert(child: MemoryRegion): void {
    this.#children ??= new Children();
    this.#children.insert(child);
    child.#parent = this;
    child.#retain();
  }

  #extract(child: MemoryRegion): void {
    this.#children!.remove(child);
    child.#parent = undefined;
    child.#release();
  }

  #retain(): void {
    if (this.#uses++ > 0 || this.target === undefined) return;
    this.target.#aliases.add(this);
    this.target.#retain();
  }

  #release(): void {
    if (--this.#uses > 0 || this.target === undefined) return;
    this.target.#aliases.delete(this);
    this.target.#release();
  }
}
