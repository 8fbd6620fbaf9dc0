/** What a pointer does to a drawing. Positions in CSS pixels from its upper left corner. */
export interface Gestures {
  /** Moves what is shown by `pixels` to the left. */
  readonly move: (pixels: number) => void;
  /** Zooms in by `factor` around `x`. */
  readonly zoom: (x: number, factor: number) => void;
  readonly hover: (x: number, y: number) => void;
  readonly leave: () => void;
  /** A click or a tap. */
  readonly pick: (x: number, y: number) => void;
}

/** Pixels within which a press that moves is still a click. */
const clickSlack = 4;

/** Wheel and drag, pinch and tap. The wheel zooms; sideways, or with Shift, it moves. */
export function attachGestures(target: HTMLElement, gestures: Gestures): void {
  const pointers = new Map<number, { x: number; y: number }>();
  let travelled = 0;
  const at = (event: MouseEvent) => {
    const box = target.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  target.addEventListener(
    'wheel',
    (event) => {
      event.preventDefault();
      const pixels = event.deltaMode === 0 ? 1 : 30;
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (sideways) gestures.move((event.deltaX || event.deltaY) * pixels);
      // A pinch on a touchpad comes as a wheel with Control, in smaller steps.
      else gestures.zoom(at(event).x, Math.exp(-event.deltaY * pixels * (event.ctrlKey ? 0.01 : 0.0022)));
    },
    { passive: false },
  );

  target.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    target.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 1) travelled = 0;
  });

  target.addEventListener('pointermove', (event) => {
    const place = at(event);
    const last = pointers.get(event.pointerId);
    if (last === undefined) {
      if (event.pointerType === 'mouse') gestures.hover(place.x, place.y);
      return;
    }
    travelled += Math.hypot(place.x - last.x, place.y - last.y);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, place);
    if (travelled < clickSlack) return;
    if (other === undefined) {
      gestures.move(last.x - place.x);
      return;
    }
    const [before, after] = [Math.abs(last.x - other.x), Math.abs(place.x - other.x)];
    if (before > 8 && after > 8) gestures.zoom((place.x + other.x) / 2, after / before);
    gestures.move((last.x - place.x) / 2);
  });

  const end = (event: PointerEvent) => {
    if (!pointers.delete(event.pointerId)) return;
    const place = at(event);
    if (event.type === 'pointerup' && travelled < clickSlack && pointers.size === 0) gestures.pick(place.x, place.y);
  };
  target.addEventListener('pointerup', end);
  target.addEventListener('pointercancel', end);
  target.addEventListener('pointerleave', () => gestures.leave());
}
