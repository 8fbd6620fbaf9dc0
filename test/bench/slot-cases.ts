import type { Report } from './report.js';
export function slotCases(_report: Report): void {}
