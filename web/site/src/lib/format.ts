// Numbers and tokens as a reader wants them.

/** About `digits` significant digits, without exponents where they can be avoided. */
export function number(value: number, digits = 4): string {
  if (Number.isNaN(value)) return 'not a number';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞';
  const size = Math.abs(value);
  const text =
    size !== 0 && (size < 1e-4 || size >= 1e7) ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
  return text.replace('-', '−');
}

export function bytes(value: number): string {
  if (value < 1024) return `${value} B`;
  if (value < 1024 * 1024) return `${number(value / 1024, 3)} KiB`;
  return `${number(value / 1024 / 1024, 3)} MiB`;
}

export function count(value: number): string {
  if (value < 10_000) return value.toLocaleString('en');
  return value < 1e6 ? `${number(value / 1e3, 3)} k` : `${number(value / 1e6, 3)} M`;
}

export function seconds(value: number): string {
  if (value < 1e-3) return `${number(value * 1e6, 3)} µs`;
  return value < 1 ? `${number(value * 1e3, 3)} ms` : `${number(value, 3)} s`;
}

/** A half-life in tokens; the library writes 1e9 for never. */
export const halfLife = (value: number) => (value >= 1e8 ? 'never' : `${number(value, 3)} tokens`);

/** A token on one line: blanks and line ends made visible. */
export function token(text: string): string {
  if (text === ' ') return '␣';
  if (text === '\n' || text === '·0a') return '⏎';
  return text;
}
