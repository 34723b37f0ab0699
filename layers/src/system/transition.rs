//! A linear-state layer realised on one input: `(Λ, B, C, D)` with the structure of `Λ` kept.

use burn::tensor::Tensor;

use super::Lengths;

/// Structure of the state transition `Λ_t`.
///
/// Shapes: batch `b`, heads `h`, time `t`, state (key) size `n`. Decays are logarithms, `≤ 0`.
#[derive(Clone, Debug)]
pub enum Transition {
    /// `Λ = I`: nothing is forgotten.
    Identity,
    /// `Λ_t = exp(log_a_t) I`.
    Scalar {
        /// `[b, h, t]`
        log_a: Tensor<3>,
    },
    /// `Λ_t = diag(exp(log_a_t))`.
    Diagonal {
        /// `[b, h, t, n]`
        log_a: Tensor<4>,
    },
    /// `Λ_t = diag(exp(log_d_t)) + b_t a_tᵀ`: diagonal plus rank one, the delta family.
    Householder {
        /// `[b, h, t, 1]` (one decay per head) or `[b, h, t, n]`
        log_d: Tensor<4>,
        /// `[b, h, t, n]`, what is read before writing
        a: Tensor<4>,
        /// `[b, h, t, n]`, where the read is added back
        b: Tensor<4>,
    },
    /// Any matrix; recurrent form only.
    Dense {
        /// `[b, h, t, n, n]`
        lambda: Tensor<5>,
    },
}

/// How tokens enter and leave the state.
#[derive(Clone, Debug)]
pub enum Io {
    /// `H_t = Λ_t H_{t-1} + k_t v_tᵀ`, `y_t = H_tᵀ q_t`, with `H: [n, p]`.
    Outer {
        /// `C`: `[b, h, t, n]`
        q: Tensor<4>,
        /// `B`: `[b, h, t, n]`
        k: Tensor<4>,
        /// `u`: `[b, h, t, p]`
        v: Tensor<4>,
    },
    /// `h_t = Λ_t ∘ h_{t-1} + u_t`, `y_t = c_t ∘ h_t`, with `h: [n]`: one state per channel.
    Direct {
        /// `B u`: `[b, h, t, n]`
        u: Tensor<4>,
        /// `C`: `[b, h, t, n]`, `None` for ones
        c: Option<Tensor<4>>,
    },
}

/// Whether a token reads the state before or after it writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Read {
    /// `y_t = C_t h_t`
    #[default]
    After,
    /// `y_t = C_t h_{t-1}`: RWKV-4 to 6, with the token's own part in [`System::skip`].
    Before,
}

/// `(Λ, B, C, D)` on one input.
#[derive(Clone, Debug)]
pub struct System {
    /// `Λ`
    pub transition: Transition,
    /// `B`, `C` and the input they act on
    pub io: Io,
    /// `D`, broadcastable against `v` (or `u`) at each token's last step: `y_t += d v_t`
    pub skip: Option<Tensor<4>>,
    /// Multiplies what `C` reads; 1 but where a kernel may do so: see [`System::with_gain`]
    pub gain: f64,
    /// The transition as a kernel reads it, where one has written that too: `[b, h, t, width + 2 n]`, the logarithms of
    /// decays, `a` and `b` beside each other
    #[cfg_attr(
        not(feature = "cube"),
        allow(dead_code, reason = "only kernels for graphics devices read it")
    )]
    pub(crate) packed: Option<Tensor<4>>,
    /// When a token reads
    pub read: Read,
    /// Steps `m` of the recurrence per token, 1 but for DeltaProduct. `Λ`, `B` and `u` have `t m` entries along
    /// time, `C` has `t`: a token reads after its last step.
    pub steps: usize,
}

impl System {
    /// `H_t = Λ_t H_{t-1} + k_t v_tᵀ`, `y_t = H_tᵀ q_t`.
    pub fn outer(transition: Transition, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Self {
        Self {
            transition,
            io: Io::Outer { q, k, v },
            skip: None,
            gain: 1.0,
            packed: None,
            read: Read::After,
            steps: 1,
        }
    }

    /// `h_t = Λ_t ∘ h_{t-1} + u_t`, `y_t = h_t`.
    pub fn direct(log_a: Tensor<4>, u: Tensor<4>) -> Self {
        let (transition, io) = (Transition::Diagonal { log_a }, Io::Direct { u, c: None });
        Self { transition, io, skip: None, gain: 1.0, packed: None, read: Read::After, steps: 1 }
    }

    /// Adds the feed-through `D`.
    pub fn with_skip(mut self, d: Tensor<4>) -> Self {
        self.skip = Some(d);
        self
    }

    /// Multiplies what queries find, as `q gain` would.
    pub fn with_gain(mut self, gain: f64) -> Self {
        self.gain *= gain;
        self
    }

    /// The same with the gain in its queries, or in what reads a state per channel.
    pub fn settled(self) -> Self {
        if self.gain == 1.0 {
            return self;
        }
        let io = match self.io {
            Io::Outer { q, k, v } => Io::Outer { q: q.mul_scalar(self.gain), k, v },
            Io::Direct { u, c } => {
                let c = c.unwrap_or_else(|| u.ones_like()).mul_scalar(self.gain);
                Io::Direct { u, c: Some(c) }
            }
        };
        Self { io, gain: 1.0, ..self }
    }

    /// Reads before writing.
    pub fn read_before(mut self) -> Self {
        self.read = Read::Before;
        self
    }

    /// Takes `steps` steps per token.
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// `[b, h, t]` in tokens and the state size `n`.
    pub fn dims(&self) -> ([usize; 3], usize) {
        let [b, h, t, n] = match &self.io {
            Io::Outer { q, .. } => q.dims(),
            Io::Direct { u, .. } => u.dims(),
        };
        ([b, h, t], n)
    }

    /// Makes padded tokens leave the state untouched: their input is 0 and their decay 1.
    pub fn gate_padding(self, lengths: &Lengths) -> Self {
        let (dims, _) = self.dims();
        let like = match &self.io {
            Io::Outer { k, .. } => k.clone(),
            Io::Direct { u, .. } => u.clone(),
        };
        let lengths = Lengths(lengths.0.iter().map(|n| n * self.steps).collect());
        let valid3 = lengths.valid(dims[2] * self.steps, &like.device(), like.dtype()); // [b, t m]
        let valid3 = valid3.unsqueeze_dim::<3>(1);
        let valid = valid3.clone().unsqueeze_dim::<4>(3);
        let transition = match self.transition {
            Transition::Identity => Transition::Identity,
            Transition::Scalar { log_a } => Transition::Scalar { log_a: log_a * valid3 },
            Transition::Diagonal { log_a } => Transition::Diagonal { log_a: log_a * valid.clone() },
            Transition::Householder { log_d, a, b } => Transition::Householder {
                log_d: log_d * valid.clone(),
                a: a * valid.clone(),
                b: b * valid.clone(),
            },
            Transition::Dense { lambda } => {
                let n = lambda.dims()[4];
                let eye = Tensor::<2>::eye(n, &lambda.device()).cast(lambda.dtype());
                let mask = valid.clone().unsqueeze_dim::<5>(4);
                let eye = eye.reshape([1, 1, 1, n, n]);
                Transition::Dense { lambda: lambda * mask.clone() + eye * (mask.neg() + 1.0) }
            }
        };
        let io = match self.io {
            Io::Outer { q, k, v } => Io::Outer { q, k: k * valid.clone(), v: v * valid },
            Io::Direct { u, c } => Io::Direct { u: u * valid, c },
        };
        Self { transition, io, packed: None, ..self }
    }
}
