//! Known models as points of the builder (Miras Table 1), and how far the builder's recurrence is from an
//! independent computation of each.
//!
//! The measure feeds the same random q, k, v and gates to the builder's memory, in both its forms, and to the
//! model's own [`System`] run by the engine (or to the minimiser of its objective, found by inverting a matrix).
//! What surrounds the memory (convolutions, norms, the maps to gates) is not part of it.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use nalgebra::{DMatrix, DVector};

use super::algorithm::{Moments, Solver, implicit};
use super::config::label;
use super::gates::Step;
use super::inner::{Clock, Fast, Rule, Tokens, chunk_wise, recurrent};
use super::memory::{FlatMemory, Memory, MlpMemory};
use super::retention::Map;
use super::{
    Algorithm, Bias, GateAxis, Gelu, MemoraConfig, MemoryConfig, MirasConfig, MonetaConfig, Retention,
    TitansConfig, TttMemory, TttTokens, YaadConfig,
};
use crate::delta::delta_system;
use crate::lightning::lightning_system;
use crate::nn::l2_normalize;
use crate::system::{Form, System, Transition, engine};
use crate::{Error, Init, Result, Value};

/// A known model as the builder's configuration.
#[derive(Clone, Debug)]
pub struct Preset {
    /// Name, `deltanet`.
    pub name: &'static str,
    /// arXiv id of its paper.
    pub paper: &'static str,
    /// The update of the memory, `W: [value, key]`.
    pub update: &'static str,
    /// The four choices, and all else.
    pub config: MirasConfig,
    /// What the recurrence is measured against, where there is something.
    pub twin: Option<Twin>,
}

/// An independent computation of a recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// `System` with the identity: linear attention.
    Identity,
    /// `System` with a constant scalar per head: lightning attention.
    Constant,
    /// `System` with a scalar per token: Mamba-2.
    Scalar,
    /// `System` with a diagonal per token: gated linear attention.
    Diagonal,
    /// `System` with diagonal plus rank one, without decay.
    Delta,
    /// The same with decay. It decays before it looks at the error, so the builder's η is α β and its v is v/α.
    GatedDelta,
    /// The minimiser of `|W - α W'|² + η |W k - v|²` by the inverse of a matrix.
    Implicit,
    /// The minimiser of all decayed losses and `λ |W|²` by the inverse of a matrix.
    LeastSquares,
    /// `System` with a dense transition of twice the size: memory and momentum.
    Block,
    /// [`TttMemory`] with `c_i = 1`: the sum over a mini-batch's gradients where TTT learns a multiple of it.
    Ttt,
}

impl Twin {
    /// Where the computation is found.
    pub fn name(self) -> &'static str {
        match self {
            Twin::Identity => "linear_attention (identity system)",
            Twin::Constant => "lightning (constant system)",
            Twin::Scalar => "mamba2 (scalar system)",
            Twin::Diagonal => "diagonal system",
            Twin::Delta => "gated_deltanet with α = 1",
            Twin::GatedDelta => "gated_deltanet (η = α β, v/α)",
            Twin::Implicit => "inverse of I + η k kᵀ",
            Twin::LeastSquares => "inverse of H + λ",
            Twin::Block => "dense system of [W, S]",
            Twin::Ttt => "its own memory with c_i = 1",
        }
    }
}

impl Preset {
    /// The four choices (memory, bias, retention, algorithm), as words.
    pub fn choices(&self) -> [String; 4] {
        let MirasConfig { memory, bias, retention, algorithm, gates, .. } = &self.config;
        let retention = match gates {
            GateAxis::Head => label(retention),
            _ => format!("{} ({})", label(retention), label(gates)),
        };
        [label(memory), label(bias), retention, label(algorithm)]
    }

