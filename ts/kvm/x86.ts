import type { X86Start } from './backend.js';

/** Offsets in `struct kvm_sregs` (arch/x86/include/uapi/asm/kvm.h): eight segments of 24 bytes, then tables, then these. */
const special = { cs: 0, segments: 6, segmentBytes: 24, ss: 120, cr0: 224, cr3: 240, cr4: 248, efer: 264 } as const;
/** Offsets in `struct kvm_regs`. */
const general = { rsp: 48, rip: 128, rflags: 136, bytes: 144 } as const;

const protection = 1n;
const paging = 1n << 31n;
const physicalAddressExtension = 1n << 5n;
const longModeEnabled = (1n << 8n) | (1n << 10n);

/**
 * Changes `state` (a `struct kvm_sregs` as KVM_GET_SREGS gave it) to what `start` asks for, and returns the matching
 * `struct kvm_regs`. Sets no floating-point state: a host that emulates guests doesn't have it.
 */
export function initialState(start: X86Start, state: Uint8Array): Uint8Array {
  const view = new DataView(state.buffer, state.byteOffset, state.byteLength);
  const registers = new Uint8Array(general.bytes);
  const out = new DataView(registers.buffer);
  if (start.mode === 'real') {
    const base = start.entry - (start.entry % 4096);
    view.setBigUint64(special.cs, BigInt(base), true);
    view.setUint16(special.cs + 12, 0, true);
    out.setBigUint64(general.rip, BigInt(start.entry - base), true);
  } else {
    const long = start.mode === 'user';
    for (let index = 0; index < special.segments; index++)
      flatSegment(view, index * special.segmentBytes, index === 0, long);
    let cr0 = view.getBigUint64(special.cr0, true) | protection;
    if (long) {
      cr0 |= paging;
      view.setBigUint64(special.cr3, BigInt(start.pageTable ?? 0), true);
      view.setBigUint64(special.cr4, physicalAddressExtension, true);
      view.setBigUint64(special.efer, longModeEnabled, true);
    }
    view.setBigUint64(special.cr0, cr0, true);
    out.setBigUint64(general.rip, BigInt(start.entry), true);
  }
  out.setBigUint64(general.rsp, BigInt(start.stack ?? 0), true);
  out.setBigUint64(general.rflags, 2n, true);
  return registers;
}

/** A segment of 4 GiB from 0: `struct kvm_segment` at `offset`. Long mode runs at privilege level 3. */
function flatSegment(view: DataView, offset: number, code: boolean, long: boolean): void {
  const level = long ? 3 : 0;
  view.setBigUint64(offset, 0n, true);
  view.setUint32(offset + 8, 0xffffffff, true);
  view.setUint16(offset + 12, (code ? 8 : 16) | level, true);
  const type = code ? 11 : 3;
  const bytes = [type, 1, level, code && long ? 0 : 1, 1, code && long ? 1 : 0, 1, 0, 0];
  for (const [index, byte] of bytes.entries()) view.setUint8(offset + 14 + index, byte);
}

const pageBytes = 0x1000;
const largePageBytes = 0x200000;
const tableEntries = 512;
/** GiB that {@link userStart} maps. */
const mappedGibibytes = 4;
/** Bytes of the page tables that {@link userStart} writes. */
export const pageTableBytes = (2 + mappedGibibytes) * pageBytes;

/**
 * Start state of a guest at privilege level 3, with page tables that map the first 4 GiB to themselves written into
 * `tables`: {@link pageTableBytes} bytes that the guest has at `gpa`, both page-aligned.
 */
export function userStart(tables: Uint8Array, gpa: number, entry: number): X86Start {
  const view = new DataView(tables.buffer, tables.byteOffset, pageTableBytes);
  // Present, writable, for privilege level 3, accessed, dirty.
  const flags = 0x67;
  const large = 0x80;
  const set = (at: number, address: number, bits = flags) => view.setBigUint64(at, BigInt(address + bits), true);
  set(0, gpa + pageBytes);
  for (let directory = 0; directory < mappedGibibytes; directory++) {
    const at = (2 + directory) * pageBytes;
    set(pageBytes + directory * 8, gpa + at);
    for (let index = 0; index < tableEntries; index++) {
      set(at + index * 8, (directory * tableEntries + index) * largePageBytes, flags | large);
    }
  }
  return { mode: 'user', entry, pageTable: gpa };
}
