import { type ReadOptions, type SlotUpdate, type TraceEvent, TraceParser } from '../../ts/trace/index.js';

/** Everything that a log says, read in pieces of the given size (bytes). */
export function read(log: string | Uint8Array, options: ReadOptions = {}, piece = Number.POSITIVE_INFINITY) {
  const parser = new TraceParser(options);
  const bytes = typeof log === 'string' ? new TextEncoder().encode(log) : log;
  const events: TraceEvent[] = [];
  for (let at = 0; at < bytes.length; at += piece) events.push(...parser.push(bytes.subarray(at, at + piece)));
  events.push(...parser.end());
  return { events, counts: parser.counts, format: parser.format };
}

export function slotCalls(log: string, options: ReadOptions = {}): SlotUpdate[] {
  return read(log, options).events.filter((event) => event.kind === 'slot');
}
