//! RWKV-4's decayed softmax average as a scan in log space.
//!
//! The authors carry a numerator `a`, a denominator `b` and a running maximum `p` that scales both. The same
//! numbers as an average `m = a / b` and the logarithm of its weight, `s = log b + p`, need no scale of their own:
//! two averages join at the larger of their two logarithms.

use burn::tensor::Tensor;

use crate::system::scan::{NEGATIVE, pad, prefix, unbind};

/// Tokens a block of [`averages`] steps through, below the first level.
pub(super) const BLOCK: usize = 8;

/// Averages `m` and the logarithms `s` of their weights, `[b, t, n]` each.
#[derive(Clone)]
pub(crate) struct Averages {
    pub(crate) log: Tensor<3>,
    pub(crate) mean: Tensor<3>,
}

impl Averages {
    /// Of nothing: a weight that vanishes beside any other.
    pub(crate) fn none(shape: [usize; 3], like: &Tensor<3>) -> Self {
        let options = (&like.device().inner(), like.dtype());
        Self { log: Tensor::full(shape, NEGATIVE, options), mean: Tensor::zeros(shape, options) }
    }

    /// Both together.
    pub(crate) fn join(self, other: Self) -> Self {
        // Where both meet is arbitrary, so it needs no gradient.
        let top = self.log.clone().detach().max_pair(other.log.clone().detach());
        let [a, b] = [self.log, other.log].map(|log| (log - top.clone()).exp());
        let sum = a.clone() + b.clone();
        Self { mean: (a * self.mean + b * other.mean) / sum.clone(), log: top + sum.log() }
    }

    /// With all weights multiplied by `e^fade`.
    fn faded(self, fade: Tensor<3>) -> Self {
        Self { log: self.log + fade, mean: self.mean }
    }

    fn map(self, f: impl Fn(Tensor<3>) -> Tensor<3>) -> Self {
        Self { log: f(self.log), mean: f(self.mean) }
    }

    /// One after the other along time.
    pub(crate) fn cat(parts: Vec<Self>) -> Self {
        let (logs, means) = parts.into_iter().map(|part| (part.log, part.mean)).unzip();
        Self { log: Tensor::cat(logs, 1), mean: Tensor::cat(means, 1) }
    }

    /// `length` of them from `start` along time.
    pub(crate) fn narrow(&self, start: usize, length: usize) -> Self {
        self.clone().map(|x| x.narrow(1, start, length))
    }

    /// The averages before each token: `self` before the first, `after` each of the others.
    pub(crate) fn delayed(self, after: &Self) -> Self {
        match after.log.dims()[1] {
            1 => self,
            t => Self::cat(vec![self, after.narrow(0, t - 1)]),
        }
    }
}

/// After each token, `A_t = e^{fade_t} A_{t-1} + token_t`: `fade`: `[b, t, n]`, tokens `[b, t, n]`, start
/// `[b, 1, n]`. All blocks of `block` tokens step through their tokens together, then the same over the blocks'
/// ends; with `block ≥ t` that is one token after the other.
pub(crate) fn averages(fade: Tensor<3>, tokens: Averages, start: Averages, block: usize) -> Averages {
    let [b, t, n] = fade.dims();
    if t <= block {
        return one_by_one(fade, tokens, start);
    }
    let blocks = t.div_ceil(block);
    let whole = blocks * block;
    let split = |x: Tensor<3>| x.reshape([b * blocks, block, n]);
    let fade = split(pad(fade, 1, whole));
    let tokens = match whole - t {
        0 => tokens,
        rest => Averages::cat(vec![tokens.clone(), Averages::none([b, rest, n], &tokens.log)]),
    };
    let none = Averages::none([b * blocks, 1, n], &tokens.log);
    let local = one_by_one(fade.clone(), tokens.map(split), none);
    let sums = prefix(fade);
    let end = |x: Tensor<3>| x.narrow(1, block - 1, 1).reshape([b, blocks, n]);
    let after = averages(end(sums.clone()), local.clone().map(end), start.clone(), BLOCK);
    let before = start.delayed(&after).map(|x| x.reshape([b * blocks, 1, n]));
    before.faded(sums).join(local).map(|x| x.reshape([b, whole, n]).narrow(1, 0, t))
}

fn one_by_one(fade: Tensor<3>, tokens: Averages, mut now: Averages) -> Averages {
    let tokens = unbind(tokens.log, 1).into_iter().zip(unbind(tokens.mean, 1));
    let mut all = Vec::new();
    for (fade, (log, mean)) in unbind(fade, 1).into_iter().zip(tokens) {
        now = now.faded(fade).join(Averages { log, mean });
        all.push(now.clone());
    }
    Averages::cat(all)
}
