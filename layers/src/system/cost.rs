//! What a layer costs, as a function of batch and length.

use std::iter::Sum;
use std::ops::Add;

use burn::module::Module;
use serde::Serialize;

use super::engine::AUTO_CHUNK;
use super::{Form, Mixer};

/// Arithmetic, traffic and memory of one forward call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Floating-point operations; a multiply and an add count as 2.
    pub flops: f64,
    /// Bytes that must move at least once at 4 bytes per number: weights, inputs, outputs, state.
    pub bytes: f64,
    /// Trainable numbers.
    pub params: usize,
    /// Bytes of the state after the call.
    pub state_bytes: usize,
}

impl Cost {
    /// Completes a cost from the arithmetic per token: parameters and state are read off the layer.
    pub fn of<M: Module + Mixer>(layer: &M, flops_per_token: f64, batch: usize, time: usize) -> Self {
        let params = layer.num_params();
        let state_bytes = layer.initial_state(batch).bytes();
        let activations = 2 * batch * time * layer.d_model();
        Self {
            flops: flops_per_token * (batch * time) as f64,
            bytes: (4 * (params + activations) + 2 * state_bytes) as f64,
            params,
            state_bytes,
        }
    }

    /// Operations per token and head of a decayed linear recurrence with an `[n, p]` memory.
    pub fn decayed_core(n: usize, p: usize, time: usize, form: Form) -> usize {
        match Self::chunk(time, form) {
            None => 6 * n * p,
            Some(q) => 2 * q * (n + p) + 4 * n * p,
        }
    }

    /// The same for diagonal plus rank one: three more score blocks and a triangular solve.
    pub fn rank_one_core(n: usize, p: usize, time: usize, form: Form) -> usize {
        match Self::chunk(time, form) {
            None => 10 * n * p,
            Some(q) => 2 * q * (4 * n + 3 * p) + q * q * 2 + 6 * n * p + 2 * n * n,
        }
    }

    fn chunk(time: usize, form: Form) -> Option<usize> {
        match form {
            Form::Recurrent => None,
            Form::Auto if time <= 1 => None,
            Form::Auto => Some(AUTO_CHUNK.min(time)),
            Form::Parallel => Some(time),
            Form::Chunked { size } => Some(size.min(time)),
        }
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
            params: self.params + other.params,
            state_bytes: self.state_bytes + other.state_bytes,
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), Add::add)
    }
}
