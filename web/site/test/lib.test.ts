import { expect, test } from 'vitest';
import { bytes, halfLife, number } from '../src/lib/format';
import { paint } from '../src/lib/paint';
import { draw, pairsOf, random } from '../src/lib/random';
import { smooth, ticks } from '../src/lib/series';
import { tensors } from '../src/lib/safetensors';

test('numbers are short and have a real minus', () => {
  expect(number(-0.123456)).toBe('−0.1235');
  expect(number(1e-9, 2)).toBe('1.0e−9');
  expect(number(0)).toBe('0');
  expect(bytes(2048)).toBe('2 KiB');
  expect(halfLife(1e9)).toBe('never');
});

test('ticks are round and inside', () => {
  expect(ticks(0, 1, false)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
  expect(ticks(1, 1000, true)).toEqual([1, 10, 100, 1000]);
  expect(ticks(32, 256, true, 5, true)).toEqual([32, 64, 128, 256]);
  expect(ticks(0.0004, 0.012, true)).toEqual([0.0005, 0.001, 0.002, 0.005, 0.01]);
  expect(ticks(0, 2800, false, 3, true)).toEqual([0, 1024, 2048]);
  expect(ticks(5, 5, false)).toEqual([5]);
});

test('a running mean starts at the first value and follows', () => {
  const mean = smooth([[0, 4], [1, 4], [2, 0]], 4);
  expect(mean[0]![1]).toBeCloseTo(4);
  expect(mean[1]![1]).toBeCloseTo(4);
  expect(mean[2]![1]).toBeGreaterThan(0);
  expect(mean[2]![1]).toBeLessThan(4);
});

test('the same seed draws the same pairs of different words', () => {
  const vocab = ['.', ...Array.from({ length: 9 }, (_, i) => `k${i + 1}`), ...Array.from({ length: 9 }, (_, i) => `v${i + 1}`)];
  const pairs = pairsOf(vocab, 6, 3);
  expect(pairs).toEqual(pairsOf(vocab, 6, 3));
  expect(pairs).not.toEqual(pairsOf(vocab, 6, 4));
  expect(new Set(pairs.map(([k]) => k)).size).toBe(6);
  expect(draw([1, 2], 5, random(0)).sort()).toEqual([1, 2]);
});

test('pixels: zero in the middle, overflow at the ends, clear where there is no number, transposed where asked', () => {
  const colours = Uint32Array.from({ length: 256 }, (_, i) => i + 1);
  const grid = { rows: 2, columns: 3, values: Float32Array.from([0, 1, -1, 9, -9, Number.NaN]) };
  const pixels = new Uint32Array(6);
  paint(pixels, 3, grid, colours, true, 1, false);
  expect([...pixels]).toEqual([129, 256, 1, 256, 1, 0]);
  paint(pixels, 2, grid, colours, false, 1, true);
  expect([...pixels]).toEqual([1, 256, 256, 1, 1, 0]);
});

test('safetensors: f32 and f16', () => {
  const header = JSON.stringify({ __metadata__: { a: 'b' }, w: { dtype: 'F32', shape: [2], data_offsets: [0, 8] }, h: { dtype: 'F16', shape: [1, 2], data_offsets: [8, 12] } });
  const head = new TextEncoder().encode(header);
  const file = new Uint8Array(8 + head.length + 12);
  const view = new DataView(file.buffer);
  view.setBigUint64(0, BigInt(head.length), true);
  file.set(head, 8);
  view.setFloat32(8 + head.length, 1.5, true);
  view.setFloat32(12 + head.length, -2, true);
  view.setUint16(16 + head.length, 0x3c00, true);
  view.setUint16(18 + head.length, 0xc000, true);
  const all = tensors(file);
  expect([...all.keys()]).toEqual(['w', 'h']);
  expect([...all.get('w')!().values]).toEqual([1.5, -2]);
  expect([...all.get('h')!().values]).toEqual([1, -2]);
  expect(() => tensors(new Uint8Array([255, 255, 0, 0, 0, 0, 0, 0]))).toThrow('safetensors');
});