    /// Relative L2 distance of the builder's outputs, the worst of its forms, from the twin's; `None` without a
    /// twin.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn measure(&self, device: &Device) -> Result<Option<f64>> {
        let Some(twin) = self.twin else { return Ok(None) };
        let memory = self.memory(device)?;
        let (given, expected) = match (twin, &memory) {
            (Twin::Ttt, Memory::Mlp(memory)) => ttt(memory, self.config.chunk, device)?,
            _ => case(twin, device)?,
        };
        let mut worst = 0.0f64;
        for form in [Form::Recurrent, Form::Auto] {
            let y = Value::from(self.run(&memory, given.clone(), form)?).to_f64()?;
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let gap = norm(&mut y.iter().zip(&expected).map(|(a, b)| a - b));
            worst = worst.max(gap / norm(&mut expected.iter().copied()));
        }
        Ok(Some(worst))
    }

    /// A linear memory that starts from 0, or a network with drawn weights and norms.
    fn memory(&self, device: &Device) -> Result<Memory> {
        let ([_, h, _, n], mut init) = (DIMS, Init::new(0, device));
        Ok(match self.config.memory {
            config @ MemoryConfig::Mlp { .. } => match config.init(h, n, 0.3, &mut init) {
                Memory::Mlp(mlp) => Memory::Mlp(MlpMemory {
                    norm_weight: init.normal([h, n], 1.0),
                    norm_bias: init.normal([h, n], 1.0),
                    ..mlp
                }),
                other => other,
            },
            MemoryConfig::Linear => Memory::Linear(FlatMemory { w: init.constant([h, n, n], 0.0) }),
            MemoryConfig::Vector => return Err(Error::State("no preset has a vector for its memory".into())),
        })
    }

    /// The memory alone, with `λ = 1`.
    fn run(&self, memory: &Memory, tokens: Tokens, form: Form) -> Result<Tensor<4>> {
        let [b, h, _, n] = tokens.k.dims();
        let (device, dtype) = (tokens.k.device().inner(), tokens.k.dtype());
        let zeros = Tensor::zeros([b, h, n, n], (&device, dtype));
        match self.config.algorithm {
            Algorithm::Implicit => Ok(implicit(&tokens, zeros, form)?.0),
            Algorithm::ConjugateGradient { iterations, eps } => {
                let moments = Moments { keys: zeros.clone(), values: zeros };
                let lambda = Tensor::ones([1, h, 1, n], (&device, dtype));
                Ok(Solver { iterations, eps }.run(&tokens, &lambda, moments, form)?.0)
            }
            algorithm => {
                let bias = self.config.bias;
                let rule = Rule {
                    memory,
                    gradient: &|r, v, delta| bias.gradient(r, v, delta),
                    bias: Some(bias),
                    map: Map::new(self.config.retention, &[], Vec::new()),
                    axes: self.config.gates.axes(self.config.memory),
                    steps: algorithm.steps(),
                    read: self.config.read,
                };
                let start = memory.initial(b);
                let momentum = if algorithm.momentum().is_some() { vec![zeros] } else { Vec::new() };
                let fast = Fast { running: start.clone(), anchor: start, momentum };
                let clock = Clock::new(&vec![0; b], self.config.chunk, None);
                Ok(match form {
                    Form::Recurrent => recurrent(&rule, tokens, fast, &clock, |_| {}).0,
                    _ => chunk_wise(&rule, tokens, fast, &clock, 0).0,
                })
            }
        }
    }
}

/// Batch rows, heads, tokens and channels of a measurement.
const DIMS: [usize; 4] = [2, 3, 40, 8];

/// The builder's MLP with offsets is TTT's, turned around: the same weights there.
fn ttt_memory(memory: &MlpMemory) -> TttMemory {
    let layer = |w: &Param<Tensor<3>>| {
        let w = w.val().detach().swap_dims(1, 2);
        let [_, rows, _] = w.dims();
        let offset = w.clone().narrow(1, rows - 1, 1).squeeze_dim::<2>(1);
        (Param::from_tensor(w.narrow(1, 0, rows - 1)), Param::from_tensor(offset))
    };
    let mut layers = memory.weights.iter().rev().map(layer);
    let (w1, b1) = layers.next().expect("an MLP has a layer");
    let (w2, b2) = layers.next().unzip();
    let (norm_weight, norm_bias) = (Some(memory.norm_weight.clone()), Some(memory.norm_bias.clone()));
    TttMemory { w1, b1, w2, b2, norm_weight, norm_bias }
}

