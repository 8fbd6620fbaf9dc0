// Makes the API reference, docs/api/*.md, from the doc comments of the built package: node docs/api.mjs [OUT]
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Extractor, ExtractorConfig } from '@microsoft/api-extractor';

const root = fileURLToPath(new URL('..', import.meta.url));
const [out = join(root, 'docs/api')] = process.argv.slice(2);

/** Entries of the package: page, module, and what the page says first. */
const entries = [
  ['main', 'index', 'kvm-memslots', 'The library under Node.'],
  ['browser', 'browser', 'kvm-memslots, in a browser', 'What a bundler takes for browsers from the same name.'],
  ['trace', 'trace/index', 'kvm-memslots/trace', 'Reading, analysing and writing logs of slot changes. Works in browsers too.'],
  ['testing', 'testing/index', 'kvm-memslots/testing', 'The simulated KVM by itself, for tests of memory-slot code.'],
  ['viewer', 'viewer/index', 'kvm-memslots/viewer', 'The browser view, for other pages.'],
];

/** The model of one entry, as api-extractor makes it. */
function extract(module, folder) {
  const file = join(folder, 'model.json');
  const config = ExtractorConfig.prepare({
    configObject: {
      projectFolder: root,
      mainEntryPointFilePath: join(root, `dist/${module}.d.ts`),
      compiler: { tsconfigFilePath: join(root, 'tsconfig.json') },
      apiReport: { enabled: false },
      dtsRollup: { enabled: false },
      docModel: { enabled: true, apiJsonFilePath: file },
      messages: {
        compilerMessageReporting: { default: { logLevel: 'error' } },
        extractorMessageReporting: { default: { logLevel: 'none' } },
        tsdocMessageReporting: { default: { logLevel: 'none' } },
      },
    },
    packageJsonFullPath: join(root, 'package.json'),
  });
  const { succeeded } = Extractor.invoke(config, {
    localBuild: true,
    messageCallback(message) {
      message.handled = message.logLevel !== 'error';
    },
  });
  if (!succeeded) throw new Error(`api-extractor can't read ${module}`);
  return JSON.parse(readFileSync(file, 'utf8')).members[0].members;
}

/** A doc comment as Markdown: without its stars, links as code. */
function prose(comment = '') {
  return comment
    .trim()
    .replace(/^\/\*\*|\*\/$/g, '')
    .split('\n')
    .map((line) => line.replace(/^\s*\* ?/, ''))
    .join('\n')
    .replace(/\{@link ([^}|]+)(\|[^}]*)?\}/g, (_, name) => `\`${name.trim()}\``)
    .replace(/^@\w+.*$/gm, '')
    .trim();
}

const signature = ({ excerptTokens }) =>
  excerptTokens
    .map(({ text }) => text)
    .join('')
    .replace(/^export (declare )?/, '')
    .replace(/;$/, '')
    .trim();

/** What is marked as internal, or speaks of something that isn't exported, isn't meant for users. */
function isPublic(member) {
  if (/@internal/.test(member.docComment ?? '')) return false;
  return !member.excerptTokens.some(({ canonicalReference }) => /^kvm-memslots!~/.test(canonicalReference ?? ''));
}

const order = ['Class', 'Interface', 'TypeAlias', 'Function', 'Variable'];

function item(member) {
  const lines = [`## ${member.name}`, '', '```ts', signature(member), '```', '', prose(member.docComment)];
  const inside = (member.members ?? []).filter(isPublic);
  for (const each of inside) {
    const text = prose(each.docComment).replaceAll('\n', '\n  ');
    lines.push('', `- \`${signature(each).replaceAll(/\s+/g, ' ')}\`${text === '' ? '' : `\n\n  ${text}`}`);
  }
  return lines.join('\n');
}

mkdirSync(out, { recursive: true });
const folder = mkdtempSync(join(tmpdir(), 'memslots-api-'));
try {
  for (const [page, module, name, text] of entries) {
    const members = extract(module, folder)
      .filter((member) => !/@internal/.test(member.docComment ?? ''))
      .sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind) || (a.name < b.name ? -1 : 1));
    const blocks = [
      `# ${name}`,
      '',
      `${text} Made from the sources' doc comments: \`make docs\`.`,
      '',
      members.map(({ name: each }) => `[${each}](#${each.toLowerCase()})`).join(' · '),
      '',
      members.map(item).join('\n\n'),
    ];
    writeFileSync(join(out, `${page}.md`), `${blocks.join('\n').replace(/\n{3,}/g, '\n\n').trim()}\n`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
