import { formatRange, hex } from '../core/checks.js';

/** A memory slot. Sizes and addresses in bytes. An expected one is compared in the fields it has. */
export interface LayoutSlot {
  readonly gpa: number;
  readonly size: number;
  readonly id?: number;
  /** KVM_MEM_*: 1 log dirty pages, 2 read-only, 4 guest_memfd. */
  readonly flags?: number;
  /** Host-virtual address. */
  readonly host?: number;
  /** Default 0. */
  readonly addressSpace?: number;
}

const compared = ['id', 'flags', 'host'] as const;

/**
 * Throws an error that shows both layouts line by line, unless `actual` has the slots that are `expected`, in any order.
 * Slots pair up by address space, GPA and size; fields that an expected slot leaves out may have any value.
 *
 *     assertLayout(kvm.kernel.layout(), [{ gpa: 0, size: 0xa0000 }, { gpa: 0xc0000, size: 0x40000, flags: 2 }]);
 */
export function assertLayout(actual: readonly LayoutSlot[], expected: readonly LayoutSlot[]): void {
  const difference = layoutDifference(actual, expected);
  if (difference !== undefined) throw new Error(difference);
}

/** What {@link assertLayout} would throw, or undefined if the layouts are equal. */
export function layoutDifference(actual: readonly LayoutSlot[], expected: readonly LayoutSlot[]): string | undefined {
  const rows: { slot: LayoutSlot; text: string }[] = [];
  const unmatched = [...actual];
  let differs = false;
  for (const want of expected) {
    const index = unmatched.findIndex((slot) => samePlace(slot, want));
    const [have] = index < 0 ? [] : unmatched.splice(index, 1);
    const changes = have === undefined ? [] : compared.filter((name) => (want[name] ?? have[name]) !== have[name]);
    const details = changes.map((name) => `${name} is ${shown(have?.[name])}, not ${shown(want[name])}`);
    differs ||= have === undefined || changes.length > 0;
    if (have === undefined) rows.push({ slot: want, text: `- ${describeSlot(want)}` });
    else if (changes.length === 0) rows.push({ slot: want, text: `  ${describeSlot(have)}` });
    else rows.push({ slot: want, text: `~ ${describeSlot(have)}: ${details.join(', ')}` });
  }
  for (const have of unmatched) rows.push({ slot: have, text: `+ ${describeSlot(have)}` });
  if (!differs && unmatched.length === 0) return undefined;
  rows.sort((a, b) => (a.slot.addressSpace ?? 0) - (b.slot.addressSpace ?? 0) || a.slot.gpa - b.slot.gpa);
  const legend = 'the memory slots differ from the expected ones (- missing, + not expected, ~ different):';
  return [legend, ...rows.map(({ text }) => text)].join('\n');
}

function samePlace(a: LayoutSlot, b: LayoutSlot): boolean {
  return a.gpa === b.gpa && a.size === b.size && (a.addressSpace ?? 0) === (b.addressSpace ?? 0);
}

function shown(value: number | undefined): string {
  return value === undefined ? 'not known' : hex(value);
}

function describeSlot(slot: LayoutSlot): string {
  const parts = [formatRange(slot.gpa, slot.size)];
  if (slot.addressSpace) parts.push(`address space ${slot.addressSpace}`);
  if (slot.id !== undefined) parts.push(`slot ${slot.id}`);
  if (slot.flags) parts.push(describeFlags(slot.flags));
  if (slot.host !== undefined) parts.push(`host ${hex(slot.host)}`);
  return parts.join(' ');
}

/** The flags of a slot by name. */
export function describeFlags(flags: number): string {
  const names = ['log-dirty', 'read-only', 'guest_memfd'].filter((_, bit) => flags & (1 << bit));
  const unknown = (flags & ~7) >>> 0;
  return [...names, ...(unknown ? [`flags ${hex(unknown)}`] : [])].join('+');
}
