import { expect, test } from 'vitest';
// The Rust side reads the same file: benches/tests/cli.rs.
import kept from '../../../benches/tests/data/browser.jsonl?raw';
// @ts-expect-error plain JavaScript, as node runs it
import { header, line, record } from '../e2e/records.mjs';

test('the lines of the scaling suite', () => {
  const machine = { cpu: 'A processor', threads: 2, system: 'linux x86_64', device: 'browser-cpu,browser-webgpu' };
  const first = header({ version: '0.1.0', command: 'cargo xtask web bench', started: new Date('2026-01-31T12:00:59Z'), machine, notes: ['user agent: a browser'] });
  const rows = [64, 128, 256].flatMap((length) =>
    ['cpu', 'webgpu'].flatMap((backend) =>
      ['prefill', 'decode', 'train'].map((mode) => ({
        arch: 'linear_attention', length, backend, mode,
        seconds: 0.002, first: 0.25, runs: [0.001, 0.002, length / 1024], stateBytes: 16896, flops: 1000 * length, bytes: 2000 * length, params: 66048,
      })),
    ),
  );
  const failed = { arch: 'lstm', length: 64, backend: 'webgpu', mode: 'train', error: 'the device was lost' };
  expect([first, ...rows.map((row) => record(row, 0)), record(failed, 1)].map(line).join('')).toBe(kept);
});
