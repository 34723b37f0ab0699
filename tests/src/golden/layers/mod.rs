//! Cases of one operator, layer or block: which of our layers computes which architecture.

mod attention;
mod delta;
mod linear;
mod moh;
mod operators;
mod recurrent;
mod rwkv;
mod softmax;
mod solvers;
mod test_time;
mod transformers;
mod transnormer;

use std::path::Path;

use burn::tensor::Device;
use seqzoo_layers::system::Form;

use super::{Case, Findings, Judged, Output, Result};

/// Our outputs by the names of the case.
type Outputs = Vec<(&'static str, Output)>;

/// Runs a case in one form.
type Run = fn(&Case, Form) -> Result<Outputs>;

/// Whether the forms of execution differ for an architecture.
#[derive(Clone, Copy, PartialEq)]
enum Forms {
    All,
    One,
}

use Forms::{All, One};

/// Architectures, how they are run, and in which forms.
const ADAPTERS: &[(&str, Run, Forms)] = &[
    ("llama_attention", transformers::part, All),
    ("llama_block", transformers::part, All),
    ("mistral_attention", transformers::part, All),
    ("mixtral_moe", transformers::part, One),
    ("qwen2_attention", transformers::part, All),
    ("qwen3_attention", transformers::part, All),
    ("gpt2_block", transformers::part, All),
    ("mamba2_mixer", transformers::part, All),
    ("minimax_lightning", transformers::part, All),
    ("minimax_block", transformers::part, All),
    ("recurrentgemma_local_attention", transformers::part, All),
    ("recurrentgemma_recurrent_block", transformers::part, All),
    ("qwen3next_gated_attention", transformers::part, All),
    ("qwen3next_gated_deltanet", transformers::part, All),
    ("qwen3next_moe", transformers::part, One),
    ("gemma2_attention", attention::gemma, All),
    ("gemma3_attention", attention::gemma, All),
    ("tnl_attention", attention::transnormer, All),
    ("lightning_attn_op", operators::lightning, All),
    ("fla_linear_attn", operators::linear_attention, All),
    ("fla_retention", operators::retention, All),
    ("fla_simple_gla", operators::simple_gla, All),
    ("fla_gla", operators::gla, All),
    ("fla_delta_rule", operators::delta_rule, All),
    ("fla_gated_delta_rule", operators::gated_delta_rule, All),
    ("fla_kda", operators::kimi_delta, All),
    ("fla_dplr_rwkv7", operators::rwkv7, All),
    ("fla_iplr", operators::identity_plus_low_rank, All),
    ("fla_gated_delta_product", operators::delta_product, All),
    ("fla_comba_recurrent", operators::comba_after_decay, All),
    ("fla_comba_chunk", operators::comba_before_decay, All),
    ("fla_rwkv6", operators::rwkv6, All),
    ("fla_layer_deltanet", delta::deltanet, All),
    ("olmo_hybrid_gated_deltanet", delta::olmo_hybrid, All),
    ("kimi_delta_attention", delta::kimi, All),
    ("fla_momentum_delta_rule", delta::momentum, All),
    ("hgrn2_recurrence", operators::gla, All),
    ("fla_hgrn", recurrent::hgrn, All),
    ("ssd_minimal", operators::ssd, All),
    ("selective_state_update", operators::selective_state_update, All),
    ("rglru", recurrent::rglru, All),
    ("rglru_griffin", recurrent::griffin, All),
    ("torch_lstm", recurrent::lstm, One),
    ("moh_attention", moh::attention, All),
    ("moh_llama_attention", moh::query_norm, All),
    ("moh_vit_attention", moh::vision, One),
    ("fla_based", linear::based, All),
    ("fla_rebased", linear::rebased, All),
    ("cosformer", linear::cosformer, All),
    ("performer_favor", linear::performer, All),
    ("retnet_msr", linear::retnet, All),
    ("fla_layer_gla", linear::gla, All),
    ("fla_layer_hgrn2", linear::hgrn2, All),
    ("fla_softmax_attn_sink", softmax::sink, All),
    ("gpt_oss_attention", softmax::gpt_oss, All),
    ("fla_forgetting_attn", softmax::forgetting, All),
    ("fla_path_attn", softmax::path, All),
    ("kimi_nope_mla", softmax::latent, All),
    ("deepseek_v3_mla", softmax::latent, All),
    ("fla_gsa", softmax::gated_slots, All),
    ("fla_abc", softmax::bounded_slots, All),
    ("flow_attention", softmax::flow, One),
    ("flow_attention_causal", softmax::flow_causal, All),
    ("ttt_linear", test_time::ttt_linear, All),
    ("ttt_mlp", test_time::ttt_mlp, All),
    ("fla_ttt_linear", test_time::fla_ttt_linear, All),
    ("fla_titans_linear", test_time::fla_titans_linear, All),
    ("rwkv4_time_mix", transformers::part, All),
    ("rwkv4_channel_mix", transformers::part, One),
    ("fla_layer_rwkv6", rwkv::rwkv6, All),
    ("rwkv7_time_mix", rwkv::rwkv7, All),
    ("fla_mesa_net", solvers::mesa_net, All),
    ("fla_log_linear_attn", solvers::log_linear, All),
    ("transnormerllm_block", transnormer::block, All),
    ("titans_neural_memory", test_time::neural_memory, All),
];

/// One token at a time, chunks that do not divide the lengths, chunks that do, all at once.
const FORMS: &[Form] =
    &[Form::Recurrent, Form::Chunked { size: 5 }, Form::Chunked { size: 8 }, Form::Parallel, Form::Auto];

/// Runs a case in every form and compares.
pub(super) fn judge(path: &Path, device: &Device, wanted: &dyn Fn(&str) -> bool) -> Judged {
    let architecture = match Case::architecture(path) {
        Ok(architecture) => architecture,
        Err(error) => return ("?".into(), Some(Err(error))),
    };
    if !wanted(&architecture) {
        return (architecture, None);
    }
    let adapter = ADAPTERS.iter().find(|(name, ..)| *name == architecture);
    let judged = adapter.map(|&(_, run, forms)| {
        let mut findings = Findings::default();
        let forms = if forms == All { FORMS } else { &[Form::Auto] };
        for &form in forms {
            // The weights are expressions of the case's leaves, which can be differentiated once.
            let case = Case::open(path, device)?;
            case.judge(&run(&case, form)?, &form.to_string(), &mut findings)?;
        }
        Ok(findings)
    });
    (architecture, Some(judged.transpose()))
}
