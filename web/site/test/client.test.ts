import { expect, test, vi } from 'vitest';
import { Client, Gone, Stale, type Port } from '../src/engine/client';
import type { Reply, Request } from '../src/engine/protocol';

function setup() {
  const sent: Request[] = [];
  const port: Port = { postMessage: (m) => sent.push(m), terminate: vi.fn(), onmessage: null, onerror: null };
  const events = { loading: vi.fn(), gone: vi.fn() };
  const client = new Client(port, events);
  const reply = (data: Reply) => port.onmessage?.({ data } as MessageEvent<Reply>);
  return { sent, port, events, client, reply };
}

test('one request at a time, in order', async () => {
  const { sent, client, reply } = setup();
  const first = client.call('architectures', []);
  const second = client.call('describe', ['lstm']);
  expect(sent.map((s) => s.op)).toEqual(['architectures']);
  reply({ id: sent[0]!.id, value: [] });
  expect(await first).toEqual([]);
  expect(sent.map((s) => s.op)).toEqual(['architectures', 'describe']);
  reply({ id: sent[1]!.id, error: 'no such thing', fatal: false });
  await expect(second).rejects.toThrow('no such thing');
});

test('what nobody wants any more is not sent; what is urgent goes first', async () => {
  const { sent, client, reply } = setup();
  const first = client.call('architectures', []);
  let wanted = true;
  const stale = client.call('read', [1, 'a'], { wanted: () => wanted });
  const last = client.call('read', [1, 'ab']);
  const urgent = client.call('describe', ['moh'], { urgent: true });
  wanted = false;
  reply({ id: sent[0]!.id, value: [] });
  await first;
  expect(sent.map((s) => s.op)).toEqual(['architectures', 'describe']);
  reply({ id: sent[1]!.id, value: {} });
  await urgent;
  await expect(stale).rejects.toBeInstanceOf(Stale);
  expect(sent.at(-1)!.args).toEqual([1, 'ab']);
  reply({ id: sent[2]!.id, value: {} });
  await last;
});

test('a lost device ends everything that waits', async () => {
  const { client, events, port, reply } = setup();
  const running = client.call('trainSteps', [1, 5]);
  const waiting = client.call('read', [1, 'a']);
  reply({ event: 'lost', reason: 'gone' });
  await expect(running).rejects.toBeInstanceOf(Gone);
  await expect(waiting).rejects.toBeInstanceOf(Gone);
  expect(events.gone).toHaveBeenCalledWith('gone');
  expect(port.terminate).toHaveBeenCalled();
  await expect(client.call('architectures', [])).rejects.toBeInstanceOf(Gone);
});

test('a trap in the module ends the worker, an error does not', async () => {
  const { client, events, reply, sent } = setup();
  const failed = client.call('describe', ['x']);
  reply({ id: sent[0]!.id, error: 'unreachable', fatal: true });
  await expect(failed).rejects.toThrow('unreachable');
  expect(events.gone).toHaveBeenCalledWith('unreachable');
});

test('progress reaches its call', async () => {
  const { client, sent, reply } = setup();
  const rows: unknown[] = [];
  const done = client.call('parity', [[]], { progress: (row: never) => rows.push(row) });
  const row = { arch: 'a', subject: 'a', check: 'c', error: 0, limit: 1, ok: true };
  reply({ id: sent[0]!.id, progress: row });
  reply({ id: sent[0]!.id, value: undefined });
  await done;
  expect(rows).toEqual([row]);
});

test('what cannot be sent is an error of that call alone', async () => {
  const { client, port, sent, reply } = setup();
  const send = port.postMessage;
  port.postMessage = () => {
    throw new Error('could not be cloned');
  };
  await expect(client.call('describe', ['lstm'])).rejects.toThrow('cloned');
  port.postMessage = send;
  const next = client.call('architectures', []);
  reply({ id: sent[0]!.id, value: [] });
  expect(await next).toEqual([]);
});
