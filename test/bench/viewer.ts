import type { Report } from './report.js';

/** What drawing the map in a browser costs: measured by test/viewer/bench.ts in a page. */
export async function viewer(report: Report): Promise<void> {
  const { viewerRows } = await import('../viewer/bench.js');
  const { rows, skipped } = await viewerRows();
  for (const { name, ours, rival, reach } of rows) report.add(name, ours, rival ?? Number.NaN, () => reach);
  for (const { name, why } of skipped) report.skip(name, why);
}
