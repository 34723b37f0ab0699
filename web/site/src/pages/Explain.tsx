// Short pages, one idea each, on the same views as everywhere.
import { computed } from '@preact/signals';
import type { ComponentType } from 'preact';
import { useMemo } from 'preact/hooks';
import { choiceParam, intParam, numberParam, textParam, together } from '../lib/url';
import type { ModelSpec } from '../engine/store';
import { number } from '../lib/format';
import { shownConfig } from '../lib/presets';
import { Inspector } from '../views/Inspector';
import { look } from '../views/cell';
import { Panel, type View } from '../views/Panel';
import { Timeline } from '../views/Timeline';
import { useReading } from '../views/use';
import { Tiles } from './Tiles';

const TOPICS = ['state', 'softmax', 'decay', 'delta', 'miras', 'lightning', 'moh'] as const;
type Topic = (typeof TOPICS)[number];

const TITLES: Record<Topic, string> = {
  state: 'What a state is',
  softmax: 'Why softmax grows',
  decay: 'What decay does',
  delta: 'The delta rule',
  miras: 'Memory as optimisation',
  lightning: 'Lightning, tile by tile',
  moh: 'A router for heads',
};

const topic = choiceParam('topic', TOPICS, 'state');
const END = Number.MAX_SAFE_INTEGER;
const at = intParam('token', END);
const text = textParam('text', '');
const tau = numberParam('tau', 1, 0.1, 64);
const bias = choiceParam('loss', ['l2', 'dot_product', 'huber_norm'] as const, 'l2');

const drawn = (config: string | object): ModelSpec => ({ kind: 'drawn', config: typeof config === 'string' ? config : JSON.stringify(config), seed: 0 });

interface Shown {
  arch: string;
  config?: object;
  view: View;
}

/** Panels of some models on one text, with its timeline. */
function Stage({ sample, shown }: { sample: string; shown: readonly Shown[] }) {
  const read = text.value === '' ? sample : text.value;
  const specs = shown.map((s) => drawn(s.config ?? shownConfig(s.arch)));
  const lead = useReading(specs[0]!, read, 0);
  const tokens = lead.trace?.tokens ?? [];
  const last = tokens.length - 1;
  const token = useMemo(() => computed(() => Math.max(0, Math.min(last, at.value))), [last]);
  return (
    <div class="stage">
      <label>
        <span class="label">Text</span>
        <input type="text" style={{ width: '100%' }} maxLength={200} value={read} onInput={(event) => { const next = event.currentTarget.value; together(() => { look(undefined, true); text.set(next); at.set(END); }); }} />
      </label>
      {tokens.length > 0 && <Timeline tokens={tokens} at={token} set={(t) => at.set(t === last ? END : t)} />}
      <div class="panels">
        {shown.map((s, i) => (
          <Panel key={`${s.arch}${s.view}`} arch={s.arch} spec={specs[i]!} text={read} view={s.view} layer={0} head={0} token={token} style={i} />
        ))}
      </div>
      <Inspector />
    </div>
  );
}

function State() {
  return (
    <div class="topic">
      <div class="prose">
        <p>A sequence model reads one token at a time. Whatever it will ever know of the past must be in what it carries to the next token: its <em>state</em>.</p>
        <code class="block">h_t = Λ_t h_(t−1) + B_t u_t{'\n'}<br />y_t = C_t h_t + D_t u_t</code>
        <p><em>Λ</em> says what is kept, <em>B</em> what is written, <em>C</em> what is read out. All models here have this form; they differ in what the state is, and in who decides about Λ, B and C.</p>
        <p>Step through the text. The recurrent cell overwrites two vectors. Linear attention adds to a matrix. Softmax attention appends a row and never gives one up.</p>
      </div>
      <Stage sample="a state is all you carry" shown={[{ arch: 'lstm', view: 'state' }, { arch: 'linear_attention', view: 'state' }, { arch: 'attention', view: 'state' }]} />
    </div>
  );
}

function Softmax() {
  return (
    <div class="topic">
      <div class="prose">
        <p>Softmax attention weighs each earlier token by the exponential of a product of query and key.</p>
        <code class="block">y_i = Σ_j exp(q_i·k_j/√n) v_j / Σ_j exp(q_i·k_j/√n)</code>
        <p>As a recurrence it needs features φ with exp(q·k) = φ(q)·φ(k). There are such features, but infinitely many: no finite matrix holds the sum. So the keys and values themselves are kept, all of them.</p>
        <p>Linear attention chooses a finite φ. Then Σ φ(k_j) v_jᵀ is a matrix of fixed size, whatever the length; what it gives up is that two keys with similar features can no longer be told apart.</p>
        <p>Compare the bytes after each token, and what the last token reads: softmax can pick one token, the sum spreads over all.</p>
      </div>
      <Stage sample="one more token, one more row, for ever" shown={[{ arch: 'attention', view: 'memory' }, { arch: 'linear_attention', view: 'memory' }, { arch: 'attention', view: 'reads' }, { arch: 'linear_attention', view: 'reads' }]} />
    </div>
  );
}

