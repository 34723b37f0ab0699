// Models small enough that every number of their state can be seen: the library's defaults, with fewer channels
// where those would be thousands.

/** Architectures with `heads` of `head_dim` channels each, whatever the width of the model. */
const BY_HEADS = new Set([
  'deltanet', 'gated_deltanet', 'deltaproduct', 'kda', 'comba', 'dplr', 'momentum_deltanet', 'mesa_net', 'log_linear_attention', 'rwkv6', 'rwkv7',
]);

/** Those whose memory is a network of four times as many hidden units. */
const BY_NETWORK = new Set(['miras', 'yaad', 'moneta', 'memora', 'titans', 'ttt_linear', 'ttt_mlp', 'titans_neural_memory']);

/** For pictures; a configuration of a mixer as JSON, or just its name. */
export function shownConfig(arch: string): string {
  if (BY_HEADS.has(arch)) return JSON.stringify({ arch, heads: 4, head_dim: 8 });
  if (BY_NETWORK.has(arch)) return JSON.stringify({ arch, heads: 2, head_dim: 8 });
  if (arch === 'mamba2') return JSON.stringify({ arch, expand: 1, head_dim: 8, state: 16 });
  return arch;
}

/** For training in the page: room for some pairs, quick steps. */
export function trainedConfig(arch: string): string | Record<string, unknown> {
  return BY_HEADS.has(arch) || BY_NETWORK.has(arch) ? { arch, heads: 2, head_dim: 16 } : arch;
}