/// Random tokens as the builder takes them, and what TTT's memory answers.
fn ttt(memory: &MlpMemory, mini_batch: usize, device: &Device) -> Result<(Tokens, Vec<f64>)> {
    let (tokens, _) = case(Twin::Delta, device)?;
    let twin = ttt_memory(memory);
    let Tokens { q, k, v, delta, gates, .. } = &tokens;
    let scale = delta.clone().narrow(2, 0, 1).ones_like();
    let [q, k, v, eta] = [q, k, v, &gates[0].eta].map(Clone::clone);
    let given = TttTokens { q: q.clone(), k, v, eta, scale: scale.expand(delta.dims()) };
    let (z, _) = twin.learn(given, twin.initial(DIMS[0]), mini_batch, Form::Recurrent);
    let y = Value::from(twin.output(q, z)).to_f64()?;
    Ok((tokens, y))
}

/// Random tokens as the builder takes them, and the twin's outputs.
fn case(twin: Twin, device: &Device) -> Result<(Tokens, Vec<f64>)> {
    let [b, h, t, n] = DIMS;
    let mut init = Init::new(17, device);
    let mut random = |dims: [usize; 4]| init.normal(dims, 1.0).val().detach();
    let unit = |x| l2_normalize(x, 1e-12);
    let (q, k, v) = (unit(random([b, h, t, n])), unit(random([b, h, t, n])), random([b, h, t, n]));
    let width = if twin == Twin::Diagonal { n } else { 1 };
    let log_alpha = random([b, h, t, width]).abs().mul_scalar(-0.1);
    let beta = random([b, h, t, width]).abs().mul_scalar(0.3);
    let none = log_alpha.zeros_like();
    let flat = |gate: &Tensor<4>| gate.clone().squeeze_dim::<3>(3);
    let step = |log_alpha: &Tensor<4>, eta: &Tensor<4>| Step {
        log_alpha: log_alpha.clone(),
        eta: eta.clone(),
        log_mu: None,
    };
    let written = k.clone() * beta.clone();
    let (step, system) = match twin {
        Twin::Identity => {
            let system = System::outer(Transition::Identity, q.clone(), written, v.clone());
            (step(&none, &beta), Some(system))
        }
        Twin::Constant => {
            // RetNet's 1 - 2^(-5 - h)
            let slopes: Vec<f64> = (0..h).map(|h| -(1.0 - 2f64.powi(-5 - h as i32)).ln()).collect();
            let system = lightning_system(&slopes, q.clone(), written, v.clone())?;
            let logs = TensorData::new(slopes.iter().map(|s| -s).collect::<Vec<_>>(), [1, h, 1, 1]);
            let logs = Tensor::<4>::from_data(logs, (device, k.dtype())).expand([b, h, t, 1]);
            (step(&logs, &beta), Some(system))
        }
        Twin::Scalar => {
            let transition = Transition::Scalar { log_a: flat(&log_alpha) };
            let system = System::outer(transition, q.clone(), written, v.clone());
            (step(&log_alpha, &beta), Some(system))
        }
        Twin::Diagonal => {
            let transition = Transition::Diagonal { log_a: log_alpha.clone() };
            let system = System::outer(transition, q.clone(), written, v.clone());
            (step(&log_alpha, &beta), Some(system))
        }
        Twin::Delta => {
            let system = delta_system(flat(&none), flat(&beta), q.clone(), k.clone(), v.clone());
            (step(&none, &beta), Some(system))
        }
        Twin::GatedDelta => {
            let system = delta_system(flat(&log_alpha), flat(&beta), q.clone(), k.clone(), v.clone());
            (step(&log_alpha, &(beta.clone() * log_alpha.clone().exp())), Some(system))
        }
        Twin::Block => {
            let log_mu = random([b, h, t, 1]).abs().mul_scalar(-0.5);
            let system = momentum_system(&log_alpha, &log_mu, &beta, &q, &k, &v);
            let step = Step { log_mu: Some(log_mu), ..step(&log_alpha, &beta) };
            (step, Some(system))
        }
        Twin::Implicit | Twin::LeastSquares | Twin::Ttt => (step(&log_alpha, &beta), None),
    };
    let expected = match system {
        Some(system) => {
            let (_, size) = system.dims();
            let memory = Tensor::zeros([b, h, size, n], (device, k.dtype()));
            Value::from(engine::run(system, memory, Form::Recurrent)?.0).to_f64()?
        }
        None => solved(twin, &q, &k, &v, &step)?,
    };
    let v = if twin == Twin::GatedDelta { v * log_alpha.neg().exp() } else { v };
    let delta = Tensor::ones([b, h, t, 1], (device, k.dtype()));
    Ok((Tokens { q, k, v, delta, gates: vec![step], valid: None }, expected))
}

