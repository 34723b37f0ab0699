// Arithmetic of charts.

/** Round numbers for an axis. */
export function ticks(min: number, max: number, log: boolean, wanted = 5, binary = false): number[] {
  if (!(max > min)) return [min];
  if (binary && !log) {
    const step = 2 ** Math.ceil(Math.log2((max - min) / wanted));
    return Array.from({ length: Math.floor(max / step) - Math.ceil(min / step) + 1 }, (_, i) => (Math.ceil(min / step) + i) * step);
  }
  if (log) {
    const [a, b] = [Math.ceil(Math.log10(min) - 1e-9), Math.floor(Math.log10(max) + 1e-9)];
    if (b - a >= 2 && !binary) {
      const step = Math.ceil((b - a) / wanted);
      return Array.from({ length: Math.floor((b - a) / step) + 1 }, (_, i) => 10 ** (a + i * step));
    }
    if (!binary) {
      const all = Array.from({ length: 3 * (b - a + 3) }, (_, i) => [1, 2, 5][i % 3]! * 10 ** (a - 1 + Math.floor(i / 3)));
      return all.filter((v) => v >= min * (1 - 1e-9) && v <= max * (1 + 1e-9)).map((v) => Number(v.toPrecision(12)));
    }
    const [lo, hi] = [Math.ceil(Math.log2(min) - 1e-9), Math.floor(Math.log2(max) + 1e-9)];
    const step = Math.max(1, Math.ceil((hi - lo) / wanted));
    return Array.from({ length: Math.max(0, Math.floor((hi - lo) / step) + 1) }, (_, i) => 2 ** (lo + i * step));
  }
  const rough = (max - min) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? rough;
  const first = Math.ceil(min / step - 1e-9) * step;
  return Array.from({ length: Math.floor((max - first) / step + 1e-9) + 1 }, (_, i) => Number((first + i * step).toPrecision(12)));
}

/** A running mean over about `width` steps. */
export function smooth(points: readonly (readonly [number, number])[], width: number): [number, number][] {
  const keep = 1 - 1 / width;
  let [mean, weight] = [0, 0];
  return points.map(([x, y]) => {
    mean = keep * mean + (1 - keep) * y;
    weight = keep * weight + (1 - keep);
    return [x, mean / weight];
  });
}
