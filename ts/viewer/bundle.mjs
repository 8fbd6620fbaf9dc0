// Makes dist/page from dist/viewer: viewer.js (for other pages) and viewer.html (the page, all in one file).
// Run from the top of the project, after everything else was built.
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { build } from 'esbuild';

const output = 'dist/page';
/** What the imports that ts/viewer/assets.d.ts declares stand for. */
const assets = {
  'memslots-core-shared': { contents: readFileSync('wasm-build/slots-shared.wasm'), loader: 'binary' },
  'memslots-style': { contents: readFileSync('ts/viewer/style.css'), loader: 'text' },
};

const assetPlugin = {
  name: 'assets',
  setup(builder) {
    builder.onResolve({ filter: /^memslots-/ }, ({ path }) => ({ path, namespace: 'asset' }));
    builder.onLoad({ filter: /.*/, namespace: 'asset' }, ({ path }) => assets[path]);
  },
};

async function bundle(entry, format) {
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
    plugins: [assetPlugin],
  });
  return result.outputFiles[0].text;
}

const hash = (text) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

assets['memslots-vcpu-worker'] = { contents: await bundle('dist/kvm/simulated-web-worker.js', 'iife'), loader: 'text' };
assets['memslots-simulation-worker'] = {
  contents: await bundle('dist/viewer/simulation-worker.js', 'iife'),
  loader: 'text',
};
const library = await bundle('dist/viewer/index.js', 'esm');
// A script inside HTML ends at the first `</script`; in a string of JavaScript the same can be written so.
const script = (await bundle('dist/viewer/page.js', 'esm')).replaceAll('</script', '<\\/script');
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
