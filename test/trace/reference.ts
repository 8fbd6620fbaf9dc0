/**
 * A second reading of the recorded logs, as plainly as it can be put (regular expressions over whole files), for the
 * library's results to be compared with.
 */
import { readdirSync, readFileSync } from 'node:fs';

export const recordings = new URL('../data/qemu/', import.meta.url);
export const logs = readdirSync(recordings).filter((name) => name.endsWith('.log'));

export interface Call {
  line: number;
  micros: number | null;
  as: number;
  slot: number;
  flags: number;
  gpa: number;
  size: number;
  ua: number;
  ret: number;
}

export function text(name: string): string {
  return readFileSync(new URL(name, recordings), 'utf8');
}

const qemuCall =
  /^(?:\d+@(\d+)\.(\d{6}):)?kvm_set_user_memory (?:AddrSpace#(\d+) )?Slot#(\d+) flags=0x([0-9a-f]+) gpa=0x([0-9a-f]+) size=0x([0-9a-f]+) ua=0x([0-9a-f]+).* ret=(-?\d+)/;
const straceCall =
  /(\d\d):(\d\d):(\d\d)\.(\d{6}) ioctl\(.*KVM_SET_USER_MEMORY_REGION, \{slot=(\d+), flags=([A-Z_|0-9]+), guest_phys_addr=(\w+), memory_size=(\d+), userspace_addr=(\w+)\}\) = (-?\d+)/;

export function calls(log: string): Call[] {
  return log.split('\n').flatMap((content, index): Call[] => {
    const q = qemuCall.exec(content);
    if (q !== null) {
      const id = Number(q[4]);
      const micros = q[1] === undefined ? null : Number(BigInt(q[1]) * 1_000_000n + BigInt(q[2]!));
      const [flags, gpa, size, ua] = q.slice(5, 9).map((digits) => Number.parseInt(digits, 16));
      const as = q[3] === undefined ? id >> 16 : Number(q[3]);
      return [
        {
          line: index + 1,
          micros,
          as,
          slot: id & 0xffff,
          flags: flags!,
          gpa: gpa!,
          size: size!,
          ua: ua!,
          ret: Number(q[9]),
        },
      ];
    }
    const s = straceCall.exec(content);
    if (s === null) return [];
    const micros = ((Number(s[1]) * 60 + Number(s[2])) * 60 + Number(s[3])) * 1e6 + Number(s[4]);
    const flags = s[6]!
      .split('|')
      .reduce((sum, name) => sum + (name === '0' ? 0 : name.includes('READONLY') ? 2 : 1), 0);
    const id = Number(s[5]);
    return [
      {
        line: index + 1,
        micros,
        as: id >> 16,
        slot: id & 0xffff,
        flags,
        gpa: Number(s[7]),
        size: Number(s[8]),
        ua: Number(s[9]),
        ret: Number(s[10]),
      },
    ];
  });
}

export interface Hole {
  transaction: number;
  as: number;
  gpa: number;
  size: number;
  micros: number | null;
  reshape: boolean;
}

/** Layout at the end, transactions, holes and the most slots at once, of one VM's calls that all succeeded. */
export function replay(all: Call[]) {
  const slots = new Map<string, Call>();
  const holes: Hole[] = [];
  let deleted: { call: Call; slot: Call }[] = [];
  let transaction = -1;
  let created = false;
  let previous: Call | undefined;
  let maxSlots = 0;
  for (const call of all) {
    const key = `${call.as}/${call.slot}`;
    const old = slots.get(key);
    if (previous === undefined || previous.as !== call.as || (call.size === 0 && created)) {
      transaction++;
      created = false;
      deleted = [];
    }
    previous = call;
    if (call.size === 0) {
      if (old !== undefined) deleted.push({ call, slot: old });
      slots.delete(key);
    } else {
      if (old === undefined) {
        created = true;
        for (const { call: by, slot } of deleted) {
          const start = Math.max(slot.gpa, call.gpa);
          const end = Math.min(slot.gpa + slot.size, call.gpa + call.size);
          if (start >= end) continue;
          const same = slot.ua - slot.gpa === call.ua - call.gpa && slot.flags === call.flags;
          const micros = call.micros === null || by.micros === null ? null : call.micros - by.micros;
          holes.push({ transaction, as: call.as, gpa: start, size: end - start, micros, reshape: same });
        }
      }
      slots.set(key, call);
    }
    maxSlots = Math.max(maxSlots, slots.size);
  }
  const layout = [...slots.values()]
    .map(({ as, slot, gpa, size, ua, flags }) => ({ addressSpace: as, slot, gpa, size, hostAddress: ua, flags }))
    .sort((a, b) => a.addressSpace - b.addressSpace || a.gpa - b.gpa);
  return { layout, holes, maxSlots, transactions: transaction + 1 };
}
