// Random damage to logs and memory trees: node test/fuzz/readers.mjs SECONDS [SEED]
//
// Whatever is read, nothing but an INVALID error may come out, a lenient reader throws nothing, and a log means the
// same in whatever pieces it arrives. Prints the seed of an input that breaks this, and ends with status 1.
import { readdirSync, readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { readViews } from '../../dist/memory/flat-text.js';
import { flatten } from '../../dist/memory/flatten.js';
import { randomFrom } from '../../dist/testing/random.js';
import { TraceParser } from '../../dist/trace/index.js';

const data = new URL('../data/qemu/', import.meta.url);
const longestSeed = 6_000;

/** Pieces of every recording: the text that mutations start from. */
function seeds() {
  const all = [];
  for (const name of readdirSync(data)) {
    const bytes = readFileSync(new URL(name, data));
    const text = (name.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString('latin1');
    if (!name.endsWith('.json.gz')) {
      all.push(text.slice(0, longestSeed), text.slice(-longestSeed));
      continue;
    }
    // Snapshots hold trees and flat maps as JSON strings.
    const strings = [...text.matchAll(/"((?:[^"\\]|\\.){200,})"/g)].map(([quoted]) => JSON.parse(quoted));
    all.push(
      ...strings
        .filter((_, index) => index % 97 === 0)
        .slice(0, 8)
        .map((tree) => tree.slice(0, longestSeed)),
    );
  }
  const json = '{"kind":"slot","vm":"1","slot":0,"flags":0,"gpa":0,"size":4096,"hostAddress":65536,"result":0}\n';
  return [...all, json.repeat(3), ''];
}

const fragments = [
  '\n',
  '0x',
  'ffffffffffffffff',
  '-1',
  '(prio',
  ' @',
  'Slot#',
  'AddrSpace#',
  '{',
  '}',
  '"',
  '\0',
  '\xff',
  '\r\n',
];

/** A copy of `text` with some of it lost, doubled, moved or replaced. */
function damage(text, random) {
  const below = (bound) => Math.floor(random() * bound);
  let result = text;
  for (let times = 1 + below(6); times > 0; times--) {
    const at = below(result.length + 1);
    const end = Math.min(result.length, at + below(40));
    const piece = result.slice(at, end);
    const [before, after] = [result.slice(0, at), result.slice(end)];
    switch (below(6)) {
      case 0:
        result = before + after;
        break;
      case 1:
        result = before + piece + piece + after;
        break;
      case 2:
        result = before + fragments[below(fragments.length)] + piece + after;
        break;
      case 3:
        result = before + String.fromCharCode(below(256)) + after;
        break;
      case 4:
        result = before + piece.split('').reverse().join('') + after;
        break;
      default: {
        // Lines change places.
        const lines = result.split('\n');
        const [line] = lines.splice(below(lines.length), 1);
        lines.splice(below(lines.length + 1), 0, line);
        result = lines.join('\n');
      }
    }
  }
  return result;
}

/** Runs `read`; its result, or the text of the INVALID error. Anything else is thrown on. */
function invalidOr(read) {
  try {
    return read();
  } catch (error) {
    if (error.code === 'INVALID') return error.message;
    throw error;
  }
}

function parse(bytes, cuts, lenient) {
  const parser = new TraceParser({ lenient });
  const events = [];
  let start = 0;
  for (const cut of [...cuts, bytes.length]) {
    events.push(...parser.push(bytes.subarray(start, cut)));
    start = cut;
  }
  events.push(...parser.end());
  const { counts } = parser;
  const lines = counts.foreign + counts.malformed + counts.tooLong;
  if (lines > counts.lines) throw new Error(`more lines than there are: ${JSON.stringify(counts)}`);
  return JSON.stringify([events, counts], (_, value) => (typeof value === 'bigint' ? `${value}n` : value));
}

function check(text, random) {
  const bytes = Buffer.from(text, 'latin1');
  const cuts = Array.from({ length: Math.floor(random() * 6) }, () => Math.floor(random() * bytes.length)).sort(
    (a, b) => a - b,
  );
  const lenient = parse(bytes, [], true);
  if (parse(bytes, cuts, true) !== lenient) throw new Error(`pieces cut at ${cuts} are read differently`);
  const strict = invalidOr(() => parse(bytes, [], false));
  const again = invalidOr(() => parse(bytes, cuts, false));
  if (strict !== again) throw new Error(`strictly, pieces cut at ${cuts} are read differently`);
  invalidOr(() => flatten(text));
  invalidOr(() => readViews(text));
}

const [seconds = '10', first = String(Date.now() % 1e9)] = process.argv.slice(2);
const corpus = seeds();
const end = performance.now() + Number(seconds) * 1000;
let seed = Number(first);
let inputs = 0;
do {
  const random = randomFrom(seed);
  const text = damage(corpus[Math.floor(random() * corpus.length)], random);
  try {
    check(text, random);
  } catch (error) {
    console.error(`seed ${seed}: ${error.stack}\n${JSON.stringify(text.slice(0, 2000))}`);
    process.exit(1);
  }
  seed++;
  inputs++;
} while (performance.now() < end);
console.log(`readers: ${inputs} inputs from seed ${first}, nothing found`);
