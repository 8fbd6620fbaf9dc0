import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { missingBrowser, startBrowser } from '../viewer/browser.js';
import type { Report } from './report.js';

/** Found from here and from where this is bundled to. */
const pageScript = fileURLToPath(new URL('../viewer/bench-page.ts', import.meta.url));

/** Milliseconds that measure() of bench-page.ts finds. */
interface Figures {
  readonly first: number;
  readonly unmergedFirst: number;
  readonly frame: number;
  readonly unmergedFrame: number;
}

/** What drawing 32,764 slots after 10,000 commits of 16 calls takes in a real browser; the rival draws one by one. */
export async function viewer(report: Report): Promise<void> {
  const why = missingBrowser();
  if (why !== undefined) {
    report.skip('drawing in the browser', why);
    return;
  }
  const script = await build({
    entryPoints: [pageScript],
    bundle: true,
    write: false,
    format: 'iife',
    target: 'es2022',
  });
  const browser = await startBrowser();
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 720 } });
    await page.setContent('<style>body { height: 700px } .map { height: 100%; position: relative }</style>');
    await page.evaluate(script.outputFiles[0]!.text);
    const { first, unmergedFirst, frame, unmergedFrame } = (await page.evaluate('measure()')) as Figures;
    report.add('first drawing after the data is there (ms), rival unmerged', first, unmergedFirst, () => 200);
    report.add('frame while panning and zooming, p95 of 300 (ms), rival unmerged', frame, unmergedFrame, () => 8);
  } finally {
    await browser.close();
  }
}
