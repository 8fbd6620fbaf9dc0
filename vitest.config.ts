import { configDefaults, defineConfig } from 'vitest/config';

const shared = {
  // A vCPU that leaks would hang a thread pool for ever; a forked process can be killed.
  pool: 'forks' as const,
  testTimeout: 120_000,
  hookTimeout: 120_000,
};

/** The tests of the C core run twice, once on each build; a forced build never falls back. */
const onBuild = (build: 'native' | 'wasm') => ({
  test: { ...shared, name: build, include: ['test/core/**/*.test.ts'], env: { MEMSLOTS_CORE: build } },
});

export default defineConfig({
  test: {
    reporters: ['verbose'],
    globalSetup: ['test/build.ts'],
    // Two files at a time at most: those that drive vCPUs want the processors for themselves.
    maxWorkers: 2,
    projects: [
      onBuild('native'),
      onBuild('wasm'),
      {
        test: {
          ...shared,
          name: 'package',
          include: ['test/**/*.test.ts'],
          exclude: [...configDefaults.exclude, 'test/core/**'],
          // Threads, browsers and a real KVM on a shared machine: what fails must fail twice to count.
          retry: process.env.CI ? 1 : 0,
        },
      },
    ],
  },
});
