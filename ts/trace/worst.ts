/** Keeps the worst of many items, at most `limit`, and counts all. */
export class Worst<T> {
  readonly #limit: number;
  readonly #compare: (a: T, b: T) => number;
  /** A heap with the least bad item first. */
  readonly #heap: T[] = [];
  #total = 0;

  /** `compare` is negative if its first argument is the worse. */
  constructor(limit: number, compare: (a: T, b: T) => number) {
    this.#limit = limit;
    this.#compare = compare;
  }

  /** How many items were added. */
  get total(): number {
    return this.#total;
  }

  add(item: T): void {
    this.#total++;
    const heap = this.#heap;
    if (heap.length < this.#limit) {
      heap.push(item);
      this.#up(heap.length - 1);
    } else if (heap.length > 0 && this.#compare(item, heap[0]!) < 0) {
      heap[0] = item;
      this.#down();
    }
  }

  /** The kept items, worst first. */
  list(): T[] {
    return [...this.#heap].sort(this.#compare);
  }

  #up(from: number): void {
    const heap = this.#heap;
    let index = from;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (this.#compare(heap[index]!, heap[parent]!) <= 0) return;
      [heap[index], heap[parent]] = [heap[parent]!, heap[index]!];
      index = parent;
    }
  }

  #down(): void {
    const heap = this.#heap;
    for (let index = 0; ; ) {
      let least = index;
      for (const child of [2 * index + 1, 2 * index + 2]) {
        if (child < heap.length && this.#compare(heap[child]!, heap[least]!) > 0) least = child;
      }
      if (least === index) return;
      [heap[index], heap[least]] = [heap[least]!, heap[index]!];
      index = least;
    }
  }
}
