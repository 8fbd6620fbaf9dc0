import type { Curve } from './report.js';

const width = 640;
const height = 400;
const margin = { left: 70, right: 190, top: 36, bottom: 46 };
const colours = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#555555'];
const dashes = ['', '6 3', '2 2', '8 3 2 3', '', '6 3', '2 2'];

/** A curve as an SVG picture with logarithmic axes. */
export function plot(curve: Curve): string {
  const points = Object.values(curve.series).flat();
  const x = scale(
    points.map(([value]) => value),
    margin.left,
    width - margin.right,
  );
  const y = scale(
    points.map(([, value]) => value),
    height - margin.bottom,
    margin.top,
  );
  const grid = [
    ...x.ticks.map((tick) => line(x.at(tick), margin.top, x.at(tick), height - margin.bottom)),
    ...y.ticks.map((tick) => line(margin.left, y.at(tick), width - margin.right, y.at(tick))),
  ];
  const labels = [
    ...x.ticks.map((tick) => text(x.at(tick), height - margin.bottom + 16, 'middle', short(tick))),
    ...y.ticks.map((tick) => text(margin.left - 6, y.at(tick) + 4, 'end', short(tick))),
    text((margin.left + width - margin.right) / 2, height - 10, 'middle', curve.x),
    text(margin.left, margin.top - 18, 'start', `${curve.title} (${curve.y})`),
  ];
  const lines = Object.entries(curve.series).map(([name, list], index) => {
    const path = list.map(([a, b]) => `${x.at(a).toFixed(1)},${y.at(b).toFixed(1)}`).join(' ');
    const colour = colours[index % colours.length]!;
    const at = margin.top + 14 + index * 18;
    const style = `fill="none" stroke="${colour}" stroke-width="2" stroke-dasharray="${dashes[index % dashes.length]}"`;
    return [
      `<polyline points="${path}" ${style}/>`,
      `<path d="M${width - margin.right + 12} ${at - 4}h22" ${style}/>`,
      text(width - margin.right + 40, at, 'start', name),
    ].join('\n');
  });
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11">`;
  return [head, '<rect width="100%" height="100%" fill="#fff"/>', ...grid, ...labels, ...lines, '</svg>\n'].join('\n');
}

function scale(values: readonly number[], from: number, to: number) {
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))));
  return {
    at: (value: number) => from + ((Math.log10(value) - low) / (high - low)) * (to - from),
    ticks: Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index)),
  };
}

function short(value: number): string {
  return value >= 1 ? value.toLocaleString('en') : String(Number(value.toPrecision(1)));
}

function line(x1: number, y1: number, x2: number, y2: number): string {
  return `<path d="M${x1.toFixed(1)} ${y1.toFixed(1)}L${x2.toFixed(1)} ${y2.toFixed(1)}" stroke="#ddd"/>`;
}

function text(x: number, y: number, anchor: string, content: string): string {
  const escaped = content.replace(/&/g, '&amp;').replace(/</g, '&lt;');
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}">${escaped}</text>`;
}
