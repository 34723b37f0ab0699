// One architecture reading the text, seen one way.
import { effect, useSignal, type ReadonlySignal } from '@preact/signals';
import { useEffect, useMemo, useRef } from 'preact/hooks';
import { architectures, call, model, said, type ModelSpec, type Reading } from '../engine/store';
import type { Grid, LayerTrace, StateSlot } from '../engine/types';
import { bytes, count, number, token as show } from '../lib/format';
import { archName, KIND } from '../lib/names';
import { change, changePeak, largest, layout, peak, placeOf, robustMax, summary, tiles } from '../lib/state';
import { kept, look, pinned, type Looked, type Spot } from './cell';
import { Chart, colourOf } from './Chart';
import { Circle, HalfLives } from './Circle';
import { Heat, Legend, type Cell } from './Heat';
import { useDerived, useReading } from './use';

export const VIEWS = ['state', 'change', 'reads', 'gates', 'eigenvalues', 'halflife', 'memory'] as const;
export type View = (typeof VIEWS)[number];

export const VIEW_WORDS: Record<View, { title: string; hint: string }> = {
  state: { title: 'State', hint: 'Everything the model knows of the text so far, number by number. A cache grows by a row with every token; the others overwrite what they have.' },
  change: { title: 'Change', hint: 'What the last token wrote: the state after it minus the state before it.' },
  reads: { title: 'Reads', hint: 'Row i is what token i reads from each earlier token. Attention computes it; for the others it follows exactly from their recurrence.' },
  gates: { title: 'Gates', hint: 'What the model decides at each token: how much to keep, to write, to let out, and which heads to ask.' },
  eigenvalues: { title: 'Eigenvalues', hint: 'Of the matrix that moves the state one token on. On the circle: kept for ever. Towards the centre: forgotten. Off the axis: rotated.' },
  halflife: { title: 'Half-life', hint: 'How many tokens until half of what was written is gone, averaged over this text.' },
  memory: { title: 'Memory', hint: 'Bytes of state after each token, and how well a memory that learns while it reads does.' },
};

export interface PanelProps {
  arch: string;
  spec: ModelSpec;
  text: string;
  view: View;
  layer: number;
  head: number;
  token: ReadonlySignal<number>;
  style: number;
  onRemove?: () => void;
}

export function Panel(props: PanelProps) {
  const { arch, spec, text, token, style, view } = props;
  const reading = useReading(spec, text, props.layer);
  const info = architectures.value.find((a) => a.name === arch);
  const trace = reading.trace;
  const index = trace === undefined ? 0 : Math.min(props.layer, trace.layers.length - 1);
  const layer = trace?.layers[index];
  const size = useDerived(() => {
    const all = layer?.stateBytes;
    return all === undefined || all.length === 0 ? '' : bytes(all[Math.min(all.length - 1, token.value)]!);
  }, [layer, token]);
  const waiting = trace === undefined && !reading.error;
  const body = useRef<HTMLDivElement>(null);
  const width = useSignal(WIDTH);
  useEffect(() => {
    const node = body.current;
    if (node === null) return;
    const observer = new ResizeObserver(() => (width.value = Math.min(440, node.clientWidth)));
    observer.observe(node);
    return () => observer.disconnect();
  }, []);
  return (
    <section class="panel" aria-label={`${archName(arch)}: ${VIEW_WORDS[view].title}`} aria-busy={waiting} style={{ '--hue': colourOf(style) }}>
      <header>
        <h2>{archName(arch)}</h2>
        <span class="panel-kind">{KIND[arch] ?? info?.family ?? ''}</span>
        {props.onRemove !== undefined && (
          <button type="button" class="remove" onClick={props.onRemove} aria-label={`Leave out ${archName(arch)}`}>×</button>
        )}
      </header>
      <div class="panel-body" ref={body}>
        {reading.error ? (
          <p class="error">{reading.error}</p>
        ) : layer === undefined || trace === undefined ? (
          <div class="skeleton" />
        ) : (
          <Body {...props} width={width.value} view={view} reading={reading} layer={layer} tokens={trace.tokens} index={index} equations={info?.equations ?? []} />
        )}
      </div>
      <footer>
        <span><strong>{size}</strong> of state{info?.grows === 'per_token' ? ', growing' : ''}</span>
        {reading.info !== undefined && <span class="quiet">{count(reading.info.params)} weights{reading.info.trained ? '' : ', untrained'}</span>}
      </footer>
      {trace !== undefined && reading.info?.trained === true && <Guesses reading={reading} token={token} />}
    </section>
  );
}

