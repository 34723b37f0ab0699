// Eigenvalues of the state's transition, on the unit circle: what is inside fades, what is on it stays.
import { effect, type ReadonlySignal } from '@preact/signals';
import { useEffect, useMemo, useRef } from 'preact/hooks';
import type { LayerTrace } from '../engine/types';
import { number } from '../lib/format';
import { colourOf } from './Chart';

const R = 84;
const dot = (re: number, im: number) => `M${(100 + R * re).toFixed(1)} ${(100 - R * im).toFixed(1)}h0`;

function dots(spectrum: LayerTrace['spectrum'], token: number): string {
  let path = '';
  for (const { re, im } of spectrum) {
    for (let i = 0; i < re.columns; i += 1) {
      const at = token * re.columns + i;
      path += dot(re.values[at]!, im?.values[at] ?? 0);
    }
  }
  return path;
}

export function Circle({ layer, token, style, name }: { layer: LayerTrace; token: ReadonlySignal<number>; style: number; name: string }) {
  const now = useRef<SVGPathElement>(null);
  const words = useRef<HTMLParagraphElement>(null);
  const spectrum = layer.spectrum;
  const tokens = spectrum[0]?.re.rows ?? 0;
  const all = useMemo(() => {
    const each = (spectrum[0]?.re.columns ?? 1) * spectrum.length;
    const stride = Math.max(1, Math.ceil((tokens * each) / 1500));
    let path = '';
    for (let t = 0; t < tokens; t += stride) path += dots(spectrum, t);
    return path;
  }, [spectrum]);
  useEffect(
    () =>
      effect(() => {
        const t = Math.min(tokens - 1, token.value);
        now.current?.setAttribute('d', dots(spectrum, t));
        let [low, high] = [Infinity, 0];
        for (const { re, im } of spectrum) {
          for (let i = 0; i < re.columns; i += 1) {
            const at = t * re.columns + i;
            const size = Math.hypot(re.values[at]!, im?.values[at] ?? 0);
            low = Math.min(low, size);
            high = Math.max(high, size);
          }
        }
        if (words.current !== null) words.current.textContent = `|λ| from ${number(low, 3)} to ${number(high, 3)}`;
      }),
    [spectrum, token],
  );
  if (tokens === 0) return <p class="absent">{layer.notes.find((n) => /eigenvalue/i.test(n)) ?? 'No transition matrix: this state has no eigenvalues to show.'}</p>;
  const meaning = {
    exact: 'eigenvalues of the transition',
    frozen: 'eigenvalues with the gates held still',
    normaliser: 'ratio of successive normalisers: a softmax forgets by being diluted',
  };
  return (
    <figure class="circle">
      <svg viewBox="0 0 200 200" role="img" aria-label={`${name}: ${meaning[layer.spectrumKind ?? 'exact']}, on the unit circle`} style={{ color: colourOf(style) }}>
        <circle class="rule-strong" cx="100" cy="100" r={R} />
        <circle class="rule" cx="100" cy="100" r={R / 2} />
        <line class="rule" x1="8" x2="192" y1="100" y2="100" />
        <line class="rule" y1="8" y2="192" x1="100" x2="100" />
        <text class="tick" x={100 + R + 4} y="96">1</text>
        <text class="tick" x={103} y={100 - R - 4}>i</text>
        <path class="dots faint" d={all} />
        <path class="dots" ref={now} />
      </svg>
      <figcaption>
        <p ref={words} />
        <p class="quiet">{meaning[layer.spectrumKind ?? 'exact']}</p>
      </figcaption>
    </figure>
  );
}

/** Half-lives on a logarithmic axis, one row per head. */
export function HalfLives({ layer, style, name }: { layer: LayerTrace; style: number; name: string }) {
  const grid = layer.halfLife;
  if (grid === undefined) return <p class="absent">{layer.notes.find((n) => /eigenvalue/i.test(n)) ?? 'No decay to take a half-life of.'}</p>;
  const [from, to] = [0.3, 3000];
  const x = (v: number) => (v >= 1e8 ? 262 : 20 + (220 * (Math.log(Math.min(to, Math.max(from, v))) - Math.log(from))) / (Math.log(to) - Math.log(from)));
  const rows = grid.rows;
  const gap = Math.min(26, 130 / Math.max(1, rows));
  const never = grid.values.filter((v) => v >= 1e8).length;
  const rest = [...grid.values].filter((v) => v < 1e8);
  const words = `${never > 0 ? `${never} of ${grid.values.length} never fade` : ''}${never > 0 && rest.length > 0 ? '; ' : ''}${
    rest.length > 0 ? `${number(Math.min(...rest), 2)} to ${number(Math.max(...rest), 2)} tokens` : ''
  }`;
  return (
    <figure class="lives">
      <svg viewBox="0 0 280 190" role="img" aria-label={`${name}: half-lives, ${words}`} style={{ color: colourOf(style) }}>
        {[1, 10, 100, 1000].map((v) => (
          <g key={v}>
            <line class="rule" x1={x(v)} x2={x(v)} y1="8" y2="158" />
            <text class="tick" x={x(v)} y="172" text-anchor="middle">{v}</text>
          </g>
        ))}
        <line class="rule-strong" x1="262" x2="262" y1="8" y2="158" />
        <text class="tick" x="262" y="172" text-anchor="middle">never</text>
        <text class="axis" x="130" y="187" text-anchor="middle">tokens until half is forgotten</text>
        {Array.from({ length: rows }, (_, h) => (
          <g key={h}>
            <text class="tick" x="0" y={20 + gap * h + 4}>{h + 1}</text>
            <path
              class="dots"
              d={Array.from({ length: grid.columns }, (_, i) => `M${x(grid.values[h * grid.columns + i]!).toFixed(1)} ${(20 + gap * h).toFixed(1)}h0`).join('')}
            />
          </g>
        ))}
      </svg>
      <figcaption><p>{words}</p><p class="quiet">mean over the text, one row per head</p></figcaption>
    </figure>
  );
}
