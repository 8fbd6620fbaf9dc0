import { type ChildProcessByStdio, spawn } from 'node:child_process';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';

/** The path of the command line, which was built before any test ran (build.ts). */
export async function buildCli(): Promise<string> {
  return fileURLToPath(new URL('../dist/cli.js', import.meta.url));
}

export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts `memslots` with `args`; the second value resolves once it has ended. */
export function startCli(
  cli: string,
  args: readonly string[],
): { process: ChildProcessByStdio<Writable, Readable, Readable>; ended: Promise<Ended> } {
  const process = spawn('node', [cli, ...args], { stdio: ['pipe', 'pipe', 'pipe'] });
  let [stdout, stderr] = ['', ''];
  process.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    stdout += chunk;
  });
  process.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    stderr += chunk;
  });
  const ended = new Promise<Ended>((resolve) => process.on('close', (status) => resolve({ status, stdout, stderr })));
  return { process, ended };
}

/** Runs `memslots` with `args` and `input` on its standard input. */
export function runCli(cli: string, args: readonly string[], input = ''): Promise<Ended> {
  const { process, ended } = startCli(cli, args);
  process.stdin.on('error', () => undefined);
  process.stdin.end(input);
  return ended;
}
