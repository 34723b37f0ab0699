//! What models read: tokenizers, real text, and generated tasks, all as one stream of [`Batch`]es.
//!
//! | axis | meaning |
//! | --- | --- |
//! | `batch` | independent sequences |
//! | `time` | tokens of each |
//!
//! Labels are aligned: the label at position `t` is what the model must answer after inputs `0..=t`.
//! A stream is a function of its seed and the number of batches drawn, so a run can be continued exactly.

mod documents;
mod mqar;
mod source;
mod text;
mod tokenizer;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use mqar::{Mqar, MqarBatches};
pub use source::{Data, Source};
pub use text::{Text, TextBatches, TextData};
pub use tokenizer::{TextStream, Tokenizer};

/// The label of a position that is not scored.
pub const NOT_SCORED: i64 = -100;

/// Sequences of one length with an aligned label for each position, row-major `[batch, time]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids.
    pub inputs: Vec<i64>,
    /// The right answer after each input, or [`NOT_SCORED`].
    pub labels: Vec<i64>,
    /// Rows.
    pub batch: usize,
    /// Tokens per row.
    pub time: usize,
}

impl Batch {
    /// Inputs and labels on a device, `[batch, time]` each.
    pub fn tensors(&self, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let tensor =
            |ids: &[i64]| Tensor::from_data(TensorData::new(ids.to_vec(), [self.batch, self.time]), device);
        (tensor(&self.inputs), tensor(&self.labels))
    }

    /// Number of scored positions.
    pub fn scored(&self) -> usize {
        self.labels.iter().filter(|&&label| label != NOT_SCORED).count()
    }
}

/// An endless stream of batches.
pub trait Batches {
    /// The next batch.
    fn next_batch(&mut self) -> Batch;

    /// Passes over `batches` batches, to continue where an earlier run stopped.
    fn skip(&mut self, batches: usize) {
        for _ in 0..batches {
            self.next_batch();
        }
    }
}

/// The generator of batch `index`: each batch has its own stream, so that skipping costs nothing.
fn batch_rng(seed: u64, index: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    rng
}
