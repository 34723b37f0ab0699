// Small seeded random numbers (mulberry32), for choices that an address must restore.

export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** `count` different items of a list. */
export function draw<T>(items: readonly T[], count: number, next: () => number): T[] {
  const pool = items.slice();
  const taken: T[] = [];
  while (taken.length < count && pool.length > 0) taken.push(pool.splice(Math.floor(next() * pool.length), 1)[0]!);
  return taken;
}

/** Pairs of different keys with values: the words `k…` and `v…` of a recall model. */
export function pairsOf(vocab: readonly string[], count: number, seed: number): [string, string][] {
  const next = random(seed);
  const keys = draw(vocab.filter((w) => /^k\d+$/.test(w)), count, next);
  const values = draw(vocab.filter((w) => /^v\d+$/.test(w)), count, next);
  return keys.slice(0, values.length).map((k, i) => [k, values[i]!]);
}
