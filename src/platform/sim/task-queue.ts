import type { Task } from '../scheduler.js';

/** A first-in first-out queue of tasks: a ring that grows and is then reused. */
export class TaskQueue {
  private slots: (Task | null)[] = new Array<Task | null>(64).fill(null);
  private head = 0;
  length = 0;

  push(task: Task): void {
    if (this.length === this.slots.length) this.grow();
    this.slots[(this.head + this.length++) & (this.slots.length - 1)] = task;
  }

  /** The oldest task. The queue must not be empty. */
  shift(): Task {
    const task = this.slots[this.head]!;
    this.slots[this.head] = null;
    this.head = (this.head + 1) & (this.slots.length - 1);
    this.length--;
    return task;
  }

  private grow(): void {
    const { slots, head, length } = this;
    const larger = new Array<Task | null>(slots.length * 2).fill(null);
    for (let i = 0; i < length; i++) larger[i] = slots[(head + i) & (slots.length - 1)];
    this.slots = larger;
    this.head = 0;
  }
}