interface BodyProps extends Omit<PanelProps, 'layer'> {
  /** Pixels across. */
  width: number;
  reading: Reading;
  layer: LayerTrace;
  tokens: readonly string[];
  index: number;
  equations: readonly string[];
}

function Body(props: BodyProps) {
  const { view, layer, token, style, arch } = props;
  if (view === 'state' || view === 'change') return <States {...props} />;
  if (view === 'reads') return <Reads {...props} />;
  if (view === 'gates') return <Gates {...props} />;
  if (view === 'eigenvalues') return <Circle layer={layer} token={token} style={style} name={archName(arch)} />;
  if (view === 'halflife') return <HalfLives layer={layer} style={style} name={archName(arch)} />;
  return <Memory {...props} />;
}

/** What a heat map needs for its cells to be looked at, pinned, and found again from the address. */
function useSpots(
  props: BodyProps,
  grid: ReadonlySignal<Grid | undefined>,
  kind: Spot['kind'],
  head: number,
  words: (cell: Cell) => string,
  tensor?: { slot: string; place: (cell: Cell) => [number, number, number] },
) {
  const slot = tensor?.slot ?? '';
  const pin = pinned.value;
  const mine = pin !== undefined && pin.arch === props.arch && pin.kind === kind && pin.slot === slot && pin.head === head;
  const cell = mine ? { row: pin.row, column: pin.column } : undefined;
  const make = ({ row, column }: Cell): Looked | undefined => {
    const now = grid.peek();
    if (now === undefined || row >= now.rows || column >= now.columns) return undefined;
    return {
      arch: props.arch, kind, slot, head, row, column, place: tensor?.place({ row, column }) ?? [head, row, column], spec: props.spec, text: props.text, layer: props.index, token: props.token.peek(),
      value: now.values[row * now.columns + column]!, words: `${archName(props.arch)}: ${words({ row, column })}`,
      equations: props.equations, explains: (props.layer.explains as string[]).includes(kind) && (slot === '' || slot === MEMORY),
    };
  };
  useEffect(() => {
    if (cell === undefined) return;
    return effect(() => {
      if (grid.value !== undefined && props.token.value >= 0) kept.value = make(cell);
    });
  }, [cell?.row, cell?.column, grid, kind, props.layer, props.token]);
  return {
    pinned: cell,
    say: (at: Cell, value: number) => `${number(value, 4)}: ${words(at)}`,
    onCell: (at: Cell | undefined, keep: boolean) => look(at === undefined ? undefined : make(at), keep),
  };
}

/** The slot whose recurrence the engine explains. */
const MEMORY = 'memory';

const WIDTH = 278;
const HEIGHT = 196;

const GAP = 6;

/** Size of each of `count` tiles: as many beside each other (the third number) as make the cells largest, square if they can be. */
function fit(count: number, rows: number, columns: number, width: number, height: number): [number, number, number] {
  let best: [number, number] = [0, 0];
  let beside = 1;
  let area = 0;
  for (let across = 1; across <= count; across += 1) {
    const down = Math.ceil(count / across);
    const x = Math.min(18, (width - GAP * (across - 1)) / across / Math.max(1, columns));
    const y = Math.min(18, (height - GAP * (down - 1)) / down / Math.max(1, rows));
    const square = Math.min(x, y);
    const size: [number, number] = square >= 3 ? [columns * square, rows * square] : [columns * x, rows * y];
    if (size[0] * size[1] > 1.02 * area) [best, area, beside] = [size, size[0] * size[1], across];
  }
  return [Math.floor(best[0]), Math.floor(best[1]), beside];
}

const isTail = (slot: StateSlot) => /conv|tail|shift|last|previous|position|start/i.test(slot.name);

