import { parseArgs } from 'node:util';
import { compare, describe } from './kvm-compare.js';
import { kvmMissing, RealKernel } from './kvm-real.js';
import { realSubject, simulatedSubject } from './kvm-subjects.js';

const usage = `npm run conformance:kvm -- [--calls N] [--seed S] [--json]

Makes N random calls (default 20000) on the simulated KVM and on /dev/kvm, and stops at the first to which they answer
differently, with a shortest sequence that shows it. The last line of output is {calls, seed, mismatches, backend};
with --json there is no other on standard output. Status 1: a difference, or no KVM to compare with; 2: a wrong command line.`;

function count(name: string, text: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(value)) return value;
  throw new RangeError(`--${name} takes a whole number, not '${text}'`);
}

interface Options {
  readonly calls: number;
  readonly seed: number;
  readonly json: boolean;
  readonly help: boolean;
}

function parse(args: string[]): Options {
  const { values } = parseArgs({
    args,
    options: {
      calls: { type: 'string', default: '20000' },
      seed: { type: 'string', default: '1' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  return { ...values, calls: count('calls', values.calls), seed: count('seed', values.seed) };
}

/** The command: its exit status. */
export function run(args: string[]): number {
  let options: Options;
  try {
    options = parse(args);
  } catch (error) {
    console.error((error as Error).message);
    return 2;
  }
  const { calls, seed, json, help } = options;
  if (help) {
    console.log(usage);
    return 0;
  }
  const missing = kvmMissing();
  if (missing !== undefined) {
    console.error(missing);
    console.log(JSON.stringify({ calls: 0, seed, mismatches: 0, backend: 'none', skipped: missing }));
    return 1;
  }
  const host = RealKernel.hostOptions();
  const report = (done: number): void => {
    if (process.stderr.isTTY) process.stderr.write(`\r${done} of ${calls} calls`);
  };
  const comparison = compare([() => simulatedSubject(host), realSubject], host, calls, seed, report);
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
  const { mismatch } = comparison;
  if (mismatch !== undefined) {
    const text = `The simulated KVM answers call ${comparison.calls} differently:\n${describe(mismatch, ['simulated', 'kvm'])}`;
    if (json) console.error(text);
    else console.log(text);
  }
  const mismatches = mismatch === undefined ? 0 : 1;
  console.log(JSON.stringify({ calls: comparison.calls, seed, mismatches, backend: 'kvm' }));
  return mismatches;
}
