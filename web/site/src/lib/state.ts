// Slots of a state as pictures: one tile per head, as many cells as numbers.
import type { Grid, StateSlot } from '../engine/types';

export interface Tile {
  grid: Grid;
  /** Rows once the whole text is read: a cache fills its frame from the top. */
  frameRows: number;
  /** Which number of the slot is in the upper left corner, and the head. */
  offset: number;
  head: number;
}

const MAX_TILES = 8;
const WRAP = 64;

/** Heads, rows and columns of a slot: leading axes are heads as long as they are few. */
export function layout(shape: readonly number[]): { heads: number; rows: number; columns: number } {
  const size = shape.reduce((a, b) => a * b, 1);
  const columns = shape.at(-1) ?? 1;
  if (shape.length >= 3) {
    const rows = shape.at(-2)!;
    const heads = rows * columns === 0 ? 0 : size / rows / columns;
    if (heads <= MAX_TILES) {
      // A vector per head, or matrices of one column: lie down.
      if (columns === 1) return { heads: 1, rows: heads, columns: rows };
      return { heads, rows, columns };
    }
    return { heads: 1, rows: heads * rows, columns };
  }
  const rows = columns === 0 ? 0 : size / columns;
  if (rows <= 2 && columns > WRAP / 4 && columns % 8 === 0) {
    const width = columns % 16 === 0 && columns > WRAP ? 16 : 8;
    return { heads: rows, rows: columns / width, columns: width };
  }
  return { heads: 1, rows, columns };
}

/** Head, row and column of the number at `index` of a slot `[heads, rows, columns]`, or with fewer axes. */
export function placeOf(shape: readonly number[], index: number): [number, number, number] {
  const columns = shape.at(-1) ?? 1;
  const rows = shape.at(-2) ?? 1;
  return [Math.floor(index / (rows * columns)), Math.floor(index / columns) % rows, index % columns];
}

/** The tiles of a slot; `final` is the same slot after the last token, which decides the frame. */
export function tiles(slot: StateSlot, final: StateSlot): Tile[] {
  const { heads, rows, columns } = layout(slot.shape);
  const frameRows = Math.max(rows, layout(final.shape).rows);
  return Array.from({ length: heads }, (_, head) => {
    const offset = head * rows * columns;
    const values = slot.values.subarray(offset, offset + rows * columns);
    return { grid: { rows, columns, values }, frameRows, offset, head };
  });
}

/** What changed: the difference to an earlier state, new entries of a grown axis as they are. */
export function change(after: StateSlot, before: StateSlot | undefined): StateSlot {
  if (before === undefined) return after;
  const axis = after.shape.findIndex((n, i) => n !== before.shape[i]);
  const values = Float32Array.from(after.values);
  if (axis < 0) {
    for (let i = 0; i < values.length; i += 1) values[i]! -= before.values[i]!;
    return { ...after, values };
  }
  const inner = after.shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  const [long, short] = [after.shape[axis]! * inner, (before.shape[axis] ?? 0) * inner];
  for (let block = 0; block * long < values.length; block += 1) {
    for (let i = 0; i < Math.min(short, long); i += 1) values[block * long + i]! -= before.values[block * short + i]!;
  }
  return { ...after, values };
}

const peaks = new WeakMap<StateSlot[][], Map<string, number>>();

/** Largest size of any number that a slot holds after any token: one scale for the whole text. */
export function peak(states: StateSlot[][], name: string): number {
  let known = peaks.get(states);
  if (known === undefined) peaks.set(states, (known = new Map()));
  let max = known.get(name);
  if (max === undefined) {
    max = 0;
    for (const slots of states) {
      const slot = slots.find((s) => s.name === name);
      // A cache's last state holds all of its earlier ones.
      if (slot === undefined || (slot.growth !== 'fixed' && slots !== states.at(-1))) continue;
      for (const value of slot.values) max = Math.max(max, Math.abs(value));
    }
    known.set(name, max);
  }
  return max;
}

const changes = new WeakMap<StateSlot[][], Map<string, number>>();

/** Largest size of what any token changed in a slot. */
export function changePeak(states: StateSlot[][], name: string): number {
  let known = changes.get(states);
  if (known === undefined) changes.set(states, (known = new Map()));
  let max = known.get(name);
  if (max === undefined) {
    max = 0;
    let before: StateSlot | undefined;
    for (const slots of states) {
      const slot = slots.find((s) => s.name === name);
      if (slot === undefined) continue;
      // The first token starts from what was learned, not from nothing.
      if (before !== undefined) for (const value of change(slot, before).values) max = Math.max(max, Math.abs(value));
      before = slot;
    }
    known.set(name, max);
  }
  return max;
}

export interface Summary {
  min: number;
  max: number;
  norm: number;
  finite: boolean;
}

export function summary(values: Float32Array): Summary {
  let [min, max, square] = [Infinity, -Infinity, 0];
  for (const v of values) {
    if (v < min) min = v;
    if (v > max) max = v;
    square += v * v;
  }
  return { min: values.length > 0 ? min : 0, max: values.length > 0 ? max : 0, norm: Math.sqrt(square), finite: Number.isFinite(square) };
}

/**
 * A scale on which most numbers can be told apart: the size that all but the largest twelfth of the numbers that
 * are not 0 stay below. The first row of an attention matrix is always 1, and would leave the rest in the dark.
 */
export function robustMax(values: Float32Array): { max: number; clipped: boolean } {
  const sizes = Float32Array.from(values.filter((v) => v !== 0 && Number.isFinite(v)), Math.abs).sort();
  if (sizes.length === 0) return { max: 0, clipped: false };
  const top = sizes.at(-1)!;
  const most = sizes[Math.floor(0.92 * (sizes.length - 1))]!;
  return most > 0.6 * top ? { max: top, clipped: false } : { max: most, clipped: true };
}

/** Where the `count` largest moduli are, the largest first; of equal ones the first. */
export function largest(values: Float32Array, count: number): number[] {
  const found: number[] = [];
  for (let i = 0; i < values.length; i += 1) {
    const size = Math.abs(values[i]!);
    let place = found.length;
    while (place > 0 && Math.abs(values[found[place - 1]!]!) < size) place -= 1;
    if (place >= count) continue;
    found.splice(place, 0, i);
    if (found.length > count) found.pop();
  }
  return found;
}
