//! Other libraries' layers that take part in a sweep, beside the architecture that they compute.

use std::process::{Command, Stdio};

use seqzoo_layers::system::Form;

use crate::models::MODEL;
use crate::point::{MACHINE, Task};

/// One layer, or one small model, of another library.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its name as a subject, `library/layer`.
    pub name: &'static str,
    /// The architecture of the registry that computes the same, or the model of [`crate::models`].
    pub counterpart: &'static str,
    /// What it is.
    pub what: &'static str,
    /// What it can be measured at.
    pub tasks: &'static [Task],
}

const ALL_TASKS: &[Task] = &[Task::Prefill, Task::Train, Task::Decode];
const NO_DECODE: &[Task] = &[Task::Prefill, Task::Train];
const ONLY_DECODE: &[Task] = &[Task::Decode];
const NO_TRAIN: &[Task] = &[Task::Prefill, Task::Decode];

/// All of them.
pub const PEERS: &[Peer] = &[
    Peer {
        name: "torch/attention",
        counterpart: "attention",
        what: "projections, rotary positions, scaled_dot_product_attention, a cache to decode",
        tasks: ALL_TASKS,
    },
    Peer {
        name: "torch/linear_attention",
        counterpart: "linear_attention",
        what: "elu + 1, in chunks of 64",
        tasks: ALL_TASKS,
    },
    Peer {
        name: "torch/gla",
        counterpart: "gla",
        what: "gated linear attention, in chunks of 64",
        tasks: ALL_TASKS,
    },
    Peer {
        name: "torch/gated_deltanet",
        counterpart: "gated_deltanet",
        what: "the chunked form of flash-linear-attention's reference, in chunks of 64",
        tasks: ALL_TASKS,
    },
    Peer { name: "torch/lstm", counterpart: "lstm", what: "nn.LSTM", tasks: ALL_TASKS },
    Peer {
        name: "transformers/mamba2_layer",
        counterpart: "mamba2",
        what: "Mamba2Mixer without its CUDA kernels",
        tasks: NO_DECODE,
    },
    Peer {
        name: "transformers/llama",
        counterpart: "model/llama",
        what: "a small LlamaForCausalLM, with its cache",
        tasks: ONLY_DECODE,
    },
    Peer {
        name: "transformers/gpt2",
        counterpart: "model/gpt2",
        what: "a small GPT2LMHeadModel, with its cache",
        tasks: ONLY_DECODE,
    },
    Peer {
        name: "transformers/mamba2",
        counterpart: "model/mamba2",
        what: "a small Mamba2ForCausalLM, with its cache",
        tasks: ONLY_DECODE,
    },
    Peer {
        name: "transformers/rwkv",
        counterpart: "model/rwkv",
        what: "a small RwkvForCausalLM (RWKV-4), with its cache",
        tasks: ONLY_DECODE,
    },
    Peer {
        name: "transformers/qwen3_next",
        counterpart: "model/qwen3_next",
        what: "a small Qwen3NextForCausalLM: three gated DeltaNets, one attention, with its cache",
        tasks: ONLY_DECODE,
    },
    Peer {
        name: "fla/gated_deltanet",
        counterpart: "gated_deltanet",
        what: "GatedDeltaNet with Triton kernels; needs a GPU",
        tasks: NO_DECODE,
    },
    Peer { name: "burn/attention", counterpart: "attention", what: "MultiHeadAttention", tasks: NO_DECODE },
    Peer { name: "burn/lstm", counterpart: "lstm", what: "Lstm", tasks: ALL_TASKS },
    Peer {
        name: "candle/attention",
        counterpart: "attention",
        what: "projections, rotary positions, matmul and softmax, a cache to decode",
        tasks: NO_TRAIN,
    },
    Peer { name: "candle/lstm", counterpart: "lstm", what: "candle_nn::LSTM", tasks: NO_TRAIN },
];

/// The library of a subject, `None` for our own.
pub fn library(subject: &str) -> Option<&str> {
    subject.split_once('/').map(|(library, _)| library).filter(|_| !subject.starts_with(MODEL))
}

/// The peer of that name.
pub fn peer(subject: &str) -> Option<&'static Peer> {
    PEERS.iter().find(|peer| peer.name == subject)
}

/// Whether a subject can be measured at a task. Peers have one form only, which stands beside `auto`.
pub fn offers(subject: &str, task: Task, form: Form) -> bool {
    match peer(subject) {
        Some(peer) => peer.tasks.contains(&task) && form == Form::Auto,
        None if subject.starts_with(MODEL) => task == Task::Decode && form == Form::Auto,
        None => subject != MACHINE,
    }
}

/// Whether a library's layers can be measured here.
///
/// # Errors
/// In words why not, and what would help.
pub fn available(library: &str, python: &str) -> Result<String, String> {
    match library {
        "burn" => Ok("part of this build".into()),
        "candle" if cfg!(feature = "candle") => Ok("part of this build".into()),
        "candle" => Err("not compiled in; build with `--features candle`".into()),
        module => {
            let script = format!("import {module}, torch; print({module}.__version__)");
            let output = Command::new(python).args(["-c", &script]).stdin(Stdio::null()).output();
            match output {
                Ok(output) if output.status.success() => {
                    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
                }
                Ok(_) => Err(format!("`{python}` cannot import {module}; `--python` names another")),
                Err(error) => Err(format!("`{python}` does not run ({error}); `--python` names another")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_told_from_architectures() {
        assert_eq!((library("torch/lstm"), library("lstm")), (Some("torch"), None));
        assert!(offers("burn/lstm", Task::Decode, Form::Auto));
        assert!(!offers("burn/attention", Task::Decode, Form::Auto));
        assert!(!offers("burn/lstm", Task::Prefill, Form::Parallel));
        assert!(offers("lstm", Task::Prefill, Form::Parallel));
        assert_eq!((library("model/llama"), library("transformers/llama")), (None, Some("transformers")));
        assert!(
            offers("model/llama", Task::Decode, Form::Auto)
                && !offers("model/llama", Task::Train, Form::Auto)
        );
    }

    #[test]
    fn a_library_that_is_not_there_is_skipped_with_a_reason() {
        let reason = available("torch", "no-such-python").unwrap_err();
        assert!(reason.contains("no-such-python") && reason.contains("--python"), "{reason}");
        assert!(available("burn", "").is_ok());
    }
}
