// Line charts as SVG: few lines, labelled where they end, with a dash as well as a colour each.
import { CATEGORIES, DASHES } from '../lib/palette';
import { theme } from '../lib/theme';
import { number } from '../lib/format';
import { ticks } from '../lib/series';

export interface Series {
  name: string;
  /** Which colour and dash. */
  style: number;
  points: readonly (readonly [number, number])[];
  /** A second, faint line, such as the unsmoothed one. */
  faint?: boolean;
}

export interface ChartProps {
  series: readonly Series[];
  title: string;
  x: { label: string; log?: boolean; binary?: boolean; min?: number; max?: number; show?: (v: number) => string };
  /** `binary`: ticks at powers of two, for bytes. */
  y: { label: string; log?: boolean; binary?: boolean; min?: number; max?: number; show?: (v: number) => string };
  /** A vertical line. */
  cursor?: number;
  height?: number;
  width?: number;
  markers?: boolean;
  /** No label at the lines' ends. */
  quiet?: boolean;
}

export function colourOf(style: number): string {
  const colours = CATEGORIES[theme.value];
  return colours[style % colours.length]!;
}

function range(values: number[], fixed: { min?: number; max?: number; log?: boolean }): [number, number] {
  const finite = values.filter((v) => Number.isFinite(v) && (fixed.log !== true || v > 0));
  let min = fixed.min ?? Math.min(...finite);
  let max = fixed.max ?? Math.max(...finite);
  if (!Number.isFinite(min) || !Number.isFinite(max)) [min, max] = fixed.log === true ? [1, 10] : [0, 1];
  if (min === max) [min, max] = fixed.log === true ? [min / 2, max * 2] : [min - 0.5, max + 0.5];
  return [min, max];
}

export function Chart({ series, title, x, y, cursor, height = 240, width = 560, markers = false, quiet = false }: ChartProps) {
  const shown = series.filter((s) => s.points.length > 0);
  const [x0, x1] = range(shown.flatMap((s) => s.points.map((p) => p[0])), x);
  const [y0, y1] = range(shown.flatMap((s) => s.points.map((p) => p[1])), y);
  const marks = Math.max(2, Math.min(5, Math.floor(height / 32)));
  const margin = { left: 64, right: quiet ? 12 : 118, top: 10, bottom: 38 };
  const [w, h] = [width - margin.left - margin.right, height - margin.top - margin.bottom];
  const along = (v: number, lo: number, hi: number, log?: boolean) =>
    log === true ? (Math.log(v) - Math.log(lo)) / (Math.log(hi) - Math.log(lo)) : (v - lo) / (hi - lo);
  const px = (v: number) => margin.left + w * along(v, x0, x1, x.log);
  const py = (v: number) => margin.top + h * (1 - along(v, y0, y1, y.log));
  const showX = x.show ?? ((v: number) => (Number.isInteger(v) ? v.toLocaleString('en') : number(v, 3)));
  const showY = y.show ?? ((v: number) => number(v, 3));
  const path = (points: Series['points']) => {
    const good = points.filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b) && (y.log !== true || b > 0));
    return good.map(([a, b], i) => `${i === 0 ? 'M' : 'L'}${px(a).toFixed(1)} ${py(b).toFixed(1)}`).join('');
  };
  const ends = shown
    .filter((s) => s.faint !== true)
    .map((s) => ({ name: s.name, style: s.style, at: py(Math.min(y1, Math.max(y0, s.points.at(-1)![1]))) }))
    .sort((a, b) => a.at - b.at);
  for (let i = 1; i < ends.length; i += 1) ends[i]!.at = Math.max(ends[i]!.at, ends[i - 1]!.at + 13);
  const over = (ends.at(-1)?.at ?? 0) - (margin.top + h);
  if (over > 0) for (const end of ends) end.at -= over;
  for (let i = ends.length - 2; i >= 0; i -= 1) ends[i]!.at = Math.min(ends[i]!.at, ends[i + 1]!.at - 13);
  const words = shown
    .filter((s) => s.faint !== true)
    .map((s) => `${s.name} ends at ${showY(s.points.at(-1)![1])}`)
    .join(', ');
  return (
    <svg class="chart" viewBox={`0 0 ${width} ${height}`} role="img" aria-label={`${title}. ${y.label} against ${x.label}. ${words === '' ? 'No data yet' : words}.`}>
      {shown.length === 0 && <text class="axis" x={margin.left + w / 2} y={margin.top + h / 2} text-anchor="middle">nothing measured yet</text>}
      {shown.length > 0 && ticks(y0, y1, y.log === true, marks, y.binary === true).map((v) => (
        <g key={`y${v}`}>
          <line class="rule" x1={margin.left} x2={margin.left + w} y1={py(v)} y2={py(v)} />
          <text class="tick" x={margin.left - 6} y={py(v) + 3.5} text-anchor="end">{showY(v)}</text>
        </g>
      ))}
      {shown.length > 0 && ticks(x0, x1, x.log === true, 6, x.binary === true).map((v) => (
        <text key={`x${v}`} class="tick" x={px(v)} y={margin.top + h + 15} text-anchor="middle">{showX(v)}</text>
      ))}
      <text class="axis" x={margin.left + w / 2} y={height - 5} text-anchor="middle">{x.label}</text>
      <text class="axis" x={-(margin.top + h / 2)} y={11} text-anchor="middle" transform="rotate(-90)">{y.label}</text>
      {cursor !== undefined && <line class="chart-cursor" x1={px(cursor)} x2={px(cursor)} y1={margin.top} y2={margin.top + h} />}
      {shown.map((s) => (
        <g key={`${s.name}${s.faint === true}`} style={{ color: colourOf(s.style) }}>
          <path class={s.faint === true ? 'line faint' : 'line'} d={path(s.points)} stroke-dasharray={DASHES[s.style % DASHES.length]} />
          {markers && s.points.map(([a, b]) => <circle key={a} cx={px(a)} cy={py(b)} r={2.6} fill="currentColor" />)}
        </g>
      ))}
      {!quiet &&
        ends.map((end) => (
          <text key={end.name} class="end" x={margin.left + w + 7} y={end.at + 4} style={{ fill: colourOf(end.style) }}>{end.name}</text>
        ))}
    </svg>
  );
}
