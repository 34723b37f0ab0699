// The library's own checks, run here: every form of every architecture, values and gradients.
import { signal, useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { architectures, call, computeOn, said, status, withBackends } from '../engine/store';
import type { Backend, ParityRow } from '../engine/types';
import { number } from '../lib/format';
import { archName } from '../lib/names';
import { choiceParam, listParam } from '../lib/url';
import { Chooser } from '../views/Chooser';

const archs = listParam('archs', ['attention', 'linear_attention', 'gated_deltanet', 'mamba2', 'lstm', 'moh', 'yaad']);
const where = choiceParam('on', ['both', 'cpu', 'webgpu'] as const, 'both');
const failing = choiceParam('show', ['all', 'failing'] as const, 'all');

type Row = ParityRow & { backend: Backend };
const skipped = (row: ParityRow) => row.ok && row.note?.startsWith('skipped') === true;
const rows = signal<readonly Row[]>([]);

/** What the last run found. */
export const parityRows = () => rows.peek();

/** What `npm run parity` keeps. */
interface RecordedRun {
  /** `module` tells builds of the library apart. */
  runs: { backend: Backend; recorded: string; module?: string; browser: string; system: string; on: string; archs: string[] }[];
  /** `error: null` stands for infinity. */
  rows: Row[];
}
const recorded = signal<RecordedRun | null | undefined>(undefined);

async function fetchRecorded() {
  if (recorded.peek() !== undefined) return;
  recorded.value = null;
  try {
    const response = await fetch(new URL('parity.json', document.baseURI));
    const type = response.headers.get('content-type') ?? '';
    if (response.ok && type.includes('json')) recorded.value = (await response.json()) as RecordedRun;
  } catch {
    recorded.value = null;
  }
}

export function Parity() {
  const words = useSignal('');
  const job = useSignal(0);
  useEffect(() => {
    void fetchRecorded();
    return () => void (job.value += 1);
  }, []);
  const run = async () => {
    const mine = ++job.value;
    rows.value = [];
    const backends: Backend[] = where.peek() === 'both' ? ['cpu', 'webgpu'] : [where.peek() as Backend];
    try {
      for (const backend of backends) {
        if (!(await computeOn(backend))) continue;
        for (const arch of archs.peek()) {
          if (job.peek() !== mine) return;
          words.value = `checking ${archName(arch)} on ${backend === 'cpu' ? 'the CPU' : 'WebGPU'}`;
          await call('parity', [[arch]], {
            progress: (row: ParityRow) => (rows.value = [...rows.peek(), { ...row, backend }]),
          });
        }
      }
      words.value = 'done';
    } catch (error) {
      words.value = `stopped: ${said(error)}`;
    }
  };
  const busy = words.value.startsWith('checking');
  const live = rows.value.length > 0;
  const shown = live ? rows.value : (recorded.value?.rows ?? []);
  return (
    <>
      <header class="lead">
        <h1>Is it the same everywhere?</h1>
        <p>
          Each architecture can be computed in several forms: token by token, in chunks, all at once, from any state. The library's
          tests demand that all agree, in values and in gradients. Here they run in your browser, with the same limits.
        </p>
      </header>
      <div class="row">
        <label>
          On{' '}
          <select value={where.value} onChange={(event) => where.set(event.currentTarget.value as 'cpu')}>
            <option value="both">CPU and WebGPU</option>
            <option value="cpu">CPU</option>
            <option value="webgpu">WebGPU</option>
          </select>
        </label>
        <button type="button" class="primary" disabled={busy || status.value.phase !== 'ready'} onClick={() => void withBackends(run)}>Run the checks</button>
        {busy && <button type="button" onClick={() => { job.value += 1; words.value = ''; }}>Stop</button>}
        <label><input type="checkbox" checked={failing.value === 'failing'} onChange={(event) => failing.set(event.currentTarget.checked ? 'failing' : 'all')} /> only what fails</label>
        <span class="quiet" role="status">{words}</span>
      </div>
      {shown.length === 0 ? (
        <p class="absent">Nothing was checked here yet. WebGPU compiles its programs first, which takes a while.</p>
      ) : (
        <>
          {!live && (
            <div class="quiet recorded" style={{ margin: '0.8rem 0 0' }}>
              {recorded.value?.runs.map((r, i, all) => (
                <p key={i}>
                  {BACKENDS[r.backend]}{all.some((o) => o !== r && o.backend === r.backend) && <>, {r.archs.length > 8 ? `${r.archs.length} architectures` : r.archs.map(archName).join(', ')}</>}: recorded
                  on {r.recorded} in {r.browser} ({r.system}), {r.on}{r.module !== undefined && <>; the library built as {r.module}</>}.
                </p>
              ))}
              <p>Run the checks to replace it by your own.</p>
            </div>
          )}
          <Totals all={shown} known={live ? [] : architectures.value.map((a) => a.name)} />
          <Table all={shown} known={live ? [] : architectures.value.map((a) => a.name)} />
        </>
      )}
      <section class="settings" aria-label="Which models">
        <h2>What to check</h2>
        <button type="button" class="chip" style={{ marginBottom: '0.8rem' }} onClick={() => archs.set(architectures.value.map((a) => a.name))}>all {architectures.value.length}</button>
        <Chooser all={architectures.value} chosen={archs.value} max={999} set={(next) => archs.set(next)} />
      </section>
    </>
  );
}

const share = (row: ParityRow) => (Number.isFinite(row.error) ? row.error / Math.max(row.limit, Number.MIN_VALUE) : Infinity);

const BACKENDS: Record<Backend, string> = { cpu: 'CPU', webgpu: 'WebGPU' };
const BOTH = ['cpu', 'webgpu'] as const;

function Totals({ all, known }: { all: readonly Row[]; known: readonly string[] }) {
  return (
    <div class="totals" role="status" style={{ margin: '0.8rem 0' }}>
      {BOTH.map((backend) => {
        const mine = all.filter((r) => r.backend === backend && !skipped(r));
        if (mine.length === 0) return known.length === 0 ? null : <p key={backend}><strong>{BACKENDS[backend]}</strong>: not run</p>;
        const bad = mine.filter((r) => !r.ok).length;
        const worst = mine.reduce((a, b) => (share(b) > share(a) ? b : a));
        const missing = known.filter((name) => !mine.some((r) => r.arch === name)).length;
        return (
          <p key={backend} data-backend={backend} data-bad={bad} data-total={mine.length}>
            <strong>{BACKENDS[backend]}</strong>: <span class={bad === 0 ? 'verdict-ok' : 'verdict-bad'}>{mine.length - bad} of {mine.length} agree</span>
            {missing > 0 && <>; {missing} of {known.length} architectures not run</>}; nearest to its limit: {worst.subject}, {worst.check}, {number(worst.error ?? Infinity, 2)} of {number(worst.limit, 2)}
          </p>
        );
      })}
    </div>
  );
}

/** How an architecture did on a backend, in a few words. */
function Verdict({ backend, rows, asked }: { backend: Backend; rows: readonly Row[]; asked: boolean }) {
  const bad = rows.filter((r) => !r.ok).length;
  if (rows.length === 0) return asked ? <span class="verdict">{BACKENDS[backend]}: not run</span> : null;
  return (
    <span class="verdict">
      {BACKENDS[backend]}: <span class={bad === 0 ? 'verdict-ok' : 'verdict-bad'}>{bad === 0 ? `all ${rows.filter((r) => !skipped(r)).length} agree` : `${bad} of ${rows.length} fail`}</span>
    </span>
  );
}

/** `known`: architectures that are listed even where nothing was run. */
function Table({ all, known }: { all: readonly Row[]; known: readonly string[] }) {
  const names = [...new Set([...known, ...all.map((r) => r.arch)])];
  const failed = (name: string) => all.some((r) => r.arch === name && !r.ok);
  const listed = names.filter((name) => failing.value === 'all' || failed(name));
  if (listed.length === 0) return <p class="absent">Nothing fails.</p>;
  return (
    <div class="verdicts">
      {listed.map((name) => {
        const mine = all.filter((r) => r.arch === name && (failing.value === 'all' || !r.ok));
        return (
          <details key={name} open={failed(name)}>
            <summary>
              <strong>{archName(name)}</strong> {BOTH.map((b) => <Verdict key={b} backend={b} rows={all.filter((r) => r.arch === name && r.backend === b)} asked={known.length > 0} />)}
            </summary>
            <div class="scroll" tabIndex={0} role="region" aria-label={archName(name)}>
              <table>
                <thead><tr><th scope="col">check</th><th scope="col">of</th><th scope="col">on</th><th scope="col">relative error</th><th scope="col">limit</th><th scope="col">verdict</th><th scope="col">where</th></tr></thead>
                <tbody>
                  {mine.map((r, i) => (
                    <tr key={i}>
                      <th scope="row">{r.check}</th><td>{r.subject}</td><td>{BACKENDS[r.backend]}</td><td>{skipped(r) ? '' : number(r.error ?? Infinity, 2)}</td><td>{skipped(r) ? '' : number(r.limit, 2)}</td>
                      <td class={r.ok ? 'verdict-ok' : 'verdict-bad'}>{skipped(r) ? 'does not apply' : r.ok ? 'agrees' : 'fails'}</td><td class="quiet">{r.note}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          </details>
        );
      })}
    </div>
  );
}
