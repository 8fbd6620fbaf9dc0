#!/usr/bin/env node
import { type Command, help, nearest, parse, UsageError } from './cli/command.js';
import { MemorySlotsError } from './core/errors.js';

/** Commands by name; each file is loaded only when its command is asked for. */
const commands: Record<string, () => Promise<{ command: Command }>> = {
  analyze: () => import('./cli/analyze.js'),
  demo: () => import('./cli/demo.js'),
  flatten: () => import('./cli/flatten.js'),
  replay: () => import('./cli/replay.js'),
  view: () => import('./cli/view.js'),
  watch: () => import('./cli/watch.js'),
};

async function overview(): Promise<string> {
  const loaded = await Promise.all(Object.values(commands).map(async (load) => (await load()).command));
  const rows = loaded.map((command) => `  ${command.name.padEnd(12)} ${command.summary}`);
  return ['memslots COMMAND [OPTION ...]', '', ...rows, '', 'memslots COMMAND --help tells more.', ''].join('\n');
}

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === '--help' || name === 'help') {
    process.stdout.write(await overview());
    return name === undefined ? 2 : 0;
  }
  const load = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (load === undefined) {
    const guess = nearest(name, Object.keys(commands));
    throw new UsageError(`unknown command '${name}'${guess === undefined ? '' : `: did you mean '${guess}'?`}`);
  }
  const { command } = await load();
  if (rest.includes('--help')) {
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
    if (error instanceof UsageError) process.stderr.write(`memslots: ${error.message}\nSee memslots --help.\n`);
    else if (error instanceof MemorySlotsError) process.stderr.write(`memslots: ${error.message}\n`);
    else process.stderr.write(`memslots: ${error instanceof Error ? error.stack : String(error)}\n`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  },
);
