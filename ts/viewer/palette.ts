import type { Palette } from './draw.js';
import { hues } from './lanes.js';

/** The colours of drawings, read from the style's custom properties: one place says what is dark and what is light. */
export function paletteOf(element: Element): Palette {
  const style = getComputedStyle(element);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  return {
    background: colour('background'),
    lane: colour('lane'),
    ink: colour('ink'),
    muted: colour('muted'),
    line: colour('line'),
    io: colour('io'),
    danger: colour('danger'),
    created: colour('created'),
    held: colour('held'),
    deleted: colour('deleted'),
    changed: colour('changed'),
    focus: colour('focus'),
    label: colour('label'),
    memory: Array.from({ length: hues }, (_, index) => colour(`memory-${index}`)),
  };
}

/** Sizes a canvas for sharp drawing in its element's box: its context in CSS pixels, and the box's size. */
export function sharpContext(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  const ratio = Math.min(3, globalThis.devicePixelRatio || 1);
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  const context = canvas.getContext('2d', { alpha: false })!;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}
