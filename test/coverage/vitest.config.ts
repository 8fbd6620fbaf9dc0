import { existsSync } from 'node:fs';
import { relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { defineConfig, type Plugin, type TestProjectInlineConfiguration } from 'vitest/config';
import suite from '../../vitest.config.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/**
 * Tests import ts/x.ts; here they get dist/x.js, loaded by Node itself. vCPU threads and the command line run dist in
 * any case, so every process and thread runs the same files, and what they ran can be put together.
 */
const built: Plugin = {
  name: 'built',
  enforce: 'pre',
  resolveId(source, importer) {
    if (!source.startsWith('.') || importer === undefined) return null;
    const path = relative(root, resolve(importer, '..', source));
    const id = resolve(root, path.replace(/^ts\//, 'dist/'));
    return path.startsWith('ts/') && existsSync(id) ? id : null;
  },
};

// These look at the package, its pages, and a library that isn't the one with counters; or go by what is done in a time.
const leftOut = ['test/package/{arm64,docs,package}.test.ts', 'test/viewer/**', 'test/torture/**'];

export default defineConfig({
  test: {
    ...suite.test,
    root,
    projects: (suite.test!.projects as TestProjectInlineConfiguration[]).map((project) => ({
      plugins: [built],
      test: {
        ...project.test,
        root,
        exclude: [...(project.test!.exclude ?? []), ...leftOut],
        setupFiles: ['test/coverage/flush.ts'],
        server: { deps: { external: [/\/dist\//] } },
        testTimeout: 240_000,
      },
    })),
  },
});
