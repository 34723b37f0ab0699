//! What a kernel is compiled for, and where numbers of a head lie.

use crate::kernels::cube::buffer::ALIGNED;
use crate::miras::Bias;

/// Units of a cube.
pub(super) const UNITS: usize = 256;

/// Rows that a unit takes of a column at a time.
pub(super) const ROWS: usize = 4;

/// Products of a chunk, each between two barriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Keys through `W`
    Up,
    /// Gradients of what a layer makes through its `W` to what the one before makes
    Down,
    /// What a layer sees of queries and keys, weighed by the plan
    Score,
    /// What it makes of queries
    Answer,
    /// The matrices after the chunk
    Write,
}

/// A product `Σ_k x[r, k] w[k, j]`: where numbers lie in a head's scratch, and how far apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub(super) x: usize,
    pub(super) by_row: usize,
    pub(super) by_k: usize,
    /// Of `W` where there is none
    pub(super) w: Option<usize>,
    pub(super) w_by_k: usize,
    pub(super) by_column: usize,
    /// Where what comes of it begins
    pub(super) to: usize,
}

/// The inner loss without its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Loss {
    Dot,
    Square,
    Power,
    SignedPower,
    Shift,
    Less,
    Huber,
    Coordinate,
    Mixture,
}

/// The numbers of a loss: those of `tanh(ν r)` and of a power, and where residuals are clipped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) nu: f64,
    pub(super) exponent: f64,
    pub(super) clip: f64,
}

/// [`Bias`] for the kernel.
pub(super) fn loss_of(bias: Bias) -> (Loss, Numbers) {
    let of = |loss, nu| (loss, Numbers { nu, exponent: 0.0, clip: 0.0 });
    match bias {
        Bias::DotProduct => of(Loss::Dot, 0.0),
        Bias::L2 => of(Loss::Square, 0.0),
        Bias::Lp { p, nu: None, clip } => (Loss::Power, Numbers { nu: 0.0, exponent: 0.5 * (p - 2.0), clip }),
        Bias::Lp { p, nu: Some(nu), clip } => {
            (Loss::SignedPower, Numbers { nu, exponent: 0.5 * (p - 1.0), clip })
        }
        Bias::ValueShift => of(Loss::Shift, 0.0),
        Bias::ValueLess { nu } => of(Loss::Less, nu),
        Bias::HuberNorm => of(Loss::Huber, 0.0),
        Bias::HuberCoordinate => of(Loss::Coordinate, 0.0),
        Bias::HuberMixture { nu } => of(Loss::Mixture, nu),
    }
}

/// The memory's function, what is known of its tokens, and where answers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) width: usize,
    pub(super) hidden: usize,
    pub(super) depth: usize,
    pub(super) offset: bool,
    /// Whether gelu is its tanh approximation
    pub(super) tanh: bool,
    pub(super) norm: bool,
    pub(super) raw: bool,
    pub(super) loss: Loss,
    pub(super) momentum: bool,
    /// Whether some tokens are padding
    pub(super) ragged: bool,
    /// Whether plans are those of mini-batches, whose `W` is `A`
    pub(super) batched: bool,
    /// Most tokens of a chunk
    pub(super) tokens: usize,
    /// Whether answers have a buffer of their own
    pub(super) apart: bool,
    /// Whether weights are copied from another buffer
    pub(super) carried: bool,
    /// Slots that have been filled before; the others start from 0
    pub(super) filled: usize,
}

impl Rule {
    /// Inputs of a layer.
    pub(super) fn inputs(&self, l: usize) -> usize {
        (if l == 0 { self.width } else { self.hidden }) + usize::from(self.offset)
    }

    /// Outputs of a layer.
    pub(super) fn outputs(&self, l: usize) -> usize {
        if l + 1 == self.depth { self.width } else { self.hidden }
    }

    /// Numbers of a layer's matrix.
    pub(super) fn size(&self, l: usize) -> usize {
        self.inputs(l) * self.outputs(l)
    }

    /// Where `W` is among the slots; `A` is the first.
    pub(super) fn anchor(&self) -> usize {
        usize::from(!self.batched)
    }

    /// Where `S` is, if there is one.
    pub(super) fn last(&self) -> usize {
        self.anchor() + 1
    }

    pub(super) fn slots(&self) -> usize {
        self.last() + usize::from(self.momentum)
    }

    /// Slots that tokens are read from.
    pub(super) fn carriers(&self) -> usize {
        1 + usize::from(self.momentum)
    }

