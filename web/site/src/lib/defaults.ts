// The first picture: what `first.json` was recorded with (web/README.md has the command).
export const TEXT = 'the cat sat on the mat. the cat';
export const ARCHS = ['attention', 'linear_attention', 'mamba2', 'lstm', 'moh', 'yaad'] as const;
export const SEED = 0;
/** As many as there are colours. */
export const MAX_ARCHS = 8;

/** Short texts in which something can be seen. */
export const TEXTS = [
  { name: 'A cat', text: TEXT },
  { name: 'A pattern', text: 'abcabcabcabcabcabcabc' },
  { name: 'A needle', text: 'x.......................x' },
  { name: 'Code', text: 'fn add(a: u32, b: u32) -> u32 { a + b }' },
  {
    name: '256 letters',
    text: 'It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so well fixed in the ',
  },
] as const;
