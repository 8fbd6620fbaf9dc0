// A worker thread whose program is a TypeScript module: workerData.module is its URL. Node 20 can't read it, vite can.
import { fileURLToPath } from 'node:url';
import { workerData } from 'node:worker_threads';
import { runnerImport } from 'vite';

await runnerImport(fileURLToPath(workerData.module), {
  root: fileURLToPath(new URL('..', import.meta.url)),
  configFile: false,
});
