import { MemorySlotsError } from './errors.js';

/** The fields that TypeScript uses, by record of csrc/slots.h. Their offsets come from C at start-up. */
const records = {
  range: ['gpa', 'size', 'host', 'offset', 'id', 'flags', 'region', 'since', 'address_space', 'guest_memfd'],
  table: ['capacity', 'count'],
  map: ['commit'],
  operation: ['slot', 'kind', 'reason', 'old_flags', 'harvest', 'result'],
  request: [
    'policy',
    'page_size',
    'largest_slot',
    'slot_limit',
    'discard_dirty',
    'delete_count',
    'add_count',
    'split_count',
    'operation_capacity',
    'scratch_capacity',
  ],
  plan: [
    'operation_count',
    'inhibit',
    'overlap',
    'harvest',
    'creates',
    'deletes',
    'flag_changes',
    'kept',
    'merged',
    'needed',
    'full_address_space',
    'bytes_torn_down',
    'bytes_remapped',
  ],
} as const;

const constants = [
  'MAGIC',
  'ABI_VERSION',
  'LOG_DIRTY',
  'READONLY',
  'GUEST_MEMFD',
  'BACKED',
  'LOGGING_ONLY',
  'ANY_ID',
  'POLICY_EXACT',
  'POLICY_STABLE',
  'CREATE',
  'DELETE',
  'FLAGS',
  'REASON_ADDED',
  'REASON_REMAINDER',
  'REASON_GONE',
  'REASON_CHANGED',
  'REASON_MERGED',
  'REASON_LOGGING',
  'PATH_SCALAR',
  'PATH_AVX2',
  'PATH_SIMD128',
] as const;

type Records = typeof records;

/** Byte offsets of the fields of each record, and its size as `bytes`; constants by name. All come from C. */
export type Layout = {
  readonly [Name in keyof Records]: { readonly bytes: number } & {
    readonly [Field in Records[Name][number]]: number;
  };
} & { readonly constants: Readonly<Record<(typeof constants)[number], number>>; readonly text: string };

/** The version of the ABI that this TypeScript was written for. */
const abiVersion = 2;
const magic = 0x4b4d5331;

/**
 * Reads what C's `memslots_layout` wrote. Throws `UNSUPPORTED` if it is of another version, or lacks a name: then the
 * compiled core and this package don't belong together.
 */
export function parseLayout(text: string): Layout {
  const values = new Map(
    text
      .trimEnd()
      .split('\n')
      .map((line) => {
        const [name, value] = line.split('=');
        return [name, Number(value)] as const;
      }),
  );
  const value = (name: string): number => {
    const found = values.get(name);
    if (found === undefined || !Number.isInteger(found)) {
      throw new MemorySlotsError('UNSUPPORTED', `the compiled core's layout has no ${name}: build it again`);
    }
    return found;
  };
  if (value('MAGIC') !== magic || value('ABI_VERSION') !== abiVersion) {
    const message = `the compiled core has ABI version ${values.get('ABI_VERSION')}, this package needs ${abiVersion}`;
    throw new MemorySlotsError('UNSUPPORTED', `${message}: build it again`);
  }
  const offsets = Object.entries(records).map(([record, fields]) => [
    record,
    { bytes: value(record), ...Object.fromEntries(fields.map((field) => [field, value(`${record}.${field}`)])) },
  ]);
  return {
    ...Object.fromEntries(offsets),
    constants: Object.fromEntries(constants.map((name) => [name, value(name)])),
    text,
  } as Layout;
}
