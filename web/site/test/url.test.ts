import { expect, test } from 'vitest';
import { format, intParam, listParam, numberParam, parse } from '../src/lib/url';

test('an address comes back as it was', () => {
  const at = { page: 'remember', params: { text: 'a&b=c #é\n?', token: '7', archs: 'lstm,moh' } } as const;
  expect(parse(format(at))).toEqual(at);
});

test('the order of parameters does not matter', () => {
  expect(format({ page: 'learn', params: { b: '1', a: '2' } })).toBe(format({ page: 'learn', params: { a: '2', b: '1' } }));
});

test('nonsense is the first page', () => {
  expect(parse('')).toEqual({ page: 'remember', params: {} });
  expect(parse('#/nowhere?x=1').page).toBe('remember');
});

test('values are set, clamped and left out when they are the default', () => {
  const n = intParam('n', 3, 0, 10);
  const lr = numberParam('lr', 0.1, 0, 1);
  const list = listParam('list', ['a']);
  expect(n.value).toBe(3);
  n.set(8);
  expect(n.value).toBe(8);
  n.set(99);
  expect(n.value).toBe(10);
  n.set(3);
  lr.set(0.25);
  expect(lr.value).toBe(0.25);
  list.set([]);
  expect(list.value).toEqual([]);
  list.set(['x', 'y']);
  expect(list.value).toEqual(['x', 'y']);
});
