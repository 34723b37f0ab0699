// A heat map on a canvas: one pixel per number, enlarged by the browser, so that a redraw is one pass over the
// numbers. It is a keyboard control too: arrows move from cell to cell, Enter pins one.
import { effect, useSignal, type ReadonlySignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import type { Grid } from '../engine/types';
import { table, type Scale } from '../lib/palette';
import { paint } from '../lib/paint';
import { theme } from '../lib/theme';

export interface Cell {
  row: number;
  column: number;
}

export interface HeatProps {
  /** What is drawn; a signal, so that scrubbing redraws without rendering. */
  grid: ReadonlySignal<Grid | undefined>;
  /** Rows of the frame where the grid still grows. */
  frameRows?: number;
  scale: Scale;
  /** Value of full colour; diverging scales run from −max to max, sequential ones from 0. */
  max: number;
  /** Columns run down: for grids `[time, channel]` drawn with time to the right. */
  transpose?: boolean;
  /** The current row of the grid. */
  cursor?: ReadonlySignal<number>;
  /** Rows below the cursor are still to come. */
  fadeFuture?: boolean;
  label: string;
  /** The number under the pointer in words. */
  say: (cell: Cell, value: number) => string;
  onCell?: (cell: Cell | undefined, pinned: boolean) => void;
  pinned?: Cell | undefined;
  width: number;
  height: number;
}

let seen = false;
/** Notes when the first picture is on the page: one of the budgets. */
function pictured() {
  if (seen) return;
  seen = true;
  requestAnimationFrame(() => performance.mark('seqzoo:first-picture'));
}

export function Heat(props: HeatProps) {
  const { grid, scale, max, transpose = false, cursor, fadeFuture = false, width, height } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  const mark = useRef<HTMLDivElement>(null);
  const future = useRef<HTMLDivElement>(null);
  const focus = useSignal<Cell | undefined>(undefined);
  const spoken = useSignal('');

  const frame = () => {
    const now = grid.peek();
    const rows = Math.max(props.frameRows ?? 0, now?.rows ?? 0);
    const columns = now?.columns ?? 0;
    return transpose ? { rows: columns, columns: rows } : { rows, columns };
  };

  useEffect(
    () => {
      let image: ImageData | undefined;
      return effect(() => {
        const now = grid.value;
        const node = canvas.current;
        const colours = table(theme.value, scale);
        if (node === null || now === undefined) return;
        const { rows, columns } = frame();
        if (rows === 0 || columns === 0) return;
        if (node.width !== columns) node.width = columns;
        if (node.height !== rows) node.height = rows;
        const context = node.getContext('2d');
        if (context === null) return;
        if (image === undefined || image.width !== columns || image.height !== rows) image = context.createImageData(columns, rows);
        else new Uint32Array(image.data.buffer).fill(0);
        paint(new Uint32Array(image.data.buffer), columns, now, colours, scale === 'diverging', max, transpose);
        context.putImageData(image, 0, 0);
        pictured();
      });
    },
    [grid, scale, max, transpose, props.frameRows],
  );

  useEffect(
    () =>
      effect(() => {
        if (cursor === undefined) return;
        const at = cursor.value;
        const total = Math.max(1, props.frameRows ?? 0, grid.value?.rows ?? 0);
        const [start, size] = [`${(100 * at) / total}%`, `${100 / total}%`];
        const line = mark.current;
        if (line !== null) {
          if (transpose) Object.assign(line.style, { left: start, width: size, top: '0', height: '100%' });
          else Object.assign(line.style, { top: start, height: size, left: '0', width: '100%' });
        }
        if (future.current !== null) {
          const after = `${(100 * (at + 1)) / total}%`;
          if (transpose) Object.assign(future.current.style, { left: after, right: '0', top: '0', bottom: '0' });
          else Object.assign(future.current.style, { top: after, bottom: '0', left: '0', right: '0' });
        }
      }),
    [cursor, grid, transpose, props.frameRows],
  );

  const valueAt = ({ row, column }: Cell) => {
    const now = grid.peek();
    return now === undefined || row >= now.rows || column >= now.columns ? undefined : now.values[row * now.columns + column];
  };
  const visit = (cell: Cell | undefined, pinned: boolean) => {
    const value = cell === undefined ? undefined : valueAt(cell);
    focus.value = value === undefined ? undefined : cell;
    if (cell !== undefined && value !== undefined) spoken.value = props.say(cell, value);
    props.onCell?.(value === undefined ? undefined : cell, pinned);
  };
  const under = (event: PointerEvent): Cell | undefined => {
    const box = canvas.current?.getBoundingClientRect();
    if (box === undefined) return undefined;
    const { rows, columns } = frame();
    const x = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
    const y = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
    return transpose ? { row: x, column: y } : { row: y, column: x };
  };
  const key = (event: KeyboardEvent) => {
    const moves: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    const now = grid.peek();
    if (now === undefined) return;
    if (move !== undefined) {
      const [down, right] = transpose ? [move[1], move[0]] : move;
      const from = focus.peek() ?? { row: cursor?.peek() ?? 0, column: 0 };
      const first = focus.peek() === undefined;
      visit(
        {
          row: Math.min(now.rows - 1, Math.max(0, from.row + (first ? 0 : down))),
          column: Math.min(now.columns - 1, Math.max(0, from.column + (first ? 0 : right))),
        },
        false,
      );
    } else if (event.key === 'Enter' && focus.peek() !== undefined) {
      visit(focus.peek(), true);
    } else if (event.key === 'Escape') {
      visit(undefined, true);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };

  const shown = focus.value ?? props.pinned;
  const box = () => {
    if (shown === undefined) return { display: 'none' };
    const { rows, columns } = frame();
    const [x, y] = transpose ? [shown.row, shown.column] : [shown.column, shown.row];
    return { left: `${(100 * x) / columns}%`, top: `${(100 * y) / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` };
  };

  return (
    <div
      class="heat"
      style={{ width: `${width}px`, aspectRatio: `${width} / ${height}` }}
      tabIndex={0}
      role="application"
      aria-roledescription="heat map"
      aria-label={`${props.label}. Arrow keys move from number to number, Enter keeps one.`}
      onKeyDown={key}
      onPointerMove={(event) => visit(under(event), false)}
      onPointerLeave={() => visit(undefined, false)}
      onClick={(event) => visit(under(event as unknown as PointerEvent), true)}
      onBlur={() => visit(undefined, false)}
    >
      <canvas ref={canvas} aria-hidden="true" />
      {fadeFuture && <div ref={future} class="heat-future" />}
      {cursor !== undefined && <div ref={mark} class="heat-cursor" />}
      <div class="heat-cell" style={box()} />
      <span class="sr" aria-live="polite">
        {spoken}
      </span>
    </div>
  );
}

/** The colours' meaning. */
export function Legend({ scale, max, clipped = false }: { scale: Scale; max: number; clipped?: boolean }) {
  const show = (v: number) => `${clipped ? (v < 0 ? '≤ ' : '≥ ') : ''}${Number(v.toPrecision(2))}`.replace('-', '−');
  return (
    <span class="legend">
      <span>{scale === 'diverging' ? show(-max) : '0'}</span>
      <span class={`legend-bar ${scale}`} aria-hidden="true" />
      <span>{show(max)}</span>
    </span>
  );
}
