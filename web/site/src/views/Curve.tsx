// Several models asked the same at growing sizes, one answer after another, until the page is left.
import { useSignal, useSignalEffect } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { Gone } from '../engine/client';
import { generation, model, type ModelSpec } from '../engine/store';
import { Chart, type ChartProps, type Series } from './Chart';

interface Props<Q> {
  heading: string;
  about: string;
  /** On the button, before and while it runs. */
  words: readonly [string, string];
  all: readonly { spec: ModelSpec; name: string }[];
  sizes: readonly number[];
  /** The questions of a size, as long as there are any; called anew for each run. */
  questions: () => (size: number) => readonly Q[] | undefined;
  /** Share of the answer that is right. */
  right: (handle: number, question: Q) => Promise<number>;
  chart: Pick<ChartProps, 'title' | 'x' | 'y'>;
}

export function Curve<Q>({ heading, about, words, all, sizes, questions, right, chart }: Props<Q>) {
  const series = useSignal<Series[]>([]);
  const running = useSignal(false);
  const token = useMemo(() => ({ stop: false }), []);
  useEffect(() => () => void (token.stop = true), []);
  useSignalEffect(() => {
    void generation.value;
    running.value = false;
  });
  const run = async () => {
    running.value = true;
    series.value = [];
    const found: Series[] = all.map((one, i) => ({ name: one.name, style: i, points: [] }));
    const of = questions();
    try {
      for (const size of sizes) {
        const asked = of(size);
        if (asked === undefined) break;
        for (const [i, one] of all.entries()) {
          const { handle } = await model(one.spec);
          let sum = 0;
          for (const question of asked) {
            if (token.stop || !running.peek()) return;
            sum += await right(handle, question);
          }
          found[i] = { ...found[i]!, points: [...found[i]!.points, [size, (100 * sum) / asked.length]] };
          series.value = found.slice();
        }
      }
    } catch (error) {
      if (!(error instanceof Gone)) throw error;
    } finally {
      running.value = false;
    }
  };
  return (
    <section style={{ marginTop: '2rem' }} aria-label={heading}>
      <h2>{heading}</h2>
      <p>{about}</p>
      <button type="button" class="primary" disabled={running.value} onClick={() => void run()}>{running.value ? words[1] : words[0]}</button>
      {series.value.length > 0 && (
        <div style={{ maxWidth: '760px', marginTop: '1rem' }}>
          <Chart markers height={300} width={720} series={series.value} {...chart} />
        </div>
      )}
    </section>
  );
}