function States(props: BodyProps) {
  const { reading, index, token, tokens } = props;
  const open = useSignal(false);
  const states = reading.states[index];
  const final = states?.at(-1);
  const slots = useMemo(() => {
    if (states === undefined || final === undefined) return [];
    const big = final.filter((s) => !isTail(s) && s.values.length > 0);
    return (big.length > 0 ? big : final).slice(0, 4);
  }, [states]);
  if (states === undefined || final === undefined) return <div class="skeleton" />;
  const others = final.filter((s) => !slots.includes(s));
  return (
    <div class="states">
      {slots.map((slot) => (
        <Slot key={slot.name} {...props} states={states} final={slot} height={Math.max(60, HEIGHT / slots.length - 22)} />
      ))}
      {others.length > 0 && (
        <p class="quiet">also {others.map((s) => `${s.name} ${s.shape.join('×')}`).join(', ')}</p>
      )}
      <details onToggle={(event) => (open.value = event.currentTarget.open)}>
        <summary>In numbers</summary>
        {open.value && <StateTable states={states} token={token} tokens={tokens} />}
      </details>
    </div>
  );
}

function Slot(props: BodyProps & { states: StateSlot[][]; final: StateSlot; height: number }) {
  const { states, final, token, view } = props;
  const now = useDerived<StateSlot | undefined>(() => {
    const t = Math.min(states.length - 1, token.value);
    const slot = states[t]?.find((s) => s.name === final.name);
    if (slot === undefined || view !== 'change') return slot;
    return change(slot, states[t - 1]?.find((s) => s.name === final.name));
  }, [states, final, view, token]);
  const max = useMemo(() => (view === 'change' ? changePeak : peak)(states, final.name), [states, final, view]);
  const frames = useMemo(() => tiles(final, final), [final]);
  const { rows, columns } = layout(final.shape);
  const grows = final.growth === 'time';
  // A cache has a row per token: laid on its side, time runs to the right as in every other picture.
  const transpose = grows && rows > columns;
  const [frameRows, frameColumns] = transpose ? [columns, rows] : [rows, columns];
  const [width, height, beside] = fit(frames.length, frameRows, frameColumns, props.width, props.height);
  return (
    <div class="slot">
      <div class="slot-name"><span>{final.name}</span><span class="quiet">{final.shape.join('×')}</span><Legend scale="diverging" max={max} /></div>
      <div class="tiles" style={{ gap: `${GAP}px`, maxWidth: `${beside * (width + GAP)}px` }}>
        {frames.map((frame) => (
          <StateTile key={frame.head} {...props} now={now} head={frame.head} frameRows={rows} max={max} transpose={transpose} width={width} height={height} heads={frames.length} />
        ))}
      </div>
    </div>
  );
}

function StateTile(
  props: BodyProps & {
    now: ReadonlySignal<StateSlot | undefined>; final: StateSlot; head: number; heads: number; frameRows: number; max: number;
    transpose: boolean; width: number; height: number;
  },
) {
  const { now, head, final, view } = props;
  const grid = useDerived(() => {
    const slot = now.value;
    return slot === undefined ? undefined : tiles(slot, final)[head]?.grid;
  }, [now, head, final]);
  const name = `${final.name}${props.heads > 1 ? `, head ${head + 1}` : ''}`;
  const spots = useSpots(props, grid, view === 'change' ? 'change' : 'state', head, ({ row, column }) =>
    `${view === 'change' ? 'change of ' : ''}${name}, row ${row + 1}, column ${column + 1}, after token ${props.token.peek() + 1}`,
    {
      slot: final.name,
      place: ({ row, column }) => {
        const tile = tiles(final, final)[head];
        return placeOf(final.shape, (tile?.offset ?? 0) + row * (tile?.grid.columns ?? 1) + column);
      },
    },
  );
  return (
    <Heat
      grid={grid} frameRows={props.frameRows} scale="diverging" max={props.max} transpose={props.transpose}
      label={`${archName(props.arch)}: ${name}, ${final.shape.join(' by ')}`}
      {...spots} width={props.width} height={props.height}
    />
  );
}