function Decay() {
  const config = { arch: 'simple_gla', gate_temperature: tau.value };
  return (
    <div class="topic">
      <div class="prose">
        <p>If everything is added and nothing removed, the sum becomes noise. So let the old fade, by a factor α that the token itself decides:</p>
        <code class="block">H_t = α_t H_(t−1) + k_t v_tᵀ<br />log α_t = log_sigmoid(w·x_t + b) / τ</code>
        <p>What token j wrote is read by token i through the product of all factors between them. Near the diagonal it is large; further away it dies out geometrically.</p>
        <label class="field">
          τ = {number(tau.value, 3)}
          <input type="range" aria-label="τ" min={-3} max={6} step={0.25} value={Math.log2(tau.value)} onInput={(event) => tau.set(Number((2 ** Number(event.currentTarget.value)).toPrecision(4)))} />
        </label>
        <p>Move τ: the logarithm of the decay is divided by it. The eigenvalues travel towards the circle, the half-life grows, and the band along the diagonal widens.</p>
      </div>
      <Stage sample="what was long ago is faint, what is near is loud" shown={[{ arch: 'simple_gla', config, view: 'reads' }, { arch: 'simple_gla', config, view: 'eigenvalues' }, { arch: 'simple_gla', config, view: 'halflife' }, { arch: 'simple_gla', config, view: 'state' }]} />
    </div>
  );
}

function Delta() {
  const bare = { conv_kernel: 0 };
  return (
    <div class="topic">
      <div class="prose">
        <p>Adding forgets nothing, but it cannot correct either: write “a → 1”, then “a → 2”, and the memory answers 3.</p>
        <code class="block">H_t = H_(t−1) + β_t k_t (v_t − H_(t−1)ᵀ k_t)ᵀ</code>
        <p>The delta rule first asks the memory what it would answer for this key, and writes only the difference. If it knew already, nothing changes. Multiplied out, the transition is I − β k kᵀ: it erases along the key, and nowhere else.</p>
        <p>The text repeats itself. Watch <em>change</em>: linear attention adds as much on every round; the delta rule writes less and less.</p>
        <p>Its eigenvalues are 1 in all directions but one, where it is 1 − β|k|².</p>
      </div>
      <Stage sample="abababababababab" shown={[{ arch: 'linear_attention', view: 'change' }, { arch: 'deltanet', config: { arch: 'deltanet', ...bare, head_dim: 8 }, view: 'change' }, { arch: 'deltanet', config: { arch: 'deltanet', ...bare, head_dim: 8 }, view: 'eigenvalues' }, { arch: 'deltanet', config: { arch: 'deltanet', ...bare, head_dim: 8 }, view: 'reads' }]} />
    </div>
  );
}

function Miras() {
  const config = { arch: 'miras', heads: 2, head_dim: 8, chunk: 1, bias: bias.value };
  return (
    <div class="topic">
      <div class="prose">
        <p>Take the delta rule seriously: it is one step of gradient descent on ½|Hᵀk − v|². A memory is then a small model, trained while it reads, and four questions design it:</p>
        <ol>
          <li>What is the memory? A vector, a matrix, a network.</li>
          <li>What is it trained to do? The inner loss ℓ.</li>
          <li>What keeps the old? The retention.</li>
          <li>How is it trained? The algorithm.</li>
        </ol>
        <code class="block">W_t = α_t W_(t−1) − η_t ∇ℓ(W_(t−1); k_t, v_t)<br />y_t = M(q_t; W_t)</code>
        <label class="field">
          Inner loss
          <select value={bias.value} onChange={(event) => bias.set(event.currentTarget.value as 'l2')}>
            <option value="l2">squared error</option>
            <option value="dot_product">similarity (Hebb): no error is looked at</option>
            <option value="huber_norm">Huber: squared when near, absolute when far</option>
          </select>
        </label>
        <p>The chart shows the inner loss on each token <em>before</em> it is learned: surprise. On a text that repeats itself it falls, even with weights that nobody trained.</p>
      </div>
      <Stage sample="tick tock tick tock tick tock tick tock" shown={[{ arch: 'miras', config, view: 'memory' }, { arch: 'miras', config, view: 'state' }, { arch: 'miras', config, view: 'change' }]} />
    </div>
  );
}

function Router() {
  return (
    <div class="topic">
      <div class="prose">
        <p>Attention heads are many, and for any one token most have little to say. A mixture of heads asks only some: a few shared ones always, and the best of the others, as a router decides token by token.</p>
        <code class="block">y_t = Σ_i g_i(x_t) H_i(t) W_i<br />g_i = 0 unless head i is shared or chosen</code>
        <p>In the first picture each row is a head, each column a token. The first four rows are shared and always lit. Of the others two are lit in each column; the blank ones were left out.</p>
        <p>What it does not save is memory: a head that is left out now may be asked later, so every head's cache grows with every token.</p>
      </div>
      <Stage sample="every token asks other heads" shown={[{ arch: 'moh', view: 'gates' }, { arch: 'moh', view: 'reads' }, { arch: 'moh', view: 'state' }]} />
    </div>
  );
}

const PAGES: Record<Topic, ComponentType> = { state: State, softmax: Softmax, decay: Decay, delta: Delta, miras: Miras, lightning: Tiles, moh: Router };

export function Explain() {
  const now = topic.value;
  const index = TOPICS.indexOf(now);
  const to = (next: Topic) => {
    together(() => {
      look(undefined, true);
      topic.set(next);
      text.set('');
      at.set(END);
    });
    window.scrollTo(0, 0);
  };
  const Current = PAGES[now];
  const [before, after] = [TOPICS[index - 1], TOPICS[index + 1]];
  return (
    <>
      <div class="topics" role="group" aria-label="Ideas">
        {TOPICS.map((t) => <button key={t} type="button" class="chip" aria-pressed={t === now} onClick={() => to(t)}>{TITLES[t]}</button>)}
      </div>
      <header class="lead"><h1>{TITLES[now]}</h1></header>
      <Current key={now} />
      <div class="next">
        {before === undefined ? <span /> : <button type="button" onClick={() => to(before)}>← {TITLES[before]}</button>}
        {after === undefined ? <span /> : <button type="button" onClick={() => to(after)}>{TITLES[after]} →</button>}
      </div>
    </>
  );
}
