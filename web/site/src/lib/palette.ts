// Colours that keep their order for colour-blind eyes: lightness alone tells magnitude, blue against orange
// tells the sign, and every line also has a dash and a label.

export type Rgb = readonly [number, number, number];

const linear = (c: number) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const gamma = (c: number) => (c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055);

/** sRGB in 0…1 to OKLab. */
export function toLab([r, g, b]: Rgb): Rgb {
  const [R, G, B] = [linear(r), linear(g), linear(b)];
  const l = Math.cbrt(0.4122214708 * R + 0.5363325363 * G + 0.0514459929 * B);
  const m = Math.cbrt(0.2119034982 * R + 0.6806995451 * G + 0.1073969566 * B);
  const s = Math.cbrt(0.0883024619 * R + 0.2817188376 * G + 0.6299787005 * B);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

export function fromLab([L, a, b]: Rgb): Rgb {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const clip = (c: number) => Math.min(1, Math.max(0, gamma(Math.max(0, c))));
  return [
    clip(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    clip(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    clip(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

export function hex(text: string): Rgb {
  const n = Number.parseInt(text.slice(1), 16);
  return [((n >> 16) & 255) / 255, ((n >> 8) & 255) / 255, (n & 255) / 255];
}

/** `size` colours through the anchors, evenly spaced in OKLab. */
export function ramp(anchors: readonly string[], size = 256): Rgb[] {
  const labs = anchors.map((a) => toLab(hex(a)));
  return Array.from({ length: size }, (_, i) => {
    const at = (i / (size - 1)) * (labs.length - 1);
    const k = Math.min(labs.length - 2, Math.floor(at));
    const [p, q, f] = [labs[k]!, labs[k + 1]!, at - k];
    return fromLab([p[0] + f * (q[0] - p[0]), p[1] + f * (q[1] - p[1]), p[2] + f * (q[2] - p[2])]);
  });
}

export const ANCHORS = {
  light: {
    sequential: ['#fbfaf7', '#cfe0ea', '#7fb0d0', '#2f78b0', '#0b3c6f', '#06203f'],
    diverging: ['#0a3a75', '#2f78b8', '#9cc4e0', '#fbfaf7', '#f3bd86', '#c8620c', '#7a2f00'],
  },
  dark: {
    sequential: ['#16181b', '#173a5c', '#2467a0', '#4d9fd6', '#a5d5f2', '#f0faff'],
    diverging: ['#b5defa', '#4d9fd6', '#1f5688', '#16181b', '#8a4a12', '#e08a35', '#ffdcb0'],
  },
} as const;

/** Of lines and points; after Okabe and Ito, darkened to be read on white. */
export const CATEGORIES = {
  light: ['#0b62a4', '#b84c00', '#00785a', '#a3447f', '#6a5a00', '#3a3f47', '#6d3fc0', '#a01c2c'],
  dark: ['#63b5f0', '#f29a4a', '#3fcf9f', '#ec9ccb', '#d9c93f', '#c3c9d1', '#b79bf5', '#f4868f'],
} as const;

export const DASHES = ['', '6 3', '2 3', '8 3 2 3', '12 4', '1 3', '6 2 1 2 1 2', '4 4'] as const;

export type Theme = keyof typeof ANCHORS;
export type Scale = 'sequential' | 'diverging';

/** Packed for `ImageData` (little-endian RGBA). */
const tables = new Map<string, Uint32Array>();

export function table(theme: Theme, scale: Scale): Uint32Array {
  const key = `${theme} ${scale}`;
  let packed = tables.get(key);
  if (packed === undefined) {
    packed = Uint32Array.from(ramp(ANCHORS[theme][scale]), ([r, g, b]) => {
      const byte = (c: number) => Math.round(c * 255);
      return ((255 << 24) | (byte(b) << 16) | (byte(g) << 8) | byte(r)) >>> 0;
    });
    tables.set(key, packed);
  }
  return packed;
}

/** As CSS; `at` in 0…1. */
export function css(theme: Theme, scale: Scale, at: number): string {
  const packed = table(theme, scale)[Math.round(255 * Math.min(1, Math.max(0, at)))]!;
  return `rgb(${packed & 255} ${(packed >> 8) & 255} ${(packed >> 16) & 255})`;
}

/** How a colour looks to an eye without one kind of cone (Machado and others, 2009, full severity). */
const BLINDNESS = {
  protan: [0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998],
  deutan: [0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.01182, 0.04294, 0.968881],
  tritan: [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.3039],
} as const;

export type Blindness = keyof typeof BLINDNESS;

export function seenBy(kind: Blindness, rgb: Rgb): Rgb {
  const m = BLINDNESS[kind];
  const [r, g, b] = [linear(rgb[0]), linear(rgb[1]), linear(rgb[2])];
  const row = (i: number) => gamma(Math.min(1, Math.max(0, m[i]! * r + m[i + 1]! * g + m[i + 2]! * b)));
  return [row(0), row(3), row(6)];
}