function StateTable({ states, token, tokens }: { states: StateSlot[][]; token: ReadonlySignal<number>; tokens: readonly string[] }) {
  const t = Math.min(states.length - 1, token.value);
  return (
    <table>
      <caption>State after token {t + 1}, “{show(tokens[t] ?? '')}”</caption>
      <thead><tr><th scope="col">tensor</th><th scope="col">shape</th><th scope="col">smallest</th><th scope="col">largest</th><th scope="col">norm</th></tr></thead>
      <tbody>
        {states[t]?.map((slot) => {
          const s = summary(slot.values);
          return (
            <tr key={slot.name}>
              <th scope="row">{slot.name}</th><td>{slot.shape.join('×')}</td><td>{number(s.min, 3)}</td><td>{number(s.max, 3)}</td><td>{number(s.norm, 3)}</td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

function Reads(props: BodyProps) {
  const { layer, tokens, token, head } = props;
  const h = Math.min(head, layer.attention.length - 1);
  const matrix = layer.attention[h];
  const range = useMemo(() => (matrix === undefined ? undefined : { ...robustMax(matrix.values), min: summary(matrix.values).min }), [matrix]);
  const grid = useDerived(() => matrix, [matrix]);
  const row = useDerived(() => {
    if (matrix === undefined) return undefined;
    const t = Math.min(matrix.rows - 1, token.value);
    return { rows: 1, columns: matrix.columns, values: matrix.values.subarray(t * matrix.columns, (t + 1) * matrix.columns) };
  }, [matrix, token]);
  const words = ({ row, column }: Cell) => `head ${h + 1}: what “${show(tokens[row] ?? '')}” (${row + 1}) reads from “${show(tokens[column] ?? '')}” (${column + 1})`;
  const spots = useSpots(props, grid, 'attention', Math.max(0, h), words);
  if (matrix === undefined || range === undefined) {
    return <p class="absent">{layer.notes.find((n) => /attention/i.test(n)) ?? 'What this model reads from a token depends on everything it read before: there is no such matrix.'}</p>;
  }
  const signed = range.min < -1e-6;
  const { max, clipped } = range;
  const scale = signed ? 'diverging' : 'sequential';
  const side = Math.min(HEIGHT, props.width - 90);
  return (
    <div class="reads">
      <Heat grid={grid} scale={scale} max={max} cursor={token} fadeFuture label={`${archName(props.arch)}: implied attention of head ${h + 1}, ${matrix.rows} by ${matrix.columns}`} {...spots} width={side} height={side} />
      <div class="reads-row" style={{ height: `${side}px` }}>
        <Legend scale={scale} max={max} clipped={clipped} />
        <Strongest row={row} tokens={tokens} token={token} />
      </div>
    </div>
  );
}

/** The tokens that the current one reads most. */
function Strongest({ row, tokens, token }: { row: ReadonlySignal<Grid | undefined>; tokens: readonly string[]; token: ReadonlySignal<number> }) {
  const best = useDerived(() => {
    const now = row.value;
    if (now === undefined) return [];
    const t = Math.min(tokens.length - 1, token.value);
    const order = largest(now.values.subarray(0, t + 1), 5);
    const top = Math.abs(now.values[order[0] ?? 0] ?? 0);
    return order.map((i) => ({ i, value: now.values[i]!, part: top > 0 ? Math.abs(now.values[i]!) / top : 0 }));
  }, [row, tokens, token]);
  const t = Math.min(tokens.length - 1, token.value);
  return (
    <table class="strongest">
      <caption>“{show(tokens[t] ?? '')}” reads most from</caption>
      <tbody>
        {best.value.map(({ i, value, part }, place) => (
          <tr key={place}>
            <th scope="row"><code>{show(tokens[i] ?? '')}</code><sub>{i + 1}</sub></th>
            <td><span class="bar" style={{ width: `${Math.round(34 * part)}px` }} />{number(value, 2)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Gates(props: BodyProps) {
  const { layer } = props;
  const grids = [...(layer.router === undefined ? [] : [{ name: 'router: weight of each head', grid: layer.router, router: true }]), ...layer.gates.map((g) => ({ ...g, router: false }))];
  if (grids.length === 0) return <p class="absent">{layer.notes.find((n) => /gate/i.test(n)) ?? 'No gates: it keeps everything, always, and weighs when it reads.'}</p>;
  const shown = grids.slice(0, 4);
  return (
    <div class="gates">
      {shown.map((gate) => (
        <GateRow key={gate.name} {...props} name={gate.name} matrix={gate.grid} router={gate.router} height={Math.min(90, Math.max(26, HEIGHT / shown.length - 22))} first={gate === shown.find((g) => !g.router)} />
      ))}
    </div>
  );
}

function GateRow(props: BodyProps & { name: string; matrix: Grid; router: boolean; height: number; first: boolean }) {
  const { matrix, name, tokens, token } = props;
  const grid = useDerived(() => matrix, [matrix]);
  const range = useMemo(() => summary(matrix.values), [matrix]);
  const signed = range.min < -1e-6;
  const max = signed ? Math.max(-range.min, range.max) : Math.max(range.max, 1e-9);
  const height = Math.min(props.height, Math.max(14, matrix.columns * 14));
  const kind = props.router ? 'router' : props.first ? 'decay' : 'gate';
  const spots = useSpots(props, grid, kind, 0, ({ row, column }) => `${name}, ${props.router ? 'head' : 'channel'} ${column + 1}, at “${show(tokens[row] ?? '')}” (${row + 1})`);
  return (
    <div class="slot">
      <div class="slot-name"><span>{name}</span><Legend scale={signed ? 'diverging' : 'sequential'} max={max} /></div>
      <Heat grid={grid} scale={signed ? 'diverging' : 'sequential'} max={max} transpose cursor={token} label={`${archName(props.arch)}: ${name}, ${matrix.columns} channels over ${matrix.rows} tokens`} {...spots} width={props.width} height={height} />
    </div>
  );
}

function Memory(props: BodyProps) {
  const { layer, token, style } = props;
  const at = token.value + 1;
  const series = (grid: Grid) =>
    Array.from({ length: grid.rows }, (_, h) => ({
      name: `head ${h + 1}`, style: style + h, points: Array.from({ length: grid.columns }, (_, t) => [t + 1, grid.values[h * grid.columns + t]!] as const),
    }));
  return (
    <div class="memory">
      <Chart title={`${archName(props.arch)}, state`} quiet width={300} height={120} x={{ label: 'tokens' }} y={{ label: 'bytes', min: 0, binary: true, show: (v) => bytes(v) }} cursor={at}
        series={[{ name: 'state', style, points: Array.from(layer.stateBytes, (v, i) => [i + 1, v] as const) }]} />
      {layer.memoryLoss !== undefined && (
        <Chart title={`${archName(props.arch)}, inner loss on each token before it is written`} quiet width={300} height={110} x={{ label: 'tokens' }} y={{ label: 'inner loss' }} cursor={at} series={series(layer.memoryLoss)} />
      )}
      {layer.memoryNorm !== undefined && (
        <Chart title={`${archName(props.arch)}, norm of the memory`} quiet width={300} height={110} x={{ label: 'tokens' }} y={{ label: 'norm' }} cursor={at} series={series(layer.memoryNorm)} />
      )}
    </div>
  );
}

/** What a trained model expects next. */
function Guesses({ reading, token }: { reading: Reading; token: ReadonlySignal<number> }) {
  const all = reading.trace?.predictions ?? [];
  const t = Math.min(all.length - 1, token.value);
  const actual = reading.trace?.tokens[t + 1];
  return (
    <p class="guesses">
      <span class="quiet">expects </span>
      {all[t]?.slice(0, 4).map((p) => (
        <span key={p.token} class={p.text === actual ? 'guess right' : 'guess'}>
          <code>{show(p.text)}</code> {Math.round(100 * p.probability)} %{p.text === actual ? ' ✓' : ''}
        </span>
      ))}
      <Continue reading={reading} />
    </p>
  );
}

const WRITTEN = 48;

/** Lets a trained model go on with the text. */
function Continue({ reading }: { reading: Reading }) {
  const written = useSignal<{ key: string; text: string } | undefined>(undefined);
  const busy = useSignal(false);
  const write = async () => {
    busy.value = true;
    try {
      const { handle } = await model(reading.spec);
      written.value = { key: reading.key, text: await call('generate', [handle, reading.text, WRITTEN, 0, 0.7], { urgent: true }) };
    } catch (error) {
      written.value = { key: reading.key, text: said(error) };
    }
    busy.value = false;
  };
  const mine = written.value?.key === reading.key ? written.value.text : undefined;
  return (
    <>
      <button type="button" class="link" disabled={busy.value} onClick={() => void write()}>{busy.value ? 'writing…' : 'let it write on'}</button>
      {mine !== undefined && <q class="written">{mine}</q>}
    </>
  );
}
