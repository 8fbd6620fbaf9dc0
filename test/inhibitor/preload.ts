import { createRequire, syncBuiltinESMExports } from 'node:module';
import type { Worker, WorkerOptions } from 'node:worker_threads';

const threads = createRequire(import.meta.url)('node:worker_threads') as { Worker: typeof Worker };

/** While `body` runs, threads that are started load `module` first, with `environment` added to theirs. */
export async function preloading<Result>(
  module: URL,
  environment: Readonly<Record<string, string>>,
  body: () => Promise<Result>,
): Promise<Result> {
  const Original = threads.Worker;
  threads.Worker = class extends Original {
    constructor(script: string | URL, options: WorkerOptions) {
      super(script, { ...options, execArgv: ['--import', module.href], env: { ...process.env, ...environment } });
    }
  };
  syncBuiltinESMExports();
  try {
    return await body();
  } finally {
    threads.Worker = Original;
    syncBuiltinESMExports();
  }
}
