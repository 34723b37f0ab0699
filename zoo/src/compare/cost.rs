//! What training and decoding cost on paper, from what reading costs.

use seqzoo_layers::system::{Cost, Form, Mixer};

/// A training step of `[batch, time]` tokens: counted as three forward passes.
pub fn train_cost(layer: &dyn Mixer, batch: usize, time: usize, form: Form) -> Cost {
    let cost = layer.cost(batch, time, form);
    Cost { flops: 3.0 * cost.flops, bytes: 3.0 * cost.bytes, ..cost }
}

/// One more token for each of `batch` sequences of `time`.
pub fn decode_cost(layer: &dyn Mixer, batch: usize, time: usize) -> Cost {
    let of = |time| layer.cost(batch, time, Form::Recurrent);
    step_cost(of(1), of(time.max(1)), time, 2 * batch * layer.d_model())
}

/// What one more token costs, by the costs of the first one and of a whole prompt of `time` tokens; `numbers` go in
/// and out.
pub fn step_cost(first: Cost, prompt: Cost, time: usize, numbers: usize) -> Cost {
    // A cache is read; a memory is read and written.
    let state = prompt.state_bytes * if prompt.state_bytes > first.state_bytes { 1 } else { 2 };
    let weights = 4 * (prompt.params + numbers);
    Cost { flops: prompt.flops / time.max(1) as f64, bytes: (weights + state) as f64, ..prompt }
}
