//! Other libraries' layers that take part in a sweep, beside the architecture that they compute.

use std::process::{Command, Stdio};

use seqzoo_layers::system::Form;

use crate::kernels::KERNEL;
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
    kernel("torch/kernel/attention", "kernel/attention", "scaled_dot_product_attention"),
    kernel("torch/kernel/scalar", "kernel/scalar", TORCH_CHUNKS),
    kernel("torch/kernel/diagonal", "kernel/diagonal", TORCH_CHUNKS),
    kernel("torch/kernel/delta", "kernel/delta", TORCH_CHUNKS),
    kernel("torch/kernel/delta_diagonal", "kernel/delta_diagonal", TORCH_CHUNKS),
    kernel("torch/kernel/scan", "kernel/scan", TORCH_CHUNKS),
    kernel("torch/kernel/conv", "kernel/conv", "conv1d and silu"),
    kernel("tensors/kernel/attention", "kernel/attention", TENSORS),
    kernel("tensors/kernel/scalar", "kernel/scalar", TENSORS),
    kernel("tensors/kernel/diagonal", "kernel/diagonal", TENSORS),
    kernel("tensors/kernel/delta", "kernel/delta", TENSORS),
    kernel("tensors/kernel/delta_diagonal", "kernel/delta_diagonal", TENSORS),
    kernel("tensors/kernel/scan", "kernel/scan", TENSORS),
    kernel("tensors/kernel/conv", "kernel/conv", TENSORS),
    kernel("steps/kernel/scalar", "kernel/scalar", STEPS),
    kernel("steps/kernel/diagonal", "kernel/diagonal", STEPS),
    kernel("steps/kernel/delta", "kernel/delta", STEPS),
    kernel("steps/kernel/delta_diagonal", "kernel/delta_diagonal", STEPS),
    kernel("steps/kernel/scan", "kernel/scan", STEPS),
];

const TORCH_CHUNKS: &str = "the same in chunks, of the fastest length of three";
const TENSORS: &str = "our tensor operations, without the kernel";
const STEPS: &str = "our recurrence, token by token: the reference";

/// What stands beside a kernel without a layer around it.
const fn kernel(name: &'static str, counterpart: &'static str, what: &'static str) -> Peer {
    Peer { name, counterpart, what, tasks: NO_DECODE }
}

impl Peer {
    /// Whether a list of the user means it: by its name, by its library, or, beside a kernel, by `kernel`. An empty list means
    /// all that stand beside a layer or a model.
    pub fn named(&self, list: &[String]) -> bool {
        let kernel = self.counterpart.starts_with(KERNEL);
        let group = if kernel { KERNELS } else { library(self.name).unwrap_or_default() };
        (list.is_empty() && !kernel) || list.iter().any(|word| word == self.name || word == group)
    }
}

/// The word for all peers of [`crate::kernels`].
const KERNELS: &str = "kernel";

/// The library of a subject, `None` for our own.
pub fn library(subject: &str) -> Option<&str> {
    let ours = subject.starts_with(MODEL) || subject.starts_with(KERNEL);
    subject.split_once('/').map(|(library, _)| library).filter(|_| !ours)
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
        None if subject.starts_with(KERNEL) => NO_DECODE.contains(&task) && form == Form::Auto,
        None => subject != MACHINE,
    }
}

/// Whether a library's layers can be measured here.
///
/// # Errors
/// In words why not, and what would help.
pub fn available(library: &str, python: &str) -> Result<String, String> {
    match library {
        "burn" | "tensors" | "steps" => Ok("part of this build".into()),
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
    fn every_kernel_stands_beside_its_tensor_form_and_pytorch() {
        use crate::kernels::Kernel;
        for kernel in Kernel::ALL {
            for library in ["torch", "tensors"] {
                let found = peer(&format!("{library}/{KERNEL}{}", kernel.name())).unwrap();
                assert_eq!(found.counterpart, format!("{KERNEL}{}", kernel.name()));
                assert!(
                    found.named(&["kernel".into()]) && !found.named(&[]) && !found.named(&["torch".into()])
                );
            }
        }
        for found in PEERS.iter().filter(|peer| ["tensors", "steps"].contains(&library(peer.name).unwrap())) {
            assert!(Kernel::of(found.name).is_some() && Kernel::of(found.counterpart).is_some());
        }
        assert!(
            !offers("kernel/scan", Task::Decode, Form::Auto)
                && offers("kernel/scan", Task::Train, Form::Auto)
        );
    }

    #[test]
    fn a_library_that_is_not_there_is_skipped_with_a_reason() {
        let reason = available("torch", "no-such-python").unwrap_err();
        assert!(reason.contains("no-such-python") && reason.contains("--python"), "{reason}");
        assert!(available("burn", "").is_ok());
    }
}
