// How architectures are called in a few words.

const NAMES: Record<string, string> = {
  abc: 'ABC', comba: 'Comba', deltanet: 'DeltaNet', deltaproduct: 'DeltaProduct', dplr: 'Diagonal plus low rank',
  flow: 'Flow-Attention', gated_deltanet: 'Gated DeltaNet', gla: 'Gated linear attention', gsa: 'Gated slot attention',
  hgrn: 'HGRN', hgrn2: 'HGRN2', kda: 'Kimi delta attention', lightning: 'Lightning attention', longhorn: 'Longhorn',
  linear_attention: 'Linear attention', log_linear_attention: 'Log-linear attention', lstm: 'LSTM', mamba2: 'Mamba-2',
  memora: 'Memora', mesa_net: 'MesaNet', miras: 'Miras', mla: 'Latent attention', moh: 'Mixture of heads',
  momentum_deltanet: 'Momentum DeltaNet', moneta: 'Moneta', path_attention: 'PaTH attention', retnet: 'RetNet',
  rglru: 'RG-LRU', rwkv4: 'RWKV-4', rwkv6: 'RWKV-6', rwkv7: 'RWKV-7', simple_gla: 'Simple GLA', titans: 'Titans',
  titans_neural_memory: 'Titans neural memory', ttt_linear: 'TTT-Linear', ttt_mlp: 'TTT-MLP', yaad: 'Yaad',
  attention: 'Softmax attention', forgetting_attention: 'Forgetting attention', normalized_attention: 'Normalised attention',
};

export function archName(arch: string): string {
  return NAMES[arch] ?? arch.replaceAll('_', ' ').replace(/^./, (c) => c.toUpperCase());
}

/** What kind of memory each of the first six is, in two or three words. */
export const KIND: Record<string, string> = {
  attention: 'attention', linear_attention: 'linear attention', mamba2: 'state space', lstm: 'recurrent cell', rglru: 'recurrent cell',
  moh: 'attention, routed heads', yaad: 'Miras: learns as it reads', moneta: 'Miras: learns as it reads', memora: 'Miras: learns as it reads',
  titans: 'Miras: learns as it reads', gated_deltanet: 'delta rule', deltanet: 'delta rule', gla: 'linear attention with decay',
  retnet: 'linear attention with decay', lightning: 'linear attention with decay', hgrn: 'gated recurrence',
};
