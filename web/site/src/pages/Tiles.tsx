// Lightning attention's tiles: within a block all pairs, between blocks only the state.
import { signal, useSignal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { intParam, textParam } from '../lib/url';
import { count, number } from '../lib/format';
import { peak, robustMax, tiles } from '../lib/state';
import { reducedMotion } from '../lib/theme';
import { Heat, Legend } from '../views/Heat';
import { useReading } from '../views/use';
import type { ModelSpec } from '../engine/store';

const size = intParam('block', 8, 2, 16);
const step = intParam('step', 0);
const sample = textParam('text', 'lightning never reads the same tile twice, only its sum');
const SPEC: ModelSpec = { kind: 'drawn', config: 'lightning', seed: 0 };
const SIDE = 380;

const PHASES = ['its own pairs', 'from the state', 'into the state'] as const;

export function Tiles() {
  const reading = useReading(SPEC, sample.value, 0);
  const layer = reading.trace?.layers[0];
  const matrix = layer?.attention[0];
  const tokens = reading.trace?.tokens.length ?? 0;
  const blocks = Math.ceil(tokens / size.value);
  const last = Math.max(0, 3 * blocks - 1);
  const now = Math.min(last, step.value);
  const [block, phase] = [Math.floor(now / 3), now % 3];
  const playing = useSignal(false);
  useEffect(() => {
    if (!playing.value) return;
    const timer = setInterval(() => {
      const next = step.peek() + 1;
      if (next > last) playing.value = false;
      else step.set(next);
    }, reducedMotion.peek() ? 1600 : 700);
    return () => clearInterval(timer);
  }, [playing.value, last]);
  const grid = useMemo(() => signal(matrix), [matrix]);
  const { max, clipped } = useMemo(() => (matrix === undefined ? { max: 1, clipped: false } : robustMax(matrix.values)), [matrix]);
  const states = reading.states[0];
  const slot = states?.at(-1)?.[0];
  // The state that this block reads is the one that the block before left behind.
  const stateAfter = phase === 2 ? Math.min(tokens, (block + 1) * size.value) : block * size.value;
  const state = useMemo(() => {
    const found = stateAfter === 0 ? undefined : states?.[stateAfter - 1]?.[0];
    return signal(found === undefined || slot === undefined ? undefined : tiles(found, slot)[0]?.grid);
  }, [states, stateAfter]);
  const n = slot?.shape.at(-1) ?? 1;
  const cell = SIDE / Math.max(1, tokens);
  const [from, to] = [block * size.value, Math.min(tokens, (block + 1) * size.value)];
  const move = (by: number) => {
    playing.value = false;
    step.set(Math.min(last, Math.max(0, now + by)));
  };
  const quadratic = 2 * tokens * tokens * n;
  const tiled = 2 * tokens * size.value * n + 2 * tokens * n * n;
  return (
    <div class="topic">
      <div class="prose">
        <p>Written as a matrix, linear attention with decay costs as much as softmax: all pairs. Written as a recurrence it is cheap, but one token at a time, which leaves parallel hardware idle.</p>
        <p>Lightning attention cuts the text into blocks and does each thing where it is cheap:</p>
        <ol>
          <li>pairs <strong>within</strong> a block: a small product of queries and keys, masked by the decay (a tile on the diagonal);</li>
          <li>everything <strong>before</strong> the block: one product with the state;</li>
          <li>then the block is <strong>written into</strong> the state, and the next one begins.</li>
        </ol>
        <code class="block">O_i = (Q_i K_iᵀ ∘ M) V_i + Λ Q_i H<br />H ← λ^B H + (Λ' K_i)ᵀ V_i</code>
        <p>The tiles off the diagonal are never computed. They are shown because they follow from the recurrence, and would be the same.</p>
        <label class="field">
          Block of {size.value} tokens
          <input type="range" aria-label="Tokens of a block" min={2} max={16} value={size.value} onInput={(event) => { size.set(Number(event.currentTarget.value)); step.set(0); }} />
        </label>
        {slot !== undefined && <p class="quiet">One head of {n} channels, {tokens} tokens: all pairs take about {count(quadratic)} multiplications, tiles of {size.value} about {count(tiled)}. That is {number(quadratic / Math.max(1, tiled), 2)} to 1, and twice the text doubles it.</p>}
      </div>
      <div class="stage">
        <div class="row">
          <button type="button" onClick={() => move(-1)} disabled={now === 0}>Back</button>
          <button type="button" class="primary" aria-pressed={playing.value} onClick={() => { if (now >= last) step.set(0); playing.value = !playing.value; }}>{playing.value ? 'Pause' : 'Play'}</button>
          <button type="button" onClick={() => move(1)} disabled={now === last}>Step</button>
          <span role="status">block {block + 1} of {Math.max(1, blocks)}: {PHASES[phase]}</span>
        </div>
        <div class="row" style={{ alignItems: 'flex-start', gap: '1.6rem' }}>
          {matrix === undefined ? <div class="skeleton" style={{ width: '100%' }} /> : (
            <div style={{ position: 'relative', width: `${SIDE}px`, maxWidth: '100%' }}>
              <Heat grid={grid} scale="diverging" max={max} label="What each token reads, of head 1, in tiles" say={({ row, column }, v) => `${number(v)}: token ${row + 1} reads token ${column + 1}`} width={SIDE} height={SIDE} />
              <svg class="tiles-over" viewBox={`0 0 ${SIDE} ${SIDE}`} aria-hidden="true">
                <rect class="veil" x={0} y={to * cell} width={SIDE} height={Math.max(0, SIDE - to * cell)} />
                {phase < 1 && <rect class="veil" x={0} y={from * cell} width={from * cell} height={(to - from) * cell} />}
                {Array.from({ length: blocks }, (_, b) => {
                  const [a, z] = [b * size.value * cell, Math.min(tokens, (b + 1) * size.value) * cell];
                  return <rect key={b} class={b === block && phase === 0 ? 'tile on' : 'tile'} x={a} y={a} width={z - a} height={z - a} />;
                })}
                {phase === 1 && from > 0 && <rect class="tile on" x={0} y={from * cell} width={from * cell} height={(to - from) * cell} />}
              </svg>
              <Legend scale="diverging" max={max} clipped={clipped} />
            </div>
          )}
          {slot === undefined || states === undefined ? <div class="skeleton" style={{ width: '160px' }} /> : (
            <figure style={{ margin: 0 }}>
              <div class={phase === 0 ? '' : 'lit'}>
                {state.value === undefined ? <div class="heat" style={{ width: '160px', height: '160px' }} /> : <Heat grid={state} scale="diverging" max={peak(states, slot.name)} label="State of head 1" say={({ row, column }, v) => `${number(v)}: state, row ${row + 1}, column ${column + 1}`} width={160} height={160} />}
              </div>
              <figcaption>{stateAfter === 0 ? 'the state, still empty' : `the state after ${stateAfter} tokens`}</figcaption>
            </figure>
          )}
        </div>
      </div>
    </div>
  );
}
