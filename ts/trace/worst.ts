interface Entry<T> {
  readonly rank: number;
  readonly weight: number;
  readonly line: number;
  readonly item: T;
}

/** Positive if `a` is the worse: by rank, then by weight; among equals the earlier line. */
function compare(a: Omit<Entry<unknown>, 'item'>, b: Omit<Entry<unknown>, 'item'>): number {
  return a.rank - b.rank || a.weight - b.weight || b.line - a.line;
}

/**
 * Keeps the worst of many items, at most `limit`, and counts all. {@link admits} is asked before an item is made:
 * besides saving the work, V8 would otherwise learn from the first ones that they live long, and put all into its old
 * space.
 */
export class Worst<T> {
  readonly #limit: number;
  /** A heap with the least bad entry first. */
  readonly #heap: Entry<T>[] = [];
  #total = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** How many items there were. */
  get total(): number {
    return this.#total;
  }

  /** Counts an item, and answers whether it is to be added. */
  admits(rank: number, weight: number, line: number): boolean {
    this.#total++;
    if (this.#heap.length < this.#limit) return true;
    const least = this.#heap[0]!;
    return (rank - least.rank || weight - least.weight || least.line - line) > 0;
  }

  /** Keeps an item that was admitted just now. */
  add(rank: number, weight: number, line: number, item: T): void {
    const heap = this.#heap;
    const entry = { rank, weight, line, item };
    if (heap.length < this.#limit) {
      heap.push(entry);
      this.#up(heap.length - 1);
    } else {
      heap[0] = entry;
      this.#down();
    }
  }

  /** The kept items, worst first. */
  list(): T[] {
    return [...this.#heap].sort((a, b) => compare(b, a)).map(({ item }) => item);
  }

  #up(from: number): void {
    const heap = this.#heap;
    let index = from;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (compare(heap[index]!, heap[parent]!) >= 0) return;
      [heap[index], heap[parent]] = [heap[parent]!, heap[index]!];
      index = parent;
    }
  }

  #down(): void {
    const heap = this.#heap;
    for (let index = 0; ; ) {
      let least = index;
      for (let child = 2 * index + 1; child <= 2 * index + 2; child++) {
        if (child < heap.length && compare(heap[child]!, heap[least]!) < 0) least = child;
      }
      if (least === index) return;
      [heap[index], heap[least]] = [heap[least]!, heap[index]!];
      index = least;
    }
  }
}