/// Momentum as one system on `[W, S]ᵀ`: `Λ = [[α I - η k kᵀ, μ I], [-η k kᵀ, μ I]]`, `B = η [k; k]`, `C = [q; 0]`.
fn momentum_system(
    log_alpha: &Tensor<4>,
    log_mu: &Tensor<4>,
    eta: &Tensor<4>,
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
) -> System {
    let n = k.dims()[3];
    let eye = Tensor::<2>::eye(n, &k.device().inner()).cast(k.dtype()).reshape([1, 1, 1, n, n]);
    let times_eye = |log: &Tensor<4>| log.clone().exp().unsqueeze_dim::<5>(4) * eye.clone();
    let written = k.clone() * eta.clone();
    let rank_one = written.clone().unsqueeze_dim::<5>(4) * k.clone().unsqueeze_dim::<5>(3);
    let kept = times_eye(log_mu);
    let upper = Tensor::cat(vec![times_eye(log_alpha) - rank_one.clone(), kept.clone()], 4);
    let lower = Tensor::cat(vec![rank_one.neg(), kept], 4);
    let lambda = Tensor::cat(vec![upper, lower], 3);
    let q = Tensor::cat(vec![q.clone(), q.zeros_like()], 3);
    let k = Tensor::cat(vec![written.clone(), written], 3);
    System::outer(Transition::Dense { lambda }, q, k, v.clone())
}

/// The minimisers, one row and head at a time on the host.
fn solved(twin: Twin, q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, step: &Step) -> Result<Vec<f64>> {
    let [b, h, t, n] = k.dims();
    let numbers = |x: &Tensor<4>| Value::from(x.clone().cast(DType::F64)).to_f64();
    let (q, k, v) = (numbers(q)?, numbers(k)?, numbers(v)?);
    let (log_alpha, eta) = (numbers(&step.log_alpha)?, numbers(&step.eta)?);
    let singular = || Error::State("a matrix to be inverted is singular".into());
    let mut out = Vec::with_capacity(q.len());
    for cell in 0..b * h {
        let (mut w, mut keys) = (DMatrix::zeros(n, n), DMatrix::zeros(n, n));
        for token in cell * t..(cell + 1) * t {
            let at = |x: &[f64]| DVector::from_column_slice(&x[token * n..(token + 1) * n]);
            let (q, k, v) = (at(&q), at(&k), at(&v));
            let (alpha, eta) = (log_alpha[token].exp(), eta[token]);
            // W (I + η k kᵀ) = α W' + η v kᵀ; or the moments, solved at the query
            w = w * alpha + v * k.transpose() * eta;
            let kk = &k * k.transpose() * eta;
            let eye = DMatrix::<f64>::identity(n, n);
            let y = if twin == Twin::Implicit {
                w *= (eye + kk).try_inverse().ok_or_else(singular)?;
                &w * q
            } else {
                keys = keys * alpha + kk;
                &w * (&keys + eye).try_inverse().ok_or_else(singular)? * q
            };
            out.extend(y.iter());
        }
    }
    Ok(out)
}

