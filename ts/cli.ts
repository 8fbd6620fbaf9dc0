#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { type Command, help, nearest, parse, UsageError } from './cli/command.js';
import { MemorySlotsError } from './core/errors.js';

/** Commands by name; each file is loaded only when its command is asked for. */
const commands: Record<string, () => Promise<{ command: Command }>> = {
  analyze: () => import('./cli/analyze.js'),
  demo: () => import('./cli/demo.js'),
  doctor: () => import('./cli/doctor.js'),
  flatten: () => import('./cli/flatten.js'),
  replay: () => import('./cli/replay.js'),
  view: () => import('./cli/view.js'),
  watch: () => import('./cli/watch.js'),
};

const exitStatuses = [
  [0, 'done; for commands that pass a verdict (see their help), a good one'],
  [1, 'a failure, which standard error tells, or a bad verdict'],
  [2, 'a wrong command line'],
  [130, 'interrupted'],
] as const;

const allCommands = () => Promise.all(Object.values(commands).map(async (load) => (await load()).command));

async function overview(): Promise<string> {
  const rows = (await allCommands()).map((command) => `  ${command.name.padEnd(12)} ${command.summary}`);
  return [
    'memslots COMMAND [OPTION ...]',
    '',
    ...rows,
    '',
    '  --help       show this text, or after a command its help',
    '  --version    print the version',
    '  --man        print the manual page, for man: memslots --man | man -l -',
    '',
    'Exit status',
    ...exitStatuses.map(([status, meaning]) => `  ${String(status).padEnd(12)} ${meaning}`),
    '',
  ].join('\n');
}

function version(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

/** What a wrong command line is answered with. */
let whereHelpIs = 'memslots --help';

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined) {
    process.stderr.write(await overview());
    return 2;
  }
  if (name === 'help' && rest[0] !== undefined) return main([rest[0], '--help']);
  if (name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(await overview());
    return 0;
  }
  if (name === '--version') {
    process.stdout.write(`${version()}\n`);
    return 0;
  }
  if (name === '--man') {
    const { manual } = await import('./cli/manual.js');
    process.stdout.write(manual(version(), await allCommands(), exitStatuses));
    return 0;
  }
  const load = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (load === undefined) {
    const guess = nearest(name, [...Object.keys(commands), '--help', '--version', '--man']);
    throw new UsageError(`unknown command '${name}'${guess === undefined ? '' : `: did you mean '${guess}'?`}`);
  }
  const { command } = await load();
  whereHelpIs = `memslots ${name} --help`;
  if (rest.includes('--help') || rest.includes('-h')) {
    process.stdout.write(help(command));
    return 0;
  }
  const { values, operands } = parse(command, rest);
  return command.run(values, operands);
}

// Whoever reads the output may stop early, as head does.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

main(process.argv.slice(2)).then(
  (status) => {
    process.exitCode = status;
  },
  (error: unknown) => {
    if (error instanceof UsageError) process.stderr.write(`memslots: ${error.message}\nSee ${whereHelpIs}.\n`);
    else if (error instanceof MemorySlotsError) process.stderr.write(`memslots: ${error.message}\n`);
    else process.stderr.write(`memslots: ${error instanceof Error ? error.stack : String(error)}\n`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  },
);
