// Time and memory against length, on the reader's own device, drawn as it is measured.
import { signal, useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { architectures, call, computeOn, said, status, withBackends } from '../engine/store';
import type { Backend, BenchMode, BenchPoint } from '../engine/types';
import { bytes, seconds } from '../lib/format';
import { archName } from '../lib/names';
import { choiceParam, intParam, listParam } from '../lib/url';
import { Chart, type Series } from '../views/Chart';
import { Chooser } from '../views/Chooser';

const MODES = ['prefill', 'decode', 'train'] as const satisfies readonly BenchMode[];
const MODE_WORDS: Record<BenchMode, string> = {
  prefill: 'read a text of this length',
  decode: 'write one more token after this length',
  train: 'one training step on this length',
};

const archs = listParam('archs', ['attention', 'linear_attention', 'mamba2', 'lstm']);
const mode = choiceParam('mode', MODES, 'prefill');
const longest = intParam('longest', 1024, 64, 16384);
const where = choiceParam('on', ['both', 'cpu', 'webgpu'] as const, 'both');
const repeats = intParam('repeats', 3, 1, 100);

type Row = BenchPoint & { backend: Backend; mode: BenchMode };
const rows = signal<readonly Row[]>([]);
const adapter = signal<Partial<Record<Backend, string>>>({});

/** Where the last run could not measure. */
const absent = signal<readonly Backend[]>([]);

/** What the last measurement found, and on what. */
export const speedRows = () => ({ rows: rows.peek(), adapter: adapter.peek() });

export function Speed() {
  const running = useSignal('');
  const job = useSignal(0);
  useEffect(() => () => void (job.value += 1), []);

  const run = async () => {
    const mine = ++job.value;
    rows.value = rows.peek().filter((r) => r.mode !== mode.peek());
    absent.value = [];
    const lengths = [];
    for (let n = 32; n <= longest.peek(); n *= 2) lengths.push(n);
    const backends = (['cpu', 'webgpu'] as const).filter((b) => where.peek() === 'both' || where.peek() === b);
    try {
      for (const backend of backends.filter((b) => b === 'cpu' || 'gpu' in navigator)) {
        if (!(await use(backend))) {
          absent.value = [...absent.peek(), backend];
          continue;
        }
        for (const length of lengths) {
          for (const arch of archs.peek()) {
            if (job.peek() !== mine) return;
            running.value = `${archName(arch)}, ${length} tokens, ${backend === 'cpu' ? 'CPU' : 'WebGPU'}`;
            const config = JSON.stringify({ archs: [arch], lengths: [length], mode: mode.peek(), repeats: repeats.peek(), backend });
            await call('bench', [config], {
              progress: (point: BenchPoint) => (rows.value = [...rows.peek(), { ...point, backend, mode: mode.peek() }]),
            });
          }
        }
      }
    } catch (error) {
      running.value = `stopped: ${said(error)}`;
      return;
    }
    running.value = '';
  };
  const shown = rows.value.filter((r) => r.mode === mode.value);
  const busy = running.value !== '' && !running.value.startsWith('stopped');
  return (
    <>
      <header class="lead">
        <h1>What length costs, on your device</h1>
        <p>
          Nothing here was measured elsewhere. The numbers are this library, in this browser, now: one layer of each, of equal width and,
          where it has one, equal state. Compare their slopes before their heights.
        </p>
      </header>
      <div class="stack">
        <div class="row">
          <label>
            Measure{' '}
            <select value={mode.value} onChange={(event) => mode.set(event.currentTarget.value as BenchMode)}>
              {MODES.map((m) => <option key={m} value={m}>{MODE_WORDS[m]}</option>)}
            </select>
          </label>
          <label>
            up to{' '}
            <select value={longest.value} onChange={(event) => longest.set(Number(event.currentTarget.value))}>
              {[128, 256, 512, 1024, 2048, 4096, 8192].map((n) => <option key={n} value={n}>{n.toLocaleString('en')} tokens</option>)}
            </select>
          </label>
          <label>
            on{' '}
            <select value={where.value} onChange={(event) => where.set(event.currentTarget.value as 'cpu')}>
              <option value="both">CPU and WebGPU</option>
              <option value="cpu">CPU</option>
              <option value="webgpu">WebGPU</option>
            </select>
          </label>
          <button type="button" class="primary" disabled={busy || status.value.phase !== 'ready'} onClick={() => void withBackends(run)}>Measure</button>
          {busy && <button type="button" onClick={() => { job.value += 1; running.value = ''; }}>Stop</button>}
          <span class="quiet" role="status">{running.value}</span>
        </div>
      </div>
      <div class="panels" style={{ gridTemplateColumns: 'repeat(auto-fit, minmax(min(100%, 440px), 1fr))', marginTop: '1rem' }}>
        {(['cpu', 'webgpu'] as const).map((backend) => {
          const here = shown.filter((r) => r.backend === backend);
          if (backend === 'webgpu' && (!('gpu' in navigator) || absent.value.includes(backend)))
            return <section key={backend} class="panel" aria-label="WebGPU"><h2>WebGPU</h2><p class="absent">{'gpu' in navigator ? 'WebGPU found no graphics device to compute on.' : 'This browser does not offer WebGPU.'}</p></section>;
          return (
            <section key={backend} class="panel" aria-label={backend === 'cpu' ? 'CPU' : 'WebGPU'}>
              <header><h2>{backend === 'cpu' ? 'CPU' : 'WebGPU'}</h2><span class="panel-kind">{adapter.value[backend] ?? ''}</span></header>
              <Chart title={`Time on ${backend}`} markers series={series(here, (r) => r.seconds)} x={{ label: 'tokens', log: true, binary: true, min: 32, max: longest.value }} y={{ label: mode.value === 'decode' ? 'time per token' : 'time', log: true, show: seconds }} />
              {here.filter((r) => r.error !== undefined).map((r) => <p key={`${r.arch}${r.length}`} class="quiet">{archName(r.arch)} at {r.length}: {r.error}</p>)}
            </section>
          );
        })}
        <section class="panel" aria-label="Memory">
          <header><h2>Memory</h2><span class="panel-kind">bytes of state after that many tokens</span></header>
          <Chart title="Memory" markers series={series(shown.filter((r, i) => shown.findIndex((s) => s.arch === r.arch && s.length === r.length) === i), (r) => r.stateBytes)}
            x={{ label: 'tokens', log: true, binary: true, min: 32, max: longest.value }} y={{ label: 'state', log: true, binary: true, show: bytes }} />
        </section>
      </div>
      {shown.length > 0 && <Numbers shown={shown} />}
      <section class="settings" aria-label="Which models">
        <h2>Which models</h2>
        <Chooser all={architectures.value} chosen={archs.value} max={8} set={(next) => archs.set(next)} />
      </section>
    </>
  );
}

/** Moves the engine there and notes what it runs on; false where it cannot. */
async function use(backend: Backend): Promise<boolean> {
  if (!(await computeOn(backend))) return false;
  const now = status.peek();
  if (now.phase === 'ready') {
    const { threads } = now.info;
    adapter.value = { ...adapter.peek(), [backend]: now.info.adapter ?? (backend === 'cpu' ? `${threads} thread${threads === 1 ? '' : 's'}` : '') };
  }
  return true;
}

function series(points: readonly Row[], y: (row: Row) => number): Series[] {
  return archs.value.flatMap((arch, style) => {
    const mine = points.filter((p) => p.arch === arch && p.error === undefined);
    return mine.length === 0 ? [] : [{ name: archName(arch), style, points: mine.map((p) => [p.length, y(p)] as const) }];
  });
}

function Numbers({ shown }: { shown: readonly Row[] }) {
  return (
    <details>
      <summary>All numbers</summary>
      <table>
        <thead><tr><th scope="col">model</th><th scope="col">on</th><th scope="col">tokens</th><th scope="col">time</th><th scope="col">state</th></tr></thead>
        <tbody>
          {shown.map((r) => (
            <tr key={`${r.backend}${r.arch}${r.length}`}>
              <th scope="row">{archName(r.arch)}</th><td>{r.backend}</td><td>{r.length}</td><td>{r.error ?? seconds(r.seconds)}</td><td>{bytes(r.stateBytes)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}
