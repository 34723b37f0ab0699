// Several architectures learn the same small task, here.
import { useSignal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { begin, download, keep, pause, phase, racers, reset, resume, watch, watched, type Racer } from '../engine/race';
import { architectures, status } from '../engine/store';
import type { Grid, ModelInfo, Task } from '../engine/types';
import { count, number, token as show } from '../lib/format';
import { archName } from '../lib/names';
import { pairsOf } from '../lib/random';
import { smooth } from '../lib/series';
import { tensors } from '../lib/safetensors';
import { robustMax, summary } from '../lib/state';
import { choiceParam, intParam, listParam, numberParam, textParam } from '../lib/url';
import { Chart, type Series } from '../views/Chart';
import { Chooser } from '../views/Chooser';
import { Heat, Legend } from '../views/Heat';
import { useDerived } from '../views/use';
import { Stepper } from './Remember';

const archs = listParam('archs', ['attention', 'gated_deltanet', 'lstm']);
const task = choiceParam('task', ['mqar', 'text'] as const, 'mqar');
const ownText = textParam('text', '');
const pairs = intParam('pairs', 4, 1, 16);
const lr = numberParam('lr', 0.003, 0.00001, 1);
const seed = intParam('seed', 0);
const steps = intParam('steps', 400, 1, 20000);
const dModel = intParam('width', 32, 8, 128);
const layers = intParam('depth', 2, 1, 4);

const TIME = 64;

function taskOf(): Task {
  if (task.value === 'mqar') return { task: 'mqar', vocab: 64, length: Math.max(16, 4 * pairs.value), pairs: pairs.value };
  const bytes = new TextEncoder().encode(ownText.value).length;
  return bytes > TIME ? { task: 'text', text: ownText.value } : { task: 'text' };
}

/** What the pictures are made of: some pairs and a question, or the start of the text. */
function probe(info: ModelInfo): string {
  if (info.tokenizer === 'ids') {
    const some = pairsOf(info.vocab, pairs.peek(), 7);
    return [...some.flat(), ...some.slice(0, 2).flat()].join(' ');
  }
  return (ownText.peek().length > TIME ? ownText.peek() : 'the cat sat on the mat. the cat sat on the hat.').slice(0, 48);
}

export function Learn() {
  useEffect(() => () => pause(), []);
  const now = phase.value;
  const start = () =>
    void begin({
      archs: archs.peek(), task: taskOf(), lr: lr.peek(), seed: seed.peek(), steps: steps.peek(), dModel: dModel.peek(), layers: layers.peek(),
      batch: task.peek() === 'mqar' ? 32 : 8, time: TIME, probe,
    });
  return (
    <>
      <header class="lead">
        <h1>Watch them learn</h1>
        <p>Small models, trained from nothing in this page, in turns of equal time. Same task, same seed, same learning rate.</p>
      </header>
      <div class="split">
        <form class="stack" onSubmit={(event) => { event.preventDefault(); start(); }}>
          <label class="field">
            Task
            <select value={task.value} onChange={(event) => task.set(event.currentTarget.value as 'mqar')}>
              <option value="mqar">recall pairs</option>
              <option value="text">predict text</option>
            </select>
          </label>
          {task.value === 'mqar' ? (
            <label class="field">Pairs to recall <input type="number" min={1} max={16} value={pairs.value} onChange={(event) => pairs.set(Math.min(16, Math.max(1, Math.trunc(Number(event.currentTarget.value)) || 1)))} /></label>
          ) : (
            <label>
              <span class="label">Your own text (more than {TIME} bytes; empty: one that comes with the library)</span>
              <textarea rows={3} value={ownText.value} onInput={(event) => ownText.set(event.currentTarget.value.slice(0, 4000))} />
            </label>
          )}
          <Num label="Learning rate" value={lr.value} step={0.0005} min={0.0001} max={1} set={lr.set} />
          <Num label="Seed" value={seed.value} step={1} min={0} max={9999} set={seed.set} />
          <Num label="Steps" value={steps.value} step={50} min={1} max={20000} set={steps.set} />
          <Num label="Width" value={dModel.value} step={8} min={8} max={128} set={dModel.set} />
          <Num label="Layers" value={layers.value} step={1} min={1} max={4} set={layers.set} />
          <div class="row">
            {(now === 'idle' || now === 'done') && <button type="submit" class="primary" disabled={status.value.phase !== 'ready' || archs.value.length === 0}>{now === 'done' ? 'Train again' : 'Train'}</button>}
            {now === 'running' && <button type="button" class="primary" onClick={pause}>Pause</button>}
            {now === 'paused' && <button type="button" class="primary" onClick={resume}>Continue</button>}
            {now !== 'idle' && <button type="button" onClick={() => void reset()}>Reset</button>}
          </div>
          <p class="quiet">Training computes where the top of the page says: on the CPU or on WebGPU.</p>
        </form>
        <Results />
      </div>
      <section class="settings" aria-label="Which models">
        <h2>Who races</h2>
        <Chooser all={architectures.value} chosen={archs.value} max={4} set={(next) => archs.set(next)} />
      </section>
    </>
  );
}

function Num({ label, value, step, min, max, set }: { label: string; value: number; step: number; min: number; max: number; set: (v: number) => void }) {
  return (
    <label class="field">
      {label}
      <input type="number" value={value} step="any" min={min} max={max} onChange={(event) => {
        const next = Number(event.currentTarget.value);
        if (Number.isFinite(next)) set(Math.min(max, Math.max(min, step >= 1 ? Math.trunc(next) : next)));
      }} />
    </label>
  );
}

function lines(all: readonly Racer[], y: (row: Racer['rows'][number]) => number | undefined): Series[] {
  return all.flatMap((r, style) => {
    const points = r.rows.flatMap((row) => {
      const value = y(row);
      return value === undefined ? [] : [[row.step, value] as const];
    });
    const thin = Math.max(1, Math.floor(points.length / 400));
    const smoothed = smooth(points, 12).filter((_, i) => i % thin === 0 || i === points.length - 1);
    return [{ name: archName(r.arch), style, points: smoothed }, { name: archName(r.arch), style, points: points.filter((_, i) => i % thin === 0), faint: true }];
  });
}

function Results() {
  const all = racers.value;
  if (all.length === 0) {
    return (
      <p class="absent">
        Recall: pairs of words pass by once, then the first words return in another order, and each second word must be said. Guessing
        among the 32 second words is right one time in 32. Press Train.
      </p>
    );
  }
  return (
    <div class="stack">
      <div class="panels" style={{ gridTemplateColumns: 'repeat(auto-fit, minmax(min(100%, 380px), 1fr))' }}>
        <Chart title="Loss" series={lines(all, (r) => r.loss)} x={{ label: 'step', min: 0 }} y={{ label: 'loss (nats)', min: 0 }} height={220} width={430} />
        <Chart title="Accuracy" series={lines(all, (r) => (r.accuracy === undefined ? undefined : 100 * r.accuracy))} x={{ label: 'step', min: 0 }} y={{ label: 'right, %', min: 0, max: 100 }} height={220} width={430} />
      </div>
      <div class="scroll" tabIndex={0} role="region" aria-label="Progress">
        <table class="data">
          <thead><tr><th scope="col">model</th><th scope="col">weights</th><th scope="col">step</th><th scope="col">loss</th><th scope="col">right</th><th scope="col">gradient</th><th scope="col">a step takes</th><th scope="col"><span class="sr">Actions</span></th></tr></thead>
          <tbody>
            {all.map((r) => {
              const last = r.rows.at(-1);
              return (
                <tr key={r.arch} data-arch={r.arch}>
                  <th scope="row">{archName(r.arch)}</th>
                  <td>{r.info === undefined ? '…' : count(r.info.params)}</td>
                  {r.error !== undefined ? <td colSpan={5} class="error">{r.error}</td> : (
                    <>
                      <td>{last?.step ?? 0}</td>
                      <td data-what="loss">{last === undefined ? '…' : number(last.loss, 3)}</td>
                      <td>{last?.accuracy === undefined ? '…' : `${Math.round(100 * last.accuracy)} %`}</td>
                      <td>{last === undefined ? '…' : number(last.gradNorm, 2)}</td>
                      <td>{last === undefined ? '…' : `${number(last.msPerStep, 2)} ms`}</td>
                    </>
                  )}
                  <td>
                    <button type="button" class="chip" aria-pressed={(watched.value || all[0]?.arch) === r.arch} onClick={() => watch(r.arch)}>look inside</button>{' '}
                    <Take racer={r} />
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
      <Inside racer={all.find((r) => r.arch === watched.value) ?? all[0]!} />
    </div>
  );
}

function Take({ racer }: { racer: Racer }) {
  const done = useSignal(false);
  const save = async () => {
    const bytes = await download(racer.arch);
    if (bytes === undefined) return;
    const url = URL.createObjectURL(new Blob([bytes as Uint8Array<ArrayBuffer>]));
    Object.assign(document.createElement('a'), { href: url, download: `${racer.arch}.safetensors` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };
  return (
    <>
      <button type="button" class="chip" onClick={() => void save()} aria-label={`Download ${archName(racer.arch)}`}>download</button>{' '}
      {task.value === 'mqar' && (
        <button type="button" class="chip" disabled={done.value} onClick={() => void keep(racer.arch, `${archName(racer.arch)}, ${racer.rows.length} steps`).then(() => (done.value = true))}>
          {done.value ? 'on Compare' : 'to Compare'}
        </button>
      )}
    </>
  );
}

/** Implied attention and weights of one racer, as they form. */
function Inside({ racer }: { racer: Racer }) {
  const at = useSignal({ layer: 0, head: 0, tensor: '' });
  const trace = racer.trace;
  const layer = trace?.layers[Math.min(at.value.layer, trace.layers.length - 1)];
  const matrix = layer?.attention[Math.min(at.value.head, layer.attention.length - 1)];
  return (
    <section class="panel" aria-label={`Inside ${archName(racer.arch)}`}>
      <header>
        <h2>Inside {archName(racer.arch)}</h2>
        {trace !== undefined && <Stepper label="Layer" value={at.value.layer} count={trace.layers.length} set={(v) => (at.value = { ...at.value, layer: v })} />}
        {layer !== undefined && layer.attention.length > 1 && <Stepper label="Head" value={at.value.head} count={layer.attention.length} set={(v) => (at.value = { ...at.value, head: v })} />}
      </header>
      <div class="row" style={{ alignItems: 'flex-start' }}>
        <figure style={{ margin: 0 }}>
          {trace === undefined ? <div class="skeleton" style={{ width: '240px' }} /> : matrix === undefined ? <p class="absent">{layer?.notes.find((n) => /attention/i.test(n)) ?? 'No attention matrix follows from this model.'}</p> : <Matrix matrix={matrix} side={240} label="Implied attention" words={(r, c) => `“${show(trace.tokens[r] ?? '')}” reads from “${show(trace.tokens[c] ?? '')}”`} />}
          <figcaption>what each token reads</figcaption>
        </figure>
        {racer.weights !== undefined && <Weights file={racer.weights} chosen={at.value.tensor} set={(tensor) => (at.value = { ...at.value, tensor })} />}
      </div>
    </section>
  );
}

function Matrix({ matrix, side, label, words }: { matrix: Grid; side: number; label: string; words: (row: number, column: number) => string }) {
  const grid = useDerived(() => matrix, [matrix]);
  const range = useMemo(() => summary(matrix.values), [matrix]);
  const signed = range.min < -1e-6;
  const { max, clipped } = useMemo(() => robustMax(matrix.values), [matrix]);
  const ratio = matrix.columns / matrix.rows;
  return (
    <>
      <Heat grid={grid} scale={signed ? 'diverging' : 'sequential'} max={max} label={label} say={(c, v) => `${number(v)}: ${words(c.row, c.column)}`} width={Math.round(ratio > 1 ? side : Math.max(40, side * ratio))} height={Math.round(ratio > 1 ? Math.max(24, side / ratio) : side)} />
      <Legend scale={signed ? 'diverging' : 'sequential'} max={max} clipped={clipped} />
    </>
  );
}

function Weights({ file, chosen, set }: { file: Uint8Array; chosen: string; set: (name: string) => void }) {
  const all = useMemo(() => tensors(file), [file]);
  const names = [...all.keys()];
  const name = all.has(chosen) ? chosen : (names.find((n) => /attention|mixer/.test(n) && /weight/.test(n)) ?? names[0]);
  if (name === undefined) return null;
  const { shape, values } = all.get(name)!();
  const columns = shape.length < 2 ? values.length : (shape.at(-1) ?? 1);
  return (
    <figure style={{ margin: 0 }}>
      <Matrix matrix={{ rows: Math.max(1, values.length / columns), columns, values }} side={240} label={`Weights ${name}`} words={(r, c) => `${name}, row ${r + 1}, column ${c + 1}`} />
      <figcaption>
        <label>weights <select value={name} onChange={(event) => set(event.currentTarget.value)} style={{ maxWidth: '15rem' }}>{names.map((n) => <option key={n} value={n}>{n}</option>)}</select></label>
      </figcaption>
    </figure>
  );
}
