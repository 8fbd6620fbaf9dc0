import type { Report } from './report.js';
export function flatViews(_report: Report): void {}
