//! A decayed linear recurrence without the layer around it, as the lightning benchmarks measure it.

use burn::tensor::{Device, Tensor, TensorData};
use seqzoo_layers::lightning::{SlopeKind, lightning_system, slopes};
use seqzoo_layers::system::{Form, engine};
use seqzoo_layers::{Result, kernels};

/// Heads.
pub const HEADS: usize = 4;
/// Channels of a head.
pub const HEAD_DIM: usize = 64;

/// How the recurrence is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The form asked for.
    pub form: Form,
    /// With kernels, or by tensor operations alone.
    pub kernels: bool,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tensors = self.form != Form::Recurrent && self.form != Form::Parallel && !self.kernels;
        write!(f, "{}{}", self.form, if tensors { "-tensors" } else { "" })
    }
}

/// Queries, keys and values of one sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    inputs: [Tensor<4>; 3],
    slopes: Vec<f64>,
}

impl Sequence {
    /// `time` tokens on `device`, with the slopes of the first of 24 layers.
    ///
    /// # Errors
    /// Never for these sizes.
    pub fn new(time: usize, device: &Device) -> Result<Self> {
        let numbers = |shift: usize| -> Vec<f32> {
            (0..HEADS * time * HEAD_DIM).map(|i| ((i + shift) as f32 * 0.7391).sin() * 0.2).collect()
        };
        let tensor =
            |shift| Tensor::from_data(TensorData::new(numbers(shift), [1, HEADS, time, HEAD_DIM]), device);
        Ok(Self { inputs: [0, 1, 2].map(tensor), slopes: slopes(&SlopeKind::Alibi, HEADS, 0, 24)? })
    }

    /// Outputs and the last memory.
    ///
    /// # Errors
    /// Never for these sizes.
    pub fn forward(&self, way: Way) -> Result<(Tensor<4>, Tensor<4>)> {
        self.run(self.inputs.clone(), way)
    }

    /// The gradients of the three inputs for the sum of all outputs.
    ///
    /// # Errors
    /// Never for these sizes.
    pub fn forward_backward(&self, way: Way) -> Result<Vec<Tensor<4>>> {
        let leaves = self.inputs.clone().map(|x| x.autodiff().require_grad());
        let (y, _) = self.run(leaves.clone(), way)?;
        let grads = y.sum().backward();
        Ok(leaves.iter().filter_map(|leaf| leaf.grad(&grads)).collect())
    }

    fn run(&self, [q, k, v]: [Tensor<4>; 3], way: Way) -> Result<(Tensor<4>, Tensor<4>)> {
        kernels::enable(way.kernels);
        let memory = Tensor::zeros([1, HEADS, HEAD_DIM, HEAD_DIM], &q.device().inner());
        engine::run(lightning_system(&self.slopes, q, k, v)?, memory, way.form)
    }
}
