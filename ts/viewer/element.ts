/** What {@link element} accepts: attributes, `on…` handlers by property name, and children. */
interface Parts {
  readonly class?: string;
  readonly text?: string;
  readonly attributes?: Readonly<Record<string, string | undefined>>;
  readonly children?: readonly (Node | string)[];
  readonly onClick?: (event: MouseEvent) => void;
}

/** Makes an element. Text is always text: nothing is parsed as HTML. */
export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  parts: Parts = {},
): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name);
  if (parts.class !== undefined) made.className = parts.class;
  if (parts.text !== undefined) made.textContent = parts.text;
  for (const [attribute, value] of Object.entries(parts.attributes ?? {})) {
    if (value !== undefined) made.setAttribute(attribute, value);
  }
  made.append(...(parts.children ?? []));
  if (parts.onClick !== undefined) made.addEventListener('click', parts.onClick as EventListener);
  return made;
}

/** A button with a name. `label` is what is read aloud, where the text isn't enough. */
export function button(text: string, onClick: () => void, label?: string): HTMLButtonElement {
  return element('button', { text, onClick, attributes: { type: 'button', 'aria-label': label } });
}

/** Terms and values as a description list. */
export function descriptions(pairs: readonly (readonly [string, string])[]): HTMLElement {
  return element('dl', {
    children: pairs.flatMap(([term, value]) => [element('dt', { text: term }), element('dd', { text: value })]),
  });
}

/** Calls `work` at most once a frame, however often it is asked for. */
export function oncePerFrame(work: () => void): () => void {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}
