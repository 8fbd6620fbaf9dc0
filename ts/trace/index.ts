export * from './analysis.js';
export { type AnalyzeOptions, Analyzer, analyze } from './analyze.js';
export * from './event.js';
export { formatEvent, type LoggedEvent } from './format.js';
export { toJson } from './json.js';
export { type Change, type Effect, Layout } from './layout.js';
export { PerfettoTrace } from './perfetto.js';
export {
  longestLine,
  type ReadOptions,
  readTrace,
  Trace,
  type TraceCounts,
  TraceParser,
  type TraceSource,
} from './reader.js';
export { Grouper, groupTransactions, type Step, type Transaction } from './transactions.js';
