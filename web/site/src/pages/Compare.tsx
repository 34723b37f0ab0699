// Plant something, ask for it, see who still knows it and what knowing costs. Here pairs; copying has its own file.
import { useSignal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { call, generation, model, own, said, shipped, specKey, status, type ModelSpec } from '../engine/store';
import { Gone, Stale } from '../engine/client';
import type { RecallAnswer } from '../engine/types';
import { bytes, count } from '../lib/format';
import { archName } from '../lib/names';
import { pairsOf } from '../lib/random';
import { choiceParam, format, go, intParam, target, textParam, together } from '../lib/url';
import { colourOf } from '../views/Chart';
import { Curve } from '../views/Curve';
import { Copying } from './Copying';

const MAX_PAIRS = 32;
const pairCount = intParam('pairs', 8, 1, MAX_PAIRS);
const seed = intParam('seed', 1);
const ask = textParam('ask', '');
const TASKS = ['recall', 'copy'] as const;
const TASK_WORDS: Record<(typeof TASKS)[number], string> = { recall: 'Recall pairs', copy: 'Copy a text' };
const task = choiceParam('task', TASKS, 'recall');

interface Entrant {
  spec: ModelSpec;
  arch: string;
  name: string;
  note?: string;
}

function entrants(): Entrant[] {
  const ours = (shipped.value ?? [])
    .filter((m) => m.task === 'mqar')
    .map((m) => ({ spec: { kind: 'shipped', file: m.file } as const, arch: m.arch, name: archName(m.arch), ...(m.note !== undefined && { note: m.note }) }));
  const yours = own.value.flatMap((m, id) => (m.task === 'mqar' ? [{ spec: { kind: 'own', id } as const, arch: m.arch, name: `${m.name} (yours)` }] : []));
  return [...ours, ...yours];
}

export function Compare() {
  const all = entrants();
  const vocab = useVocab(all[0]);
  return (
    <>
      <header class="lead">
        <h1>Who still knows?</h1>
        <p>
          {task.value === 'recall'
            ? 'Each model reads the same pairs of a key and a value, once. Then it is asked for the value of one key.'
            : 'Each model reads the same text, once. Then it has to say it again, letter by letter.'}
        </p>
      </header>
      <div class="views" role="group" aria-label="Task" style={{ marginBottom: '1rem' }}>
        {TASKS.map((t) => <button key={t} type="button" class="tab" aria-pressed={task.value === t} onClick={() => task.set(t)}>{TASK_WORDS[t]}</button>)}
      </div>
      {task.value === 'copy' ? <Copying /> : shipped.value !== undefined && all.length === 0 ? (
        <p class="absent">
          No recall model comes with this build. <a href={format(target('learn'))} onClick={(e) => { e.preventDefault(); go('learn'); }}>Train one</a>, then bring it here.
        </p>
      ) : vocab === undefined ? (
        <div class="skeleton" />
      ) : (
        <Recall all={all} vocab={vocab} />
      )}
    </>
  );
}

/** The words of the first model. */
function useVocab(first: Entrant | undefined): readonly string[] | undefined {
  const vocab = useSignal<readonly string[] | undefined>(undefined);
  const key = first === undefined ? '' : specKey(first.spec);
  useEffect(() => {
    if (first === undefined || status.value.phase !== 'ready') return;
    model(first.spec)
      .then(({ info }) => (vocab.value = info.vocab))
      .catch(() => undefined);
  }, [key, status.value.phase]);
  return vocab.value;
}

type Answer = { recall: RecallAnswer } | { error: string } | undefined;

function Recall({ all, vocab }: { all: Entrant[]; vocab: readonly string[] }) {
  const pairs = useMemo(() => pairsOf(vocab, pairCount.value, seed.value), [vocab, pairCount.value, seed.value]);
  const asked = pairs.find(([k]) => k === ask.value) ?? pairs[0]!;
  const answers = useSignal<Record<string, Answer>>({});
  const keys = all.map((e) => specKey(e.spec)).join();
  useEffect(() => {
    let wanted = true;
    answers.value = {};
    if (status.value.phase !== 'ready') return;
    for (const { spec } of all) {
      model(spec)
        .then(({ handle }) => call('recall', [handle, pairs, asked[0]], { wanted: () => wanted }))
        .then((recall) => wanted && (answers.value = { ...answers.peek(), [specKey(spec)]: { recall } }))
        .catch((error: unknown) => {
          if (wanted && !(error instanceof Stale || error instanceof Gone)) answers.value = { ...answers.peek(), [specKey(spec)]: { error: said(error) } };
        });
    }
    return () => {
      wanted = false;
    };
  }, [keys, pairs, asked[0], status.value.phase, generation.value]);

  return (
    <>
      <div class="stack">
        <div class="row">
          <label>
            Pairs{' '}
            <input type="range" min={1} max={Math.min(MAX_PAIRS, pairsOf(vocab, MAX_PAIRS, 0).length)} value={pairCount.value} aria-label="Number of pairs"
              onInput={(event) => together(() => { pairCount.set(Number(event.currentTarget.value)); ask.set(''); })} />{' '}
            <output>{pairCount.value}</output>
          </label>
          <button type="button" onClick={() => together(() => { seed.set(seed.peek() + 1); ask.set(''); })}>Other pairs</button>
          <span class="quiet">press a key to ask for it</span>
        </div>
        <div class="pairs" role="group" aria-label="Pairs, in the order they are read">
          {pairs.map(([k, v]) => (
            <span class="pair" key={k}>
              <button type="button" aria-pressed={k === asked[0]} aria-label={`Ask for ${k}`} onClick={() => ask.set(k)}>{k}</button>
              <span>{v}</span>
            </span>
          ))}
        </div>
      </div>
      <h2 style={{ marginTop: '1.4rem' }}>“{asked[0]}” is … <code>{asked[1]}</code></h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Answers">
        <table class="data">
          <thead>
            <tr><th scope="col">model</th><th scope="col">answers</th><th scope="col">how sure of the right one</th><th scope="col">carries</th><th scope="col">cost of the question</th></tr>
          </thead>
          <tbody>
            {all.map((e, i) => {
              const answer = answers.value[specKey(e.spec)];
              if (answer === undefined || 'error' in answer) {
                return <tr key={specKey(e.spec)}><th scope="row">{e.name}</th><td colSpan={4} class="quiet">{answer?.error ?? '…'}</td></tr>;
              }
              const { recall } = answer;
              const best = recall.answer[0];
              const right = best?.text === asked[1];
              const sure = recall.answer.find((p) => p.text === asked[1])?.probability;
              return (
                <tr key={specKey(e.spec)}>
                  <th scope="row" title={e.note}>{e.name}</th>
                  <td class={right ? 'right-answer' : ''}><code>{best?.text}</code> {right ? '✓' : '✗'}</td>
                  <td>
                    <span class="bar share" style={{ '--share': sure ?? 0, background: colourOf(i) }} /> {sure === undefined ? 'not among its first five' : `${Math.round(100 * sure)} %`}
                  </td>
                  <td>{bytes(recall.stateBytes)}</td>
                  <td>{count(recall.readFlops)} FLOP</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
      <Pairs all={all} vocab={vocab} />
    </>
  );
}

const SIZES = [1, 2, 4, 8, 12, 16, 24, 32];
const ASKED = 8;

/** Every model asked for several keys at growing numbers of pairs. */
function Pairs({ all, vocab }: { all: Entrant[]; vocab: readonly string[] }) {
  return (
    <Curve
      heading="How many pairs fit"
      about="A cache of everything finds every pair, and pays for every pair with every token. A state of fixed size has to forget at some point."
      words={['Ask all', 'Asking…']}
      all={all}
      sizes={SIZES}
      questions={() => (n) => {
        const pairs = pairsOf(vocab, n, seed.peek());
        const some = pairs.filter((_, i) => i % Math.ceil(n / ASKED) === 0);
        return pairs.length < n ? undefined : some.map(([key, value]) => ({ pairs, key, value }));
      }}
      right={async (handle, { pairs, key, value }) => {
        const { answer } = await call('recall', [handle, pairs, key]);
        return answer[0]?.text === value ? 1 : 0;
      }}
      chart={{ title: 'Recall', x: { label: 'pairs', log: true, binary: true, min: 1, max: 32 }, y: { label: 'right answers, %', min: 0, max: 100 } }}
    />
  );
}