/// The models of Miras Table 1 that the builder can express, and its own.
pub fn presets() -> Vec<Preset> {
    let linear = MirasConfig { memory: MemoryConfig::Linear, chunk: 4, rope: None, ..MirasConfig::default() };
    let dot = MirasConfig { bias: Bias::DotProduct, ..linear.clone() };
    let exact = MirasConfig { chunk: 1, ..linear };
    let ttt = |depth| MirasConfig {
        memory: MemoryConfig::Mlp { expansion: 4, depth, bias: true, gelu: Gelu::Tanh },
        retention: Retention::None,
        conv_kernel: 0,
        ..MirasConfig::default()
    };
    let preset = |name, paper, update, config, twin| Preset { name, paper, update, config, twin };
    vec![
        preset(
            "linear_attention",
            "2006.16236",
            "W + η v kᵀ",
            MirasConfig { retention: Retention::None, ..dot.clone() },
            Some(Twin::Identity),
        ),
        preset("retnet", "2307.08621", "α_h W + η v kᵀ, α_h constant", dot.clone(), Some(Twin::Constant)),
        preset("mamba2", "2405.21060", "α W + η v kᵀ", dot.clone(), Some(Twin::Scalar)),
        preset(
            "gla",
            "2312.06635",
            "W diag(α) + η v kᵀ",
            MirasConfig { gates: GateAxis::AllD, ..dot },
            Some(Twin::Diagonal),
        ),
        preset(
            "deltanet",
            "2406.06484",
            "W (I - η k kᵀ) + η v kᵀ",
            MirasConfig { retention: Retention::None, ..exact.clone() },
            Some(Twin::Delta),
        ),
        preset(
            "gated_deltanet",
            "2412.06464",
            "α W (I - β k kᵀ) + β v kᵀ",
            exact.clone(),
            Some(Twin::GatedDelta),
        ),
        preset(
            "longhorn",
            "2407.14207",
            "W + e (v - W k) kᵀ, e = η/(1 + η|k|²)",
            MirasConfig { algorithm: Algorithm::Implicit, ..exact.clone() },
            Some(Twin::Implicit),
        ),
        preset(
            "mesanet",
            "2506.05233",
            "H = α H + η k kᵀ, G = α G + η v kᵀ, y = G (H + λ)⁻¹ q",
            MirasConfig {
                algorithm: Algorithm::ConjugateGradient { iterations: 30, eps: 1e-12 },
                ..exact.clone()
            },
            Some(Twin::LeastSquares),
        ),
        preset(
            "titans_linear",
            "2501.00663",
            "S = μ S - η (W k - v) kᵀ, W = α W + S",
            MirasConfig { algorithm: Algorithm::Momentum { start: 0.5 }, ..exact },
            Some(Twin::Block),
        ),
        preset("ttt_linear", "2407.04620", "W - Σ η ∇½|f(k) - v|²", ttt(1), Some(Twin::Ttt)),
        preset("ttt_mlp", "2407.04620", "W - Σ η ∇½|f(k) - v|²", ttt(2), Some(Twin::Ttt)),
        preset("titans", "2501.00663", "S = μ S - η ∇ℓ, W = α W + S", TitansConfig::default().0, None),
        preset(
            "moneta",
            "2504.13173",
            "A = α A - η ∇ℓ_p, W = A/|A|_q^(q-2)",
            MonetaConfig::default().0,
            None,
        ),
        preset("yaad", "2504.13173", "W = α W - η ∇ℓ_δ", YaadConfig::default().0, None),
        preset("memora", "2504.13173", "W = c softmax(α log W - η ∇ℓ)", MemoraConfig::default().0, None),
    ]
}

#[cfg(test)]
#[path = "presets_tests.rs"]
mod tests;
