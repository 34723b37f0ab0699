//! Chunks of tokens by the kernel, where there is one.

use burn::tensor::Tensor;

use super::chunk::Decays;
use super::config::ReadAt;
use super::gates::{Axis, Step};
use super::inner::{Clock, Fast, Rule, Tokens};
use super::memory::{Gelu, Memory, NORM_EPS};
use super::retention::{LqMap, Retention};
use crate::kernels::descent::{self, Descent, Learned, Options};

impl Rule<'_> {
    /// What is asked of the kernel for chunks of `size` tokens, if there is one and it can.
    pub(super) fn kernel(&self, tokens: &Tokens, clock: &Clock, size: usize) -> Option<Options> {
        if descent::applies(&tokens.k, &tokens.v) { self.asked(tokens, clock, size) } else { None }
    }

    /// What is asked of a kernel for chunks of `size` tokens, if it can: weights that are multiples of what is
    /// accumulated or distributions, one gate per head for all matrices, one step per token that is read at once.
    pub(super) fn asked(&self, tokens: &Tokens, clock: &Clock, size: usize) -> Option<Options> {
        let bias = self.bias?;
        let Tokens { k, gates, .. } = tokens;
        let width = k.dims()[3];
        let map = kernel_map(self.map.retention)?;
        let covered = self.axes.iter().all(|&axis| axis == Axis::All)
            && gates.len() == 1
            && self.steps == 1
            && self.read == ReadAt::Token
            && if map == descent::Map::Softmax { gates[0].log_mu.is_none() } else { !clock.lag };
        let (hidden, depth, offset, gelu, norm) = match self.memory {
            Memory::Vector(_) => return None,
            Memory::Linear(_) => (width, 1, false, Gelu::Exact, false),
            Memory::Mlp(memory) => {
                let hidden = memory.weights.last().map_or(width, |w| w.dims()[1]);
                (hidden, memory.weights.len(), memory.bias, memory.gelu, true)
            }
        };
        covered.then(|| Options {
            chunk: size,
            lag: false,
            width,
            hidden,
            depth,
            offset,
            gelu,
            norm,
            raw: false,
            eps: NORM_EPS,
            bias,
            map,
            momentum: gates[0].log_mu.is_some(),
            renewed: Vec::new(),
        })
    }

    /// Whole chunks, the first of which starts after `end` tokens of the call; moves `fast` on.
    pub(super) fn by_kernel(
        &self,
        mut options: Options,
        tokens: Tokens,
        fast: &mut Fast,
        clock: &Clock,
        end: usize,
    ) -> Tensor<4> {
        let Tokens { q, k, v, delta, gates, valid } = tokens;
        let ([b, h, t, _], size) = (k.dims(), options.chunk);
        let count = t / size;
        options.lag = size > 1 && clock.lags(end);
        let chunks = (0..count).map(|chunk| end + chunk * size);
        options.renewed = match options.lag {
            true => clock.boundaries(chunks.flat_map(|start| [start + 1, start + size])),
            false => clock.boundaries(chunks.map(|start| start + size)),
        };
        let plan = if options.map == descent::Map::Softmax {
            let by_chunk = |gate: Tensor<4>| gate.expand([b, h, t, 1]).reshape([b, h, count, size]);
            let Step { log_alpha, eta, .. } = &gates[0];
            Tensor::cat(vec![by_chunk(log_alpha.clone().exp()), by_chunk(eta.clone())], 3)
        } else {
            // Chunks are heads here.
            let apart = |x: Tensor<4>| x.expand([b, h, t, 1]).reshape([b, h * count, size, 1]);
            let step = gates[0].each(|gate| apart(gate.clone()));
            let rows = size + options.slots();
            Decays::new(step, valid.map(apart).as_ref()).plan().reshape([b, h, count, rows * rows])
        };
        let norm = match self.memory {
            Memory::Mlp(memory) => Some([memory.norm_weight.val(), memory.norm_bias.val()]),
            _ => None,
        };
        let sizes = (options.map != descent::Map::Same).then(|| {
            match [&self.map.reference[..], &self.map.sums].concat().as_slice() {
                [] => Tensor::ones([b, h, 1, options.depth], (&k.device().inner(), k.dtype())),
                sizes => {
                    let sizes = Tensor::cat(sizes.iter().rev().cloned().collect(), 3);
                    sizes.expand([b, h, 1, options.depth])
                }
            }
        });
        // Here outputs come first, and the last layer.
        let turned = |matrices: &Vec<Tensor<4>>| -> Vec<Tensor<4>> {
            matrices.iter().rev().map(|matrix| matrix.clone().swap_dims(2, 3)).collect()
        };
        let [running, anchor, momentum] = [&fast.running, &fast.anchor, &fast.momentum].map(turned);
        let descent = Descent { q, k, v, threshold: delta, plan, norm, sizes, running, anchor, momentum };
        let Learned { y, running, anchor, momentum } = descent.run(options);
        let [running, anchor, momentum] = [running, anchor, momentum].map(|x| turned(&x));
        *fast = Fast { running, anchor, momentum };
        y
    }
}

/// `Φ` as the kernel has it, if it has it.
fn kernel_map(retention: Retention) -> Option<descent::Map> {
    Some(match retention {
        Retention::None | Retention::L2 => descent::Map::Same,
        Retention::Lq { q, map: LqMap::Literal { floor } } => {
            descent::Map::Normed { q, least: floor, most: f64::INFINITY }
        }
        Retention::Lq { q, map: LqMap::Rescaled { clamp } } => {
            descent::Map::Normed { q, least: 1.0 / clamp, most: clamp }
        }
        Retention::Kl => descent::Map::Softmax,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "fused_tests.rs"]
mod tests;
