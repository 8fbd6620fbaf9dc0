// Runs kvm-run.ts: Node 20 can't read TypeScript, vite can.
import { fileURLToPath } from 'node:url';
import { runnerImport } from 'vite';

const root = fileURLToPath(new URL('../..', import.meta.url));
const { module } = await runnerImport(fileURLToPath(new URL('kvm-run.ts', import.meta.url)), {
  root,
  configFile: false,
});
process.exitCode = module.run(process.argv.slice(2));
