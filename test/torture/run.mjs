// Builds what is missing and runs a command of this folder, by its file's name: Node 20 can't read TypeScript, vite can.
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { runnerImport } from 'vite';

const [name, ...args] = process.argv.slice(2);
const root = fileURLToPath(new URL('../..', import.meta.url));
// Standard output is for the report.
execFileSync('make', ['--silent', 'build'], { cwd: root, stdio: ['ignore', 2, 2] });
const { module } = await runnerImport(fileURLToPath(new URL(`${name}.ts`, import.meta.url)), {
  root,
  configFile: false,
});
process.exitCode = await module.run(args);
