import { element } from './element.js';

/** One of several panels that take the same place. */
export interface Tab {
  readonly name: string;
  readonly panel: HTMLElement;
  /** Called when it comes into view. */
  readonly onShow?: () => void;
  readonly onHide?: () => void;
}

/** A list of tabs as ARIA has it: arrow keys move, one panel shows. */
export class Tabs {
  /** The row of tabs. The panels are placed by whoever made them. */
  readonly element: HTMLElement;
  readonly #tabs: readonly Tab[];
  readonly #buttons: readonly HTMLButtonElement[];
  #current = -1;

  /** `label` names the group; `prefix` makes ids unique in the document. */
  constructor(label: string, prefix: string, tabs: readonly Tab[]) {
    this.#tabs = tabs;
    this.#buttons = tabs.map(({ name, panel }, index) => {
      panel.id = `${prefix}-${index}`;
      panel.setAttribute('role', 'tabpanel');
      panel.setAttribute('aria-label', name);
      return element('button', {
        text: name,
        attributes: { type: 'button', role: 'tab', 'aria-controls': panel.id },
        onClick: () => this.show(index),
      });
    });
    this.element = element('div', {
      class: 'tabs',
      attributes: { role: 'tablist', 'aria-label': label },
      children: this.#buttons,
    });
    this.element.addEventListener('keydown', (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      this.show((this.#current + step + tabs.length) % tabs.length);
      this.#buttons[this.#current]!.focus();
    });
    this.show(0);
  }

  /** Shows panel `index`. */
  show(index: number): void {
    if (index === this.#current) return;
    this.#tabs[this.#current]?.onHide?.();
    this.#current = index;
    for (const [other, { panel }] of this.#tabs.entries()) {
      const selected = other === index;
      panel.hidden = !selected;
      this.#buttons[other]!.setAttribute('aria-selected', `${selected}`);
      this.#buttons[other]!.tabIndex = selected ? 0 : -1;
    }
    this.#tabs[index]!.onShow?.();
  }

  get current(): number {
    return this.#current;
  }
}
