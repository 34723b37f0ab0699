// One number: exact, with its equation and the terms that went in.
import { useSignal, useSignalEffect } from '@preact/signals';
import { call, model, said, status } from '../engine/store';
import type { ExplainKind, Explanation } from '../engine/types';
import { number } from '../lib/format';
import { hovered, kept, look, type Looked } from './cell';

const vector = (value: number | number[]) =>
  typeof value === 'number'
    ? number(value)
    : `[${value.slice(0, 8).map((v) => number(v, 3)).join(', ')}${value.length > 8 ? `, … ${value.length} in all` : ''}]`;

async function ask(at: Looked): Promise<Explanation> {
  const { handle } = await model(at.spec);
  const token = at.kind === 'state' ? at.token : undefined;
  return call('explainIn', [at.text, [handle, at.layer, at.kind as ExplainKind, ...at.place, token]], {
    urgent: true,
    wanted: () => (hovered.peek() ?? kept.peek()) === at,
  });
}

export function Inspector() {
  const shown = useSignal<{ at: Looked; explanation?: Explanation; error?: string } | undefined>(undefined);
  useSignalEffect(() => {
    const at = hovered.value ?? kept.value;
    if (at === undefined) {
      shown.value = undefined;
      return;
    }
    shown.value = { at };
    if (!at.explains || status.value.phase !== 'ready') return;
    const timer = setTimeout(() => {
      ask(at)
        .then((explanation) => {
          if (shown.peek()?.at === at) shown.value = { at, explanation };
        })
        .catch((error: unknown) => {
          if (shown.peek()?.at === at) shown.value = { at, error: said(error) };
        });
    }, 60);
    return () => clearTimeout(timer);
  });
  const now = shown.value;
  if (now === undefined) {
    return (
      <aside class="inspector empty" aria-label="Number under the pointer">
        <p>Point at a number, or focus a picture and use the arrow keys, to see where the number comes from.</p>
      </aside>
    );
  }
  const { at, explanation, error } = now;
  return (
    <aside class="inspector" aria-label="Number under the pointer">
      <div class="inspector-number">
        <output>{number(explanation?.value ?? at.value, 6)}</output>
        <span>{at.words}</span>
        {kept.value !== undefined && (
          <button type="button" class="link" onClick={() => look(undefined, true)}>let go</button>
        )}
      </div>
      <div class="inspector-why">
        {explanation === undefined ? (
          at.equations.map((line) => <code key={line}>{line}</code>)
        ) : (
          <>
            <code>{explanation.equation}</code>
            {explanation.filled !== '' && <code class="filled">{explanation.filled}</code>}
            {explanation.note !== undefined && <p class="quiet">{explanation.note}</p>}
            <dl>
              {explanation.terms.map((term) => (
                <div key={term.symbol}>
                  <dt><code>{term.symbol}</code> <span class="quiet">{term.meaning}</span></dt>
                  <dd>{vector(term.value)}</dd>
                </div>
              ))}
            </dl>
          </>
        )}
        {error !== undefined && <p class="quiet">{error}</p>}
      </div>
    </aside>
  );
}
