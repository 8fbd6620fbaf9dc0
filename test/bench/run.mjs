// Builds what is missing and runs bench.ts: Node 20 can't read TypeScript, esbuild can.
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('../..', import.meta.url));
// Standard output is for the report.
execFileSync('make', ['--silent', 'build', 'test/artefacts/rivals.so'], { cwd: root, stdio: ['ignore', 2, 2] });
// The package's own files stay as they were built: what is measured is what users get.
const built = {
  name: 'built files',
  setup({ onResolve }) {
    onResolve({ filter: /^\.\.\/\.\.\/ts\// }, ({ path }) => ({
      path: path.replace('../../ts/', '../../dist/'),
      external: true,
    }));
  },
};
const outfile = `${root}/test/artefacts/bench.mjs`;
const options = { format: 'esm', platform: 'node', target: 'node20', packages: 'external', plugins: [built] };
await build({ entryPoints: [`${root}/test/bench/bench.ts`], bundle: true, outfile, logLevel: 'warning', ...options });
const { run } = await import(outfile);
process.exitCode = await run(process.argv.slice(2));
