import { describe, expect, test } from 'vitest';
import { ANCHORS, CATEGORIES, hex, ramp, seenBy, table, toLab, type Blindness, type Rgb } from '../src/lib/palette';

const EYES = ['all', 'protan', 'deutan', 'tritan'] as const;
const seen = (eye: (typeof EYES)[number], rgb: Rgb) => toLab(eye === 'all' ? rgb : seenBy(eye as Blindness, rgb));
const distance = (a: Rgb, b: Rgb) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);

/** Relative luminance, as in WCAG. */
const luminance = ([r, g, b]: Rgb) => {
  const l = (c: number) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * l(r) + 0.7152 * l(g) + 0.0722 * l(b);
};
const contrast = (a: Rgb, b: Rgb) => {
  const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p) as [number, number];
  return (x + 0.05) / (y + 0.05);
};

describe.each(['light', 'dark'] as const)('%s', (theme) => {
  test.each(EYES)('sequential: lightness alone gives the order, to an eye of kind %s', (eye) => {
    const sign = theme === 'light' ? -1 : 1;
    const lightness = ramp(ANCHORS[theme].sequential, 64).map((c) => seen(eye, c)[0]);
    for (let i = 1; i < lightness.length; i += 1) expect(sign * (lightness[i]! - lightness[i - 1]!)).toBeGreaterThan(0);
  });

  test.each(EYES)('diverging: each arm is in order, and the arms differ, to an eye of kind %s', (eye) => {
    const colours = ramp(ANCHORS[theme].diverging, 65).map((c) => seen(eye, c));
    const sign = theme === 'light' ? -1 : 1;
    for (let i = 33; i < 65; i += 1) {
      expect(sign * (colours[i]![0] - colours[i - 1]![0])).toBeGreaterThan(0);
      expect(sign * (colours[64 - i]![0] - colours[65 - i]![0])).toBeGreaterThan(0);
    }
    for (const step of [10, 16, 22, 30]) expect(distance(colours[32 + step]!, colours[32 - step]!)).toBeGreaterThan(0.06);
  });

  test('lines and their labels can be read', () => {
    const paper = hex(theme === 'light' ? '#ffffff' : '#16181b');
    for (const colour of CATEGORIES[theme]) expect(contrast(hex(colour), paper)).toBeGreaterThan(4.5);
  });
});

test('tables hold opaque colours', () => {
  for (const packed of table('light', 'diverging')) expect(packed >>> 24).toBe(255);
  expect(table('light', 'sequential')).toHaveLength(256);
});
