// Makes dist/page from dist/viewer: viewer.js (for other pages) and viewer.html (the page, all in one file).
// Run from the top of the project, after everything else was built.
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { build } from 'esbuild';

const output = 'dist/page';
const assets = {
  'memslots-core-shared': ['wasm-build/slots-shared.wasm', 'binary'],
  'memslots-style': ['ts/viewer/style.css', 'text'],
};

/** Puts files, and the text of the workers' script, in the place of the imports that assets.d.ts declares. */
function assetPlugin(workerScript) {
  return {
    name: 'assets',
    setup(builder) {
      builder.onResolve({ filter: /^memslots-/ }, ({ path }) => ({ path, namespace: 'asset' }));
      builder.onLoad({ filter: /.*/, namespace: 'asset' }, ({ path }) => {
        if (path === 'memslots-worker') return { contents: workerScript, loader: 'text' };
        const [file, loader] = assets[path];
        return { contents: readFileSync(file), loader };
      });
    },
  };
}

async function bundle(entry, format, workerScript = '') {
  const result = await build({
    entryPoints: [entry],
    bundle: true,
    minify: true,
    write: false,
    format,
    target: 'es2022',
    platform: 'browser',
    charset: 'utf8',
    legalComments: 'none',
    plugins: [assetPlugin(workerScript)],
  });
  return result.outputFiles[0].text;
}

const hash = (text) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

const worker = await bundle('dist/viewer/simulation-worker.js', 'iife');
const library = await bundle('dist/viewer/index.js', 'esm', worker);
// A script inside HTML ends at the first `</script`; in a string of JavaScript the same can be written so.
const script = (await bundle('dist/viewer/page.js', 'esm', worker)).replaceAll('</script', '<\\/script');
const style =
  'html,body{margin:0;height:100%;background:#0e1217}#viewer{height:100%}@media(prefers-color-scheme:light){html,body{background:#fff}}';
const policy = [
  "default-src 'none'",
  `script-src ${hash(script)} 'wasm-unsafe-eval'`,
  `style-src ${hash(style)}`,
  'worker-src blob:',
  'img-src data:',
  "connect-src 'none'",
  "base-uri 'none'",
  "form-action 'none'",
].join('; ');

const page = readFileSync(resolve('ts/viewer/page.html'), 'utf8')
  .replace('content="policy"', () => `content="${policy}"`)
  .replace('/* style */', () => style)
  .replace('/* script */', () => script);
mkdirSync(output, { recursive: true });
writeFileSync(`${output}/viewer.html`, page);
writeFileSync(`${output}/viewer.js`, library);
