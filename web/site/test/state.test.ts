import { expect, test } from 'vitest';
import type { StateSlot } from '../src/engine/types';
import { change, changePeak, largest, layout, peak, placeOf, robustMax, tiles } from '../src/lib/state';

const slot = (shape: number[], values: number[], growth: StateSlot['growth'] = 'fixed'): StateSlot => ({ name: 's', shape, growth, values: Float32Array.from(values) });
const count = (n: number) => Array.from({ length: n }, (_, i) => i);

test('heads become tiles', () => {
  expect(layout([4, 8, 16])).toEqual({ heads: 4, rows: 8, columns: 16 });
  expect(layout([2, 3])).toEqual({ heads: 1, rows: 2, columns: 3 });
  expect(layout([1, 32])).toEqual({ heads: 1, rows: 4, columns: 8 });
  expect(layout([5])).toEqual({ heads: 1, rows: 1, columns: 5 });
  expect(layout([20, 4, 4])).toEqual({ heads: 1, rows: 80, columns: 4 });
});

test('every number is in exactly one tile', () => {
  for (const shape of [[2, 3, 4], [1, 64], [7], [9, 2, 2], [2, 2, 2, 2], [3, 8, 1]]) {
    const s = slot(shape, count(shape.reduce((a, b) => a * b, 1)));
    expect(tiles(s, s).flatMap((t) => [...t.grid.values])).toEqual([...s.values]);
  }
});

test('a cache fills its frame', () => {
  const final = slot([2, 5, 3], count(30), 'time');
  const now = slot([2, 2, 3], count(12), 'time');
  const [first, second] = tiles(now, final);
  expect(first!.frameRows).toBe(5);
  expect([...second!.grid.values]).toEqual([6, 7, 8, 9, 10, 11]);
});

test('what changed: differences, and new rows as they are', () => {
  expect([...change(slot([2], [3, 5]), slot([2], [1, 1])).values]).toEqual([2, 4]);
  expect([...change(slot([2], [3, 5]), undefined).values]).toEqual([3, 5]);
  const before = slot([2, 1, 2], [1, 2, 3, 4], 'time');
  const after = slot([2, 2, 2], [1, 2, 9, 8, 3, 4, 7, 6], 'time');
  expect([...change(after, before).values]).toEqual([0, 0, 9, 8, 0, 0, 7, 6]);
});

test('the scale is that of the whole text', () => {
  expect(peak([[slot([2], [1, -7])], [slot([2], [2, 3])]], 's')).toBe(7);
  expect(peak([[slot([1, 1], [-2], 'time')], [slot([2, 1], [-2, 5], 'time')]], 's')).toBe(5);
});

test('the scale of changes is that of the largest step', () => {
  expect(changePeak([[slot([2], [50, 50])], [slot([2], [51, 47])], [slot([2], [52, 47])]], 's')).toBe(3);
});

test('a few large numbers do not set the scale', () => {
  const flat = Float32Array.from({ length: 100 }, (_, i) => (i === 0 ? -50 : 1));
  expect(robustMax(flat)).toEqual({ max: 1, clipped: true });
  expect(robustMax(Float32Array.from([0, -2, 2, 1.9]))).toEqual({ max: 2, clipped: false });
  expect(robustMax(new Float32Array(4))).toEqual({ max: 0, clipped: false });
});

test('a number knows its head, row and column', () => {
  expect(placeOf([2, 3, 4], 23)).toEqual([1, 2, 3]);
  expect(placeOf([2, 5, 1], 7)).toEqual([1, 2, 0]);
  expect(placeOf([3, 4], 6)).toEqual([0, 1, 2]);
});

test('the largest are what sorting finds', () => {
  const values = Float32Array.from([0.5, -3, 0, 3, 1, -0.5, 2, 2]);
  const sorted = [...values.keys()].sort((a, b) => Math.abs(values[b]!) - Math.abs(values[a]!));
  for (const n of [0, 1, 3, 5, 8, 12]) expect(largest(values, n)).toEqual(sorted.slice(0, n));
});