    /// Where gates say whether a token is real.
    pub(super) fn valid(&self) -> usize {
        2 + usize::from(self.momentum && !self.batched)
    }

    /// Where they have the loss's threshold.
    pub(super) fn threshold(&self) -> usize {
        self.valid() + usize::from(self.ragged)
    }

    /// Whether the loss has one.
    pub(super) fn thresholded(&self) -> bool {
        matches!(self.loss, Loss::Shift | Loss::Huber | Loss::Coordinate | Loss::Mixture)
    }

    /// Numbers between the matrices of a layer and those of the next one, of all heads.
    pub(super) fn part(&self, l: usize, heads: usize) -> usize {
        (heads * self.size(l)).next_multiple_of(ALIGNED)
    }

    /// Numbers of all matrices.
    pub(super) fn weights(&self, heads: usize) -> usize {
        self.slots() * (0..self.depth).map(|l| self.part(l, heads)).sum::<usize>()
    }

    /// A row of the plan: a column for every gradient, one for `A` and one for `S`.
    pub(super) fn wide(&self) -> usize {
        self.tokens + 1 + usize::from(self.momentum)
    }

    /// Where in a head's scratch lies what layer `l` sees of keys: `[tokens, inputs]`.
    pub(super) fn x(&self, l: usize) -> usize {
        let layer = |l| self.tokens * (self.inputs(l) + 2 * self.outputs(l));
        (0..l).map(layer).sum()
    }

    /// Its `d`, `[tokens, outputs]`.
    pub(super) fn d(&self, l: usize) -> usize {
        self.x(l) + self.tokens * self.inputs(l)
    }

    /// Slopes of what it makes; of the last layer that itself, and later the answers.
    pub(super) fn slope(&self, l: usize) -> usize {
        self.d(l) + self.tokens * self.outputs(l)
    }

    /// What it sees of queries: two layers' lie beside each other.
    pub(super) fn query(&self, l: usize) -> usize {
        let widest = self.width.max(self.hidden) + usize::from(self.offset);
        self.x(self.depth) + l % 2 * self.tokens * widest
    }

    /// `-G` times the scores, `[tokens, tokens]`.
    pub(super) fn scores(&self) -> usize {
        self.query(0) + 2 * (self.query(1) - self.query(0))
    }

    pub(super) fn plan(&self) -> usize {
        self.scores() + self.tokens * self.tokens
    }

    /// Numbers of a head's scratch.
    pub(super) fn scratch(&self) -> usize {
        self.plan() + self.wide() * self.wide()
    }

    /// Products of a chunk.
    pub(super) fn steps(&self) -> usize {
        5 * self.depth - 1
    }

    /// Product `i` of a chunk, and its layer.
    pub(super) fn step(&self, i: usize) -> (Step, usize) {
        let [down, score, write] = [self.depth, 2 * self.depth - 1, 4 * self.depth - 1];
        match i {
            _ if i < down => (Step::Up, i),
            _ if i < score => (Step::Down, score - i),
            _ if i < write && (i - score).is_multiple_of(2) => (Step::Score, (i - score) / 2),
            _ if i < write => (Step::Answer, (i - score) / 2),
            _ => (Step::Write, i - write),
        }
    }

    /// The product of a step.
    pub(super) fn product(&self, step: Step, l: usize) -> Product {
        let (inputs, outputs, last) = (self.inputs(l), self.outputs(l), l + 1 == self.depth);
        let (x, by_row, by_k) = match step {
            Step::Up => (self.x(l), inputs, 1),
            Step::Down => (self.d(l), outputs, 1),
            Step::Score => (self.query(l), inputs, 1),
            Step::Answer => (self.scores(), self.tokens, 1),
            Step::Write => (self.x(l), 1, inputs),
        };
        let (w, w_by_k, by_column) = match step {
            Step::Up => (None, outputs, 1),
            Step::Down => (None, 1, outputs),
            Step::Score => (Some(self.x(l)), 1, inputs),
            Step::Answer | Step::Write => (Some(self.d(l)), outputs, 1),
        };
        let to = match step {
            Step::Up | Step::Answer if last => self.slope(l),
            Step::Up => self.x(l + 1),
            Step::Answer => self.query(l + 1),
            Step::Down => self.d(l - 1),
            Step::Score => self.scores(),
            Step::Write => 0,
        };
        Product { x, by_row, by_k, w, w_by_k, by_column, to }
    }
}
