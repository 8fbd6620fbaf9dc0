import type { TraceEvent } from './event.js';
import { type LineParser, MalformedLine, type noEvent } from './parser.js';

const newline = 10;
const openingBrace = 123;

/** What each field of an event must be; a question mark allows it to be absent. */
type Check = 'count' | 'integer' | 'string' | 'boolean' | 'strings' | 'count?' | 'memfd?' | 'ranges';

const kinds: { readonly [Kind in TraceEvent['kind']]: Readonly<Record<string, Check>> } = {
  slot: {
    vm: 'string',
    addressSpace: 'count',
    slot: 'count',
    flags: 'count',
    gpa: 'count',
    size: 'count',
    hostAddress: 'count',
    guestMemfd: 'memfd?',
    result: 'integer',
  },
  'run-exit': { vcpu: 'count', reason: 'integer' },
  'slots-grow': { from: 'count', to: 'count' },
  'clear-dirty-log': { slot: 'count', start: 'count', size: 'count' },
  commit: { transaction: 'count' },
  'window-begin': { transaction: 'count' },
  'window-end': { transaction: 'count' },
  rollback: { transaction: 'count', result: 'integer' },
  'flat-view': { view: 'count', addressSpaces: 'strings', ranges: 'ranges' },
};
const common = { time: 'count?', thread: 'count?' } as const;
const memfd = { fd: 'count', offset: 'count' } as const;
const range = {
  gpa: 'count',
  size: 'count',
  type: 'string',
  nonVolatile: 'boolean',
  priority: 'integer',
  name: 'string',
  offset: 'count',
  kvm: 'boolean',
} as const;

/** An event as one line of this library's JSON, without the newline. */
export function toJson(event: TraceEvent): string {
  const { line: _, kind, ...fields } = event;
  return JSON.stringify({ kind, ...fields });
}

/** This library's own JSON: one event a line, `{"kind":"slot","vm":"vm",…}`, with the fields of {@link TraceEvent}. */
export class JsonParser implements LineParser {
  readonly format = 'json';
  end = 0;
  readonly #decoder = new TextDecoder();

  parse(bytes: Uint8Array, start: number, line: number): TraceEvent | typeof noEvent | undefined {
    this.end = bytes.indexOf(newline, start);
    if (bytes[start] !== openingBrace) return undefined;
    const text = this.#decoder.decode(bytes.subarray(start, this.end));
    if (!/^\{\s*"kind"\s*:/.test(text)) return undefined;
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      throw new MalformedLine(`it isn't JSON (${(error as Error).message})`);
    }
    const { kind } = value as { kind: string };
    if (!Object.hasOwn(kinds, kind)) throw new MalformedLine(`there is no kind of event '${kind}'`);
    const { slot, addressSpace } = { slot: 0, addressSpace: 0, ...(value as object) };
    const fields = checked(value, { ...common, ...kinds[kind as TraceEvent['kind']] }, kind);
    if (kind === 'slot' && (slot > 0xffff || addressSpace > 0xffff)) {
      throw new MalformedLine(`there is no slot ${slot} of address space ${addressSpace}`);
    }
    return { kind, line, ...fields } as TraceEvent;
  }
}

/** The fields of `value` that `checks` name, all of the right type. */
function checked(value: unknown, checks: Readonly<Record<string, Check>>, where: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null) throw new MalformedLine(`${where} isn't an object`);
  const fields: Record<string, unknown> = {};
  for (const [name, check] of Object.entries(checks)) {
    const field = (value as Record<string, unknown>)[name];
    fields[name] = field === undefined && check.endsWith('?') ? undefined : one(field, check, `${where}.${name}`);
  }
  return fields;
}

function one(field: unknown, check: Check, where: string): unknown {
  switch (check) {
    case 'count':
    case 'count?':
      // Addresses above 2^53 are held exactly when they are multiples of a page.
      if (typeof field === 'number' && Number.isInteger(field) && field >= 0 && field < 2 ** 64) return field;
      break;
    case 'integer':
      if (Number.isSafeInteger(field)) return field;
      break;
    case 'string':
    case 'boolean':
      if (typeof field === check) return field;
      break;
    case 'strings':
      if (Array.isArray(field) && field.every((text) => typeof text === 'string')) return field;
      break;
    case 'memfd?':
      return checked(field, memfd, where);
    case 'ranges':
      if (Array.isArray(field)) return field.map((item: unknown, index) => checked(item, range, `${where}[${index}]`));
  }
  throw new MalformedLine(`${where} is ${JSON.stringify(field)}`);
}
