// What the page measured, as lines of the scaling suite: benches/src/record.rs has the layout.

/** Sizes of the layers behind a name: the defaults of `bench` in types.ts. */
export const SIZES = { d_model: 128, state: 4096 };

/** The first line. `started` is a Date, `machine` as in a native run, so that both can stand in one report. */
export const header = ({ version, command, started, machine, notes }) => ({
  line: 'header',
  schema: 1,
  version,
  command,
  started: `${started.toISOString().slice(0, 16).replace('T', ' ')} UTC`,
  machine,
  threads: null,
  sizes: SIZES,
  notes,
});

/** One row of the Speed page. What cannot be seen from inside a page is 0. */
export const record = (row, round) => ({
  line: 'record',
  point: { subject: row.arch, task: row.mode, form: 'auto', device: `browser-${row.backend}`, batch: 1, time: row.length },
  round,
  outcome:
    row.error !== undefined
      ? { kind: 'failed', reason: row.error }
      : {
          kind: 'done',
          first_seconds: row.first,
          seconds: row.runs,
          peak_bytes: 0,
          counted: { flops: row.flops, bytes: row.bytes, params: row.params, state_bytes: row.stateBytes, allocated_bytes: 0 },
        },
});

export const line = (value) => `${JSON.stringify(value)}\n`;
