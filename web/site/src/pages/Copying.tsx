// Plant a text, have it said again: who loses the thread, and after how many letters.
import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { Gone, Stale } from '../engine/client';
import { call, generation, model, said, shipped, specKey, status, type ModelSpec } from '../engine/store';
import type { CopyAnswer } from '../engine/types';
import { bytes, token as show } from '../lib/format';
import { archName } from '../lib/names';
import { random } from '../lib/random';
import { intParam, textParam, together } from '../lib/url';
import { colourOf } from '../views/Chart';
import { Curve } from '../views/Curve';

/** The models learned from lines of 2 to 24 letters. */
const LONGEST = 32;
const LETTERS = ' abcdefghijklmnopqrstuvwxyz';
const PLANTED = 'my big sphinx of quartz';
const REPEATS = 'the cat sat on the mat';
const text = textParam('text', PLANTED);
const seed = intParam('seed', 1);

/** What the models have letters for. */
export const plain = (value: string) =>
  [...value.toLowerCase()]
    .filter((c) => LETTERS.includes(c))
    .slice(0, LONGEST)
    .join('');

export function word(length: number, next: () => number): string {
  return Array.from({ length }, () => LETTERS[Math.floor(next() * LETTERS.length)]).join('');
}

interface Copyist {
  spec: ModelSpec;
  name: string;
  note: string;
}

const copyists = (): Copyist[] =>
  (shipped.value ?? [])
    .filter((m) => m.task === 'copy')
    .map((m) => ({ spec: { kind: 'shipped', file: m.file }, name: archName(m.arch), note: m.note ?? '' }));

type Answer = { copy: CopyAnswer } | { error: string } | undefined;

export function Copying() {
  const all = copyists();
  const planted = plain(text.value);
  const answers = useSignal<Record<string, Answer>>({});
  const keys = all.map((c) => specKey(c.spec)).join();
  useEffect(() => {
    let wanted = true;
    answers.value = {};
    if (status.value.phase !== 'ready' || planted === '') return;
    for (const { spec } of all) {
      model(spec)
        .then(({ handle }) => call('copy', [handle, planted], { wanted: () => wanted }))
        .then((copy) => wanted && (answers.value = { ...answers.peek(), [specKey(spec)]: { copy } }))
        .catch((error: unknown) => {
          if (wanted && !(error instanceof Stale || error instanceof Gone)) answers.value = { ...answers.peek(), [specKey(spec)]: { error: said(error) } };
        });
    }
    return () => {
      wanted = false;
    };
  }, [keys, planted, status.value.phase, generation.value]);
  if (shipped.value !== undefined && all.length === 0) return <p class="absent">No copying model comes with this build.</p>;
  return (
    <>
      <div class="stack text-input">
        <label>
          <span class="label">A text of your own: letters and blanks, at most {LONGEST}</span>
          <input type="text" class="planted" value={planted} maxLength={LONGEST} spellcheck={false} autocomplete="off" onInput={(event) => {
            const kept = plain(event.currentTarget.value);
            event.currentTarget.value = kept;
            text.set(kept);
          }} />
        </label>
        <div class="texts">
          {[PLANTED, REPEATS].map((t) => <button key={t} type="button" class="chip" aria-pressed={planted === t} onClick={() => text.set(t)}>{t}</button>)}
          <button type="button" class="chip" onClick={() => together(() => { seed.set(seed.peek() + 1); text.set(word(16, random(seed.peek()))); })}>Random letters</button>
        </div>
        <p class="quiet">
          Each model reads it once, then a mark, and goes on from its own letters. They find their place by the last few letters: where those
          come twice, they may take the wrong turn.
        </p>
      </div>
      {planted === '' ? <p class="absent">Type something to be said again.</p> : (
        <div class="scroll" tabIndex={0} role="region" aria-label="What they say">
          <table class="data">
            <thead><tr><th scope="col">model</th><th scope="col">says</th><th scope="col">right</th><th scope="col">carries</th></tr></thead>
            <tbody>
              {all.map((c, i) => {
                const answer = answers.value[specKey(c.spec)];
                if (answer === undefined || 'error' in answer) return <tr key={specKey(c.spec)}><th scope="row">{c.name}</th><td colSpan={3} class="quiet">{answer?.error ?? '…'}</td></tr>;
                return <Said key={specKey(c.spec)} copyist={c} copy={answer.copy} colour={colourOf(i)} />;
              })}
            </tbody>
          </table>
        </div>
      )}
      <Lengths all={all} />
    </>
  );
}

const rightOf = ({ said, wanted }: CopyAnswer) => said.filter((s, i) => s === wanted[i]).length;

function Said({ copyist, copy, colour }: { copyist: Copyist; copy: CopyAnswer; colour: string }) {
  const right = rightOf(copy);
  return (
    <tr>
      <th scope="row" title={copyist.note}>{copyist.name}</th>
      <td>
        <span class="said" role="img" aria-label={`“${copy.said.join('')}”`}>
          {copy.said.map((s, i) => <span key={i} class={s === copy.wanted[i] ? '' : 'wrong'} title={`“${show(copy.wanted[i] ?? '')}” with ${Math.round(100 * (copy.sure[i] ?? 0))} %`}>{show(s)}</span>)}
        </span>
      </td>
      <td class={right === copy.wanted.length ? 'right-answer' : ''}><span class="bar share" style={{ '--share': right / copy.wanted.length, background: colour }} /> {right} of {copy.wanted.length}</td>
      <td>{bytes(copy.stateBytes)}</td>
    </tr>
  );
}

const SIZES = [2, 4, 8, 12, 16, 20, 24, 32];
const ASKED = 6;

/** Every model with random letters of growing length. */
function Lengths({ all }: { all: Copyist[] }) {
  return (
    <Curve
      heading="How long a text fits"
      about="Attention looks up what followed the last letters, in a cache that grows with the text. A memory of fixed size holds so many letters and no more. All learned from 2 to 24 random letters: farther back, attention is at a loss too."
      words={['Try all lengths', 'Copying…']}
      all={all}
      sizes={SIZES}
      questions={() => {
        const next = random(seed.peek());
        return (length) => Array.from({ length: ASKED }, () => word(length, next));
      }}
      right={async (handle, planted) => rightOf(await call('copy', [handle, planted])) / planted.length}
      chart={{ title: 'Copying', x: { label: 'letters', min: 0, max: LONGEST }, y: { label: 'right letters, %', min: 0, max: 100 } }}
    />
  );
}
