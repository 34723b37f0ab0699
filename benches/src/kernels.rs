//! The kernels without a layer around them: softmax attention, bare recurrences and the short convolution, 8 heads of 64 or 512
//! channels. Each runs as a kernel, as tensor operations (what `SEQZOO_KERNELS=0` leaves) and, where it is a
//! recurrence or attention, token by token, which is the reference.
//!
//! | kernel | who |
//! | --- | --- |
//! | `attention` | softmax attention, causal |
//! | `scalar` | a decay per head: lightning, RetNet, simple GLA, Mamba-2 |
//! | `diagonal` | a decay per channel: GLA, RWKV-6, HGRN2 |
//! | `delta` | a decay per head and the delta rule: DeltaNet, gated DeltaNet |
//! | `delta_diagonal` | a decay per channel and the delta rule: KDA, RWKV-7 |
//! | `scan` | one state per channel: RG-LRU, HGRN |
//! | `conv` | the causal convolution of width 4 with SiLU |

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use seqzoo_layers::attention::attend;
use seqzoo_layers::nn::CausalConvConfig;
use seqzoo_layers::system::{Cost, Form, System, Transition, engine};
use seqzoo_layers::{Init, Result, kernels};

use crate::core::Way;

/// What their names as subjects begin with: `kernel/scan`.
pub const KERNEL: &str = "kernel/";

/// Each way to run one, by what stands before `kernel/` in the subject.
pub const WAYS: [(&str, Way); 3] = [
    ("", Way { form: Form::Auto, kernels: true }),
    ("tensors/", Way { form: Form::Auto, kernels: false }),
    ("steps/", Way { form: Form::Recurrent, kernels: false }),
];

const HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const CHANNELS: usize = HEADS * HEAD_DIM;
/// Width of the convolution.
const TAPS: usize = 4;
/// Tokens that a block of a recurrence takes on paper.
const BLOCK: f64 = 32.0;

