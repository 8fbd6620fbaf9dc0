// Writes the WASM core as an ES module to the file that is named, so that bundlers need no rule for .wasm files and
// pages opened from a file can load it: node wasm-build/inline.mjs OUT.js
import { readFileSync, writeFileSync } from 'node:fs';

const bytes = readFileSync(new URL('slots.wasm', import.meta.url));
const text = `/** The WASM core for unshared memory, base64. */\nexport const wasm =\n  '${bytes.toString('base64')}';\n`;
writeFileSync(process.argv[2], text);
