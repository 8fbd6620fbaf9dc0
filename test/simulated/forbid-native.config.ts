import { fileURLToPath } from 'node:url';
import { configDefaults, defineConfig } from 'vitest/config';

// The tests that need no real KVM, in processes that can't have one. For nothing-native.test.ts.
export default defineConfig({
  test: {
    root: fileURLToPath(new URL('../..', import.meta.url)),
    include: ['test/simulated/**/*.test.ts', 'test/conformance/**/*.test.ts'],
    // These start programs themselves.
    exclude: [
      ...configDefaults.exclude,
      'test/simulated/nothing-native.test.ts',
      'test/simulated/browser.test.ts',
      'test/conformance/kvm-run.test.ts',
    ],
    pool: 'forks',
    maxWorkers: 1,
    execArgv: ['--require', fileURLToPath(new URL('forbid-native.cjs', import.meta.url))],
    testTimeout: 120_000,
  },
});
