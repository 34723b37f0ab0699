// The same text through every kind of memory.
import { computed, useComputed, useSignal, useSignalEffect, type ReadonlySignal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { architectures, shipped, type ModelSpec } from '../engine/store';
import { bytes as showBytes } from '../lib/format';
import { ARCHS, MAX_ARCHS, SEED, TEXT, TEXTS } from '../lib/defaults';
import { archName } from '../lib/names';
import { shownConfig } from '../lib/presets';
import { choiceParam, intParam, listParam, textParam, together } from '../lib/url';
import { Chart, type Series } from '../views/Chart';
import { Chooser } from '../views/Chooser';
import { Inspector } from '../views/Inspector';
import { look } from '../views/cell';
import { Panel, VIEWS, VIEW_WORDS } from '../views/Panel';
import { Timeline } from '../views/Timeline';
import { useReading } from '../views/use';

const END = Number.MAX_SAFE_INTEGER;
const MAX_BYTES = 512;

const text = textParam('text', TEXT);
const archs = listParam('archs', ARCHS);
const at = intParam('token', END);
const view = choiceParam('view', VIEWS, 'state');
const layer = intParam('layer', 0, 0, 63);
const head = intParam('head', 0, 0, 63);
const seed = intParam('seed', SEED);
const weights = choiceParam('weights', ['drawn', 'trained'] as const, 'drawn');

/** The shipped text model of an architecture, or one with drawn weights. */
export function specOf(arch: string): ModelSpec {
  const file = shipped.value?.find((m) => m.task === 'text' && m.arch === arch)?.file;
  if (weights.value === 'trained' && file !== undefined) return { kind: 'shipped', file };
  return { kind: 'drawn', config: shownConfig(arch), seed: seed.value };
}

const encoder = new TextEncoder();
/** At most as many bytes as the engine reads. */
function cut(value: string): string {
  let short = value;
  while (encoder.encode(short).length > MAX_BYTES) short = short.slice(0, -1);
  return short;
}

export function Remember() {
  const shown = archs.value;
  const first = shown[0];
  return (
    <>
      <header class="lead">
        <h1>The same text, {words(shown.length)} memories</h1>
        <p>
          Every sequence model carries something from one token to the next: its memory. Press Play, or drag along the text, and
          watch what each one keeps. Attention keeps every token; most others press all of them into a state of fixed size.
        </p>
      </header>
      <TextInput />
      {first === undefined ? <p class="absent">Choose an architecture below.</p> : text.value === '' ? <p class="absent">Type something, or take one of the texts.</p> : <Board shown={shown} first={first} />}
      <Settings />
    </>
  );
}

const words = (n: number) => ['no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'][n] ?? String(n);

function TextInput() {
  const draft = useSignal(text.peek());
  const timer = useMemo(() => ({ id: undefined as ReturnType<typeof setTimeout> | undefined }), []);
  useSignalEffect(() => {
    if (text.value !== cut(draft.peek())) draft.value = text.value;
  });
  useEffect(() => () => clearTimeout(timer.id), []);
  const set = (value: string, now = false) => {
    draft.value = value;
    clearTimeout(timer.id);
    const commit = () =>
      together(() => {
        look(undefined, true);
        text.set(cut(value));
        at.set(END);
      });
    if (now) commit();
    else timer.id = setTimeout(commit, 250);
  };
  const long = useComputed(() => encoder.encode(draft.value).length);
  return (
    <div class="text-input">
      <label>
        <span class="label">Your text</span>
        <textarea rows={2} spellcheck={false} value={draft} maxLength={2000} onInput={(event) => set(event.currentTarget.value)} />
      </label>
      <div class="texts" role="group" aria-label="Texts to start from">
        {TEXTS.map((t) => (
          <button key={t.name} type="button" class="chip" aria-pressed={text.value === t.text} onClick={() => set(t.text, true)}>{t.name}</button>
        ))}
        <span class="quiet">{long.value > MAX_BYTES ? `the first ${MAX_BYTES} of ${long} bytes are read` : `${long} of ${MAX_BYTES} bytes`}</span>
      </div>
    </div>
  );
}

function Board({ shown, first }: { shown: readonly string[]; first: string }) {
  const lead = useReading(specOf(first), text.value, layer.value);
  const tokens = lead.trace?.tokens ?? [];
  const last = tokens.length - 1;
  const token = useMemo(() => computed(() => Math.max(0, Math.min(last, at.value))), [last]);
  const layers = lead.trace?.layers.length ?? 1;
  const heads = lead.trace?.layers[0]?.attention.length ?? 1;
  return (
    <>
      <div class="controls">
        {tokens.length > 0 && <Timeline tokens={tokens} at={token} set={(t) => at.set(t === last ? END : t)} label="Token to look at" />}
        <div class="views" role="group" aria-label="What to look at">
          {VIEWS.map((v) => (
            <button key={v} type="button" class="tab" aria-pressed={view.value === v} onClick={() => { look(undefined, true); view.set(v); }}>{VIEW_WORDS[v].title}</button>
          ))}
          {view.value === 'reads' && <Stepper label="Head" value={head.value} count={Math.max(heads, head.value + 1)} set={head.set} />}
          {layers > 1 && <Stepper label="Layer" value={Math.min(layer.value, layers - 1)} count={layers} set={layer.set} />}
          <Weights />
        </div>
        <p class="hint">{VIEW_WORDS[view.value].hint}</p>
      </div>
      {view.value === 'memory' && <Bytes key={shown.join()} shown={shown} token={token} />}
      <div class="panels">
        {shown.map((arch, i) => (
          <Panel key={arch} arch={arch} spec={specOf(arch)} text={text.value} view={view.value} layer={layer.value} head={head.value} token={token} style={i}
            onRemove={() => archs.set(archs.peek().filter((a) => a !== arch))} />
        ))}
      </div>
      <Inspector />
    </>
  );
}

/** All states on one axis. */
function Bytes({ shown, token }: { shown: readonly string[]; token: ReadonlySignal<number> }) {
  const readings = shown.map((arch) => useReading(specOf(arch), text.value, layer.value));
  const series = readings.flatMap((reading, style): Series[] => {
    const all = reading.trace?.layers;
    const bytes = all?.[Math.min(layer.value, all.length - 1)]?.stateBytes;
    return bytes === undefined ? [] : [{ name: archName(shown[style]!), style, points: Array.from(bytes, (v, i) => [i + 1, v] as const) }];
  });
  return (
    <div style={{ maxWidth: '820px', marginBottom: '14px' }}>
      <Chart title="Bytes of state" series={series} width={760} height={230} cursor={token.value + 1} x={{ label: 'tokens read' }} y={{ label: 'state', log: true, binary: true, show: showBytes }} />
    </div>
  );
}

export function Stepper({ label, value, count, set }: { label: string; value: number; count: number; set: (value: number) => void }) {
  return (
    <label class="stepper">
      {label}
      <select value={value} onChange={(event) => set(Number(event.currentTarget.value))}>
        {Array.from({ length: count }, (_, i) => <option key={i} value={i}>{i + 1}</option>)}
      </select>
    </label>
  );
}

function Weights() {
  if (!(shipped.value ?? []).some((m) => m.task === 'text')) return null;
  return (
    <label class="stepper weights" title="Trained ones come with the page for some architectures">
      Weights
      <select value={weights.value} onChange={(event) => weights.set(event.currentTarget.value as 'trained' | 'drawn')}>
        <option value="drawn">drawn at random</option>
        <option value="trained">trained</option>
      </select>
    </label>
  );
}

function Settings() {
  return (
    <section class="settings" aria-label="Which models">
      <h2>Which models</h2>
      <Chooser all={architectures.value} chosen={archs.value} max={MAX_ARCHS} set={(next) => archs.set(next)} />
      <div class="row">
        <label>
          Seed of drawn weights <input type="number" min={0} max={9999} value={seed.value} onChange={(event) => seed.set(Math.max(0, Math.trunc(Number(event.currentTarget.value)) || 0))} />
        </label>
      </div>
      <p class="quiet">
        Untrained models show the shape of their memory, not what a trained one would attend to. All numbers come from the
        library itself, compiled to WebAssembly.
      </p>
    </section>
  );
}