/// One of them; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Causal softmax attention.
    Attention,
    /// `H_t = a_t H_{t-1} + k_t v_tᵀ`.
    Scalar,
    /// `H_t = diag(a_t) H_{t-1} + k_t v_tᵀ`.
    Diagonal,
    /// `H_t = (d_t + b_t a_tᵀ) H_{t-1} + k_t v_tᵀ`.
    Delta,
    /// `H_t = (diag(d_t) + b_t a_tᵀ) H_{t-1} + k_t v_tᵀ`.
    DeltaDiagonal,
    /// `h_t = a_t ∘ h_{t-1} + u_t`.
    Scan,
    /// `silu(Σ_j w_j x_{t-3+j})`.
    Conv,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Attention,
        Self::Scalar,
        Self::Diagonal,
        Self::Delta,
        Self::DeltaDiagonal,
        Self::Scan,
        Self::Conv,
    ];

    /// As in its subject.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Scalar => "scalar",
            Self::Diagonal => "diagonal",
            Self::Delta => "delta",
            Self::DeltaDiagonal => "delta_diagonal",
            Self::Scan => "scan",
            Self::Conv => "conv",
        }
    }

    /// Which kernel, and how, a subject of ours means.
    pub fn of(subject: &str) -> Option<(Self, Way)> {
        WAYS.into_iter().find_map(|(before, way)| {
            let name = subject.strip_prefix(before)?.strip_prefix(KERNEL)?;
            Some((Self::ALL.into_iter().find(|kernel| kernel.name() == name)?, way))
        })
    }

    /// Numbers of each input per token and head; of a weight, in all.
    fn widths(self) -> Vec<usize> {
        let n = HEAD_DIM;
        match self {
            Self::Attention => vec![n, n, n],
            Self::Scalar => vec![n, n, n, 1],
            Self::Diagonal => vec![n, n, n, n],
            Self::Delta => vec![n, n, n, 1, n, n],
            Self::DeltaDiagonal => vec![n, n, n, n, n, n],
            Self::Scan => vec![n, n],
            Self::Conv => vec![n],
        }
    }

    /// What it reads: `q, k, v`, the logarithms of decays, `a, b`; the logarithms and `u`; `x` and the weight.
    pub fn inputs(self, batch: usize, time: usize, device: &Device) -> Vec<Tensor<4>> {
        let tensor = |dims: [usize; 4], shift: usize, scale: f32| {
            let numbers: Vec<f32> = (0..dims.iter().product())
                .map(|i| (i as f32 * 0.7391 + shift as f32).sin() * scale)
                .collect();
            Tensor::<4>::from_data(TensorData::new(numbers, dims), device)
        };
        if self == Self::Conv {
            return vec![tensor([batch, 1, time, CHANNELS], 0, 1.0), tensor([1, 1, CHANNELS, TAPS], 1, 0.5)];
        }
        let scale = if self == Self::Attention { 1.0 } else { 0.1 };
        let mut inputs: Vec<_> = (self.widths().into_iter().enumerate())
            .map(|(shift, width)| tensor([batch, HEADS, time, width], shift, scale))
            .collect();
        let log = match self {
            Self::Attention | Self::Conv => None,
            Self::Scan => Some(0),
            _ => Some(3),
        };
        if let Some(log) = log {
            inputs[log] = inputs[log].clone().abs().neg();
        }
        inputs
    }

    /// The outputs, from a state of zeros.
    ///
    /// # Errors
    /// Never for what [`Kernel::inputs`] gives.
    pub fn run(self, inputs: &[Tensor<4>], way: Way) -> Result<Tensor<4>> {
        kernels::enable(way.kernels);
        let device = inputs[0].device().inner();
        let batch = inputs[0].dims()[0];
        let input = |i: usize| inputs[i].clone();
        let transition = match self {
            Self::Attention => return attend([input(0), input(1), input(2)], None, way.form),
            Self::Conv => {
                let mut layer = CausalConvConfig::default().init(CHANNELS, &mut Init::blank(&device));
                layer.weight = Param::initialized(ParamId::new(), input(1).reshape([CHANNELS, TAPS]));
                let (y, _) = layer.forward(input(0).squeeze_dim(1), layer.initial_state(batch), None);
                return Ok(y.unsqueeze_dim(1));
            }
            Self::Scan => {
                let state = Tensor::zeros([batch, HEADS, HEAD_DIM, 1], &device);
                return Ok(engine::run(System::direct(input(0), input(1)), state, way.form)?.0);
            }
            Self::Scalar => Transition::Scalar { log_a: input(3).squeeze_dim(3) },
            Self::Diagonal => Transition::Diagonal { log_a: input(3) },
            Self::Delta | Self::DeltaDiagonal => {
                Transition::Householder { log_d: input(3), a: input(4), b: input(5) }
            }
        };
        let memory = Tensor::zeros([batch, HEADS, HEAD_DIM, HEAD_DIM], &device);
        Ok(engine::run(System::outer(transition, input(0), input(1), input(2)), memory, way.form)?.0)
    }

    /// The gradients of all inputs for a gradient of ones of the outputs, as a tensor: what else a loss costs is not the
    /// kernel's.
    ///
    /// # Errors
    /// Never for what [`Kernel::inputs`] gives.
    pub fn gradients(self, inputs: &[Tensor<4>], way: Way) -> Result<Vec<Tensor<4>>> {
        let leaves: Vec<_> = inputs.iter().map(|x| x.clone().autodiff().require_grad()).collect();
        let grads = self.run(&leaves, way)?.backward();
        Ok(leaves.iter().filter_map(|leaf| leaf.grad(&grads)).collect())
    }

    /// The floor: operations of the products, in blocks of 32 tokens where it is a recurrence of matrices, and bytes of
    /// inputs, outputs and gradients. Gradients recompute the scores or the memory.
    pub fn cost(self, batch: usize, time: usize, backward: bool) -> Cost {
        let (h, n, c) = (HEADS as f64, HEAD_DIM as f64, BLOCK);
        let (forward, more) = match self {
            Self::Attention => (2.0 * time as f64 * n * h, 5.0 * time as f64 * n * h),
            Self::Scalar | Self::Diagonal => (2.0 * h * n * (2.0 * n + c), 2.0 * h * n * (6.0 * n + 2.5 * c)),
            Self::Delta | Self::DeltaDiagonal => {
                (2.0 * h * n * (4.0 * n + 4.0 * c), 2.0 * h * n * (13.0 * n + 12.0 * c))
            }
            Self::Scan => (2.0 * h * n, 4.0 * h * n),
            Self::Conv => (2.0 * TAPS as f64 * h * n, 4.0 * TAPS as f64 * h * n),
        };
        let (inputs, outputs) = (h * self.widths().iter().sum::<usize>() as f64, h * n);
        let (mut flops, mut numbers) = (forward, inputs + outputs);
        if backward {
            flops += more;
            numbers += inputs + outputs + inputs;
        }
        let tokens = (batch * time) as f64;
        Cost { flops: flops * tokens, bytes: 4.0 * numbers * tokens, ..Cost::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_gives_the_same_outputs_and_gradients() -> Result<()> {
        let device = seqzoo_layers::device::open("flex")?;
        for kernel in Kernel::ALL {
            let inputs = kernel.inputs(2, 70, &device);
            let norms = |way: Way| -> Result<Vec<f32>> {
                let all = std::iter::once(kernel.run(&inputs, way)?).chain(kernel.gradients(&inputs, way)?);
                Ok(all.map(|x| x.abs().sum().into_scalar()).collect())
            };
            let expected = norms(WAYS[2].1)?;
            assert_eq!(expected.len(), 1 + inputs.len(), "{kernel:?}");
            for (name, way) in &WAYS[..2] {
                for (found, expected) in norms(*way)?.iter().zip(&expected) {
                    assert!(
                        (found / expected - 1.0).abs() < 1e-4,
                        "{name}{kernel:?}: {found} is not {expected}"
                    );
                }
            }
        }
        kernels::enable(true);
        Ok(())
    }

    #[test]
    fn subjects_name_a_kernel_and_a_way() {
        assert_eq!(Kernel::of("kernel/scan"), Some((Kernel::Scan, WAYS[0].1)));
        assert_eq!(Kernel::of("steps/kernel/delta"), Some((Kernel::Delta, WAYS[2].1)));
        for other in ["scan", "kernel/abacus", "torch/kernel/scan", "lstm"] {
            assert_eq!(Kernel::of(other), None, "{other}");
        }
    }
}
