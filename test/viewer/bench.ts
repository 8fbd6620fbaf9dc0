/**
 * Cost of drawing 32,764 slots after 10,000 commits, in a real browser. Prints rows as JSON:
 * `{rows: [{name, ours, rival, ratio, reach, reached}], skipped: [{name, why}]}`, times in milliseconds. The rival is the
 * same drawing unmerged. Run with a bundler, after `make build`: see `npm run bench`.
 */
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { missingBrowser, startBrowser } from './browser.js';

/** What {@link viewerRows} answers. */
export interface BenchResult {
  readonly rows: readonly {
    readonly name: string;
    readonly ours: number;
    readonly rival: number | null;
    readonly ratio: number | null;
    readonly reach: number;
    readonly reached: boolean;
  }[];
  readonly skipped: readonly { readonly name: string; readonly why: string }[];
}

interface Figures {
  readonly first: number;
  readonly frame: { readonly p95: number };
  readonly unmergedFrame: { readonly p95: number };
}

/** Measures. Rows without a browser to measure in are skipped. */
export async function viewerRows(): Promise<BenchResult> {
  const why = missingBrowser();
  if (why !== undefined) return { rows: [], skipped: [{ name: 'viewer: drawing', why }] };
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL('bench-page.ts', import.meta.url))],
    bundle: true,
    write: false,
    format: 'iife',
    target: 'es2022',
  });
  const browser = await startBrowser();
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 720 } });
    await page.setContent('<style>body { height: 700px } .map { height: 100%; position: relative }</style>');
    await page.evaluate(outputFiles[0]!.text);
    const { first, frame, unmergedFrame } = (await page.evaluate('measure()')) as Figures;
    const row = (name: string, ours: number, rival: number | null, reach: number) => ({
      name,
      ours,
      rival,
      ratio: rival === null ? null : ours / rival,
      reach,
      reached: ours <= reach,
    });
    return {
      rows: [
        row('viewer: first drawing of 32,764 slots after 10,000 commits (ms)', first, null, 200),
        row('viewer: frame p95 while panning and zooming, against unmerged (ms)', frame.p95, unmergedFrame.p95, 8),
      ],
      skipped: [],
    };
  } finally {
    await browser.close();
  }
}
