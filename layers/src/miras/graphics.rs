//! Whole calls by the kernel for graphics devices, without gradients.

use burn::tensor::Tensor;

use super::inner::{Clock, Fast, Rule, Tokens};
use super::memory::Memory;
use super::ttt_memory::{TttFast, TttMemory, TttTokens};
use crate::kernels::descent::{self, Call, Learned, Plans};

impl Rule<'_> {
    /// Answers to all tokens, if all rows stand at the same place of their chunks and the kernel can; moves `fast` on.
    pub(super) fn on_graphics(&self, tokens: &Tokens, fast: &mut Fast, clock: &Clock) -> Option<Tensor<4>> {
        let Tokens { q, k, v, delta, gates, valid } = tokens;
        if !descent::on_graphics(k, v) {
            return None;
        }
        let options = self.asked(tokens, clock, clock.chunk()).filter(|x| x.map == descent::Map::Same)?;
        let phase = clock.phase()?;
        let [b, h, t, _] = k.dims();
        let step = &gates[0];
        let threshold = options.bias.has_threshold().then_some(delta);
        let columns =
            [Some(&step.eta), Some(&step.log_alpha), step.log_mu.as_ref(), valid.as_ref(), threshold];
        let columns = columns.into_iter().flatten().map(|x| x.clone().expand([b, h, t, 1]));
        let norm = match self.memory {
            Memory::Mlp(memory) => Some([memory.norm_weight.val(), memory.norm_bias.val()]),
            _ => None,
        };
        // Here outputs come first, and the last layer.
        let turned = |matrices: &[Tensor<4>]| -> Vec<Tensor<4>> {
            matrices.iter().rev().map(|matrix| matrix.clone().swap_dims(2, 3)).collect()
        };
        let call = Call {
            tokens: [q, k, v].map(Clone::clone),
            gates: columns.collect(),
            plans: Plans::Decayed,
            ragged: valid.is_some(),
            norm,
            weights: [&fast.running, &fast.anchor, &fast.momentum].map(|x| turned(x)).concat(),
            phase,
        };
        let Learned { y, running, anchor, momentum } = call.run(&options)?;
        let [running, anchor, momentum] = [running, anchor, momentum].map(|x| turned(&x));
        *fast = Fast { running, anchor, momentum };
        Some(y)
    }
}

impl TttMemory {
    /// `f(q; W_t)` of all tokens, if all rows stand at the same place of their mini-batches and the kernel can; moves
    /// `fast` on.
    pub(super) fn on_graphics(
        &self,
        tokens: &TttTokens,
        fast: &mut TttFast,
        clock: &Clock,
    ) -> Option<Tensor<4>> {
        let TttTokens { q, k, v, eta, scale } = tokens;
        if !descent::on_graphics(k, v) {
            return None;
        }
        let (phase, [b, h, t, _]) = (clock.phase()?, k.dims());
        let valid = clock.valid(t, k);
        let columns = [Some(eta), Some(scale), valid.as_ref()];
        let columns = columns.into_iter().flatten().map(|x| x.clone().expand([b, h, t, 1]));
        let open = !clock.boundary(t).iter().all(|&row| row);
        let options = self.options(fast, clock.chunk(), fast.sum.is_some() || open);
        let call = Call {
            tokens: [q, k, v].map(Clone::clone),
            gates: columns.collect(),
            plans: Plans::Batched,
            ragged: valid.is_some(),
            norm: self.norm_parts(),
            weights: [fast.start.clone(), fast.sum.clone().unwrap_or_default()].concat(),
            phase,
        };
        let learned = call.run(&options)?;
        *fast = TttFast { start: learned.running, sum: open.then_some(learned.momentum) };
        Some(learned.y)
    }
}
