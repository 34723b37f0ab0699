//! The four choices as one configuration, and which of their combinations exist.

use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, LeastSquares};
use super::gates::{GateAxis, GateSizes, Gates};
use super::layer::{GateMap, MirasLayer, Sizes};
use super::memory::{Memory, MemoryConfig};
use super::miras::{Learner, Miras};
use super::retention::Retention;
use super::{Bias, INIT_STD};
use crate::error::require;
use crate::nn::RopeConfig;
use crate::{Init, Result};

/// Smallest threshold δ.
pub(super) const DELTA_MIN: f64 = 1e-3;

/// Which weights a token is read with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadAt {
    /// Those that include the token.
    #[default]
    Token,
    /// Those of the last token that began a new `W_c`, itself included: much less work where the retention maps
    /// entry by entry, but what a chunk writes is seen only when it is over. The same where `chunk` is 1.
    Boundary,
}

/// The four choices of [`Miras`] and its sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MirasConfig {
    /// Heads, each with a memory of its own.
    pub heads: usize,
    /// Size `n` of queries, keys and values of a head.
    pub head_dim: usize,
    /// First choice: the memory's architecture.
    pub memory: MemoryConfig,
    /// Second choice: the inner loss.
    pub bias: Bias,
    /// Third choice: what is kept.
    pub retention: Retention,
    /// Fourth choice: how the memory learns.
    pub algorithm: Algorithm,
    /// How finely the memory is gated.
    pub gates: GateAxis,
    /// Tokens `C` whose inner gradients are taken at the same weights. Part of the model: it changes the
    /// function, unlike the size in [`crate::system::Form::Chunked`].
    pub chunk: usize,
    /// Whether the first token of a chunk is learned before the gradients of the others are taken; no
    /// difference where `chunk` is 1.
    pub lag_token: bool,
    /// Which weights a token is read with; the exact algorithms always read with its own.
    pub read: ReadAt,
    /// Whether the decay α is learned; `None` for wherever the retention has one, `false` fixes α = 1.
    pub decay: Option<bool>,
    /// Rank of the maps from a token to its gates.
    pub gate_rank: usize,
    /// Largest learning rate; `None` for 1 (vector, exact algorithms), `1/head_dim` (linear), `0.1/head_dim`
    /// (MLP), each times `1 - start` with momentum.
    pub eta_base: Option<f64>,
    /// Threshold δ before training; `None` for the typical length of a residual then (a tenth of it for
    /// `value_shift`).
    pub delta_start: Option<f64>,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Rotary positions of queries and keys; `None` for none.
    pub rope: Option<RopeConfig>,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for MirasConfig {
    /// An MLP that learns by plain gradient descent on the squared error, and decays.
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            memory: MemoryConfig::default(),
            bias: Bias::L2,
            retention: Retention::L2,
            algorithm: Algorithm::Gd,
            gates: GateAxis::Head,
            chunk: 16,
            lag_token: false,
            read: ReadAt::Token,
            decay: None,
            gate_rank: 32,
            eta_base: None,
            delta_start: None,
            conv_kernel: 4,
            rope: Some(RopeConfig::default()),
            norm_eps: 1e-6,
        }
    }
}

/// `0.5`, `16`, `1e-5`
fn number_text(x: f64) -> String {
    if x != 0.0 && x.abs() < 1e-3 { format!("{x:e}") } else { x.to_string() }
}

/// A choice as its name in configurations and its values: `lp(p = 3, clip = 10)`.
pub(crate) fn label<T: Serialize>(choice: &T) -> String {
    use serde_json::Value;
    match serde_json::to_value(choice) {
        Ok(Value::String(name)) => name,
        Ok(Value::Object(map)) => {
            let one = |(name, values): (&String, &Value)| match values {
                Value::Object(values) => {
                    let values = values.iter().filter(|(_, value)| !value.is_null());
                    let text = |value: &Value| match value {
                        Value::Object(_) | Value::String(_) => label(value),
                        Value::Number(number) => number.as_f64().map_or(String::new(), number_text),
                        other => other.to_string(),
                    };
                    let list: Vec<_> =
                        values.map(|(key, value)| format!("{key} = {}", text(value))).collect();
                    if list.is_empty() { name.clone() } else { format!("{name}({})", list.join(", ")) }
                }
                other => format!("{name}({other})"),
            };
            map.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

impl MirasConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For impossible sizes, and for choices that do not go together.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Miras> {
        self.build(super::miras::NAME, d_model, init)
    }

    /// [`Self::init`] under the name of a preset.
    pub(super) fn build(&self, mixer: &'static str, d_model: usize, init: &mut Init) -> Result<Miras> {
        let (h, n) = (self.heads, self.head_dim);
        let sizes = Sizes {
            mixer,
            d_model,
            heads: h,
            head_dim: n,
            conv_kernel: self.conv_kernel,
            rope: self.rope,
            norm_eps: self.norm_eps,
        };
        let layer: MirasLayer = sizes.init(init)?;
        self.validate(mixer)?;
        let eta_base = self.eta_base.unwrap_or(self.default_eta());
        let positive = |x: f64| x > 0.0 && x.is_finite();
        require(positive(eta_base), mixer, "eta_base", eta_base, "must be positive and finite")?;
        let delta = self.delta_start.unwrap_or(self.default_delta(sizes.typical_value()));
        let expected = format!("must be above {DELTA_MIN} and finite");
        require(delta > DELTA_MIN && delta.is_finite(), mixer, "delta_start", delta, &expected)?;
        let decay = self.decay.unwrap_or(self.retention.decays());
        let gates = GateSizes {
            d_model,
            rank: self.gate_rank,
            heads: h,
            head_dim: n,
            alpha: decay.then_some(self.retention.start_alpha()),
            momentum: self.algorithm.momentum(),
        };
        let gates = Gates::new(&gates, self.gates, self.memory, init);
        let delta = inverse_softplus(delta - DELTA_MIN);
        let delta =
            self.bias.has_threshold().then(|| GateMap::new(d_model, self.gate_rank, h, 1, delta, init));
        let memory = match self.algorithm {
            Algorithm::ConjugateGradient { .. } => Learner::LeastSquares(LeastSquares::new(h, n, init)),
            algorithm => match (algorithm, self.memory.init(h, n, self.retention.start_std(), init)) {
                (Algorithm::Implicit, Memory::Linear(memory)) => Learner::Implicit(memory),
                (_, memory) => Learner::Descent(memory),
            },
        };
        // A row of weights from N(0, INIT_STD²) has this sum of moduli.
        let row_sum = |cols: usize| INIT_STD * (2.0 / std::f64::consts::PI).sqrt() * cols as f64;
        let log_sum = |[_, cols]: [usize; 2]| init.constant([h], row_sum(cols).ln() as f32);
        let sizes = if self.retention.on_simplex() { self.memory.sizes(n) } else { Vec::new() };
        let log_sums = sizes.into_iter().map(log_sum).collect();
        Ok(Miras::new(layer, gates, delta, memory, log_sums, eta_base, self, d_model))
    }

    fn default_eta(&self) -> f64 {
        let n = self.head_dim as f64;
        let step = match (self.algorithm, self.memory) {
            (Algorithm::Implicit | Algorithm::ConjugateGradient { .. }, _) | (_, MemoryConfig::Vector) => 1.0,
            (_, MemoryConfig::Linear) => 1.0 / n,
            (_, MemoryConfig::Mlp { .. }) => 0.1 / n,
        };
        // A momentum repeats every step 1/(1 - μ) times.
        step * (1.0 - self.algorithm.momentum().unwrap_or(0.0))
    }

    /// `value`: root mean square of a value's entries.
    fn default_delta(&self, value: f64) -> f64 {
        let (n, value) = (self.head_dim as f64, value.powi(2));
        // A linear memory starts near 0; the MLP's layer norm has unit variance, and it adds its input.
        let residual = match self.memory {
            MemoryConfig::Linear | MemoryConfig::Vector => (n * value).sqrt(),
            MemoryConfig::Mlp { .. } => (n * (1.0 + value) + 1.0).sqrt(),
        };
        if self.bias == Bias::ValueShift { 0.1 * residual } else { residual }
    }

    /// Checks the values one by one, then the choices against each other.
    fn validate(&self, mixer: &'static str) -> Result<()> {
        require(self.chunk > 0, mixer, "chunk", self.chunk, "must be at least 1")?;
        require(self.gate_rank > 0, mixer, "gate_rank", self.gate_rank, "must be positive")?;
        self.memory.validate(mixer)?;
        self.bias.validate(mixer)?;
        self.retention.validate(mixer)?;
        let decay = self.decay != Some(true) || self.retention.decays();
        let expected = format!(
            "{} has no decay: leave `decay` out, or use the retention `l2` (or `kl` for weights on a simplex)",
            label(&self.retention)
        );
        require(decay, mixer, "decay", true, &expected)?;
        self.check_algorithm(mixer)?;
        self.check_simplex(mixer)?;
        let middle = matches!(self.memory, MemoryConfig::Mlp { depth: 3.., .. });
        let expected = "is one vector of head_dim gates, which a matrix between hidden layers has no axis for: \
                        use `head` or `row`, or an MLP of depth 1 or 2";
        require(!(middle && self.gates == GateAxis::AllD), mixer, "gates", "all_d", expected)?;
        let offset = matches!(self.memory, MemoryConfig::Mlp { bias: true, .. });
        let expected = "gates the inputs of a layer, but an offset (`memory.bias`) has none: use `head` or `row`, or \
                        leave `bias` out";
        require(!(offset && self.gates == GateAxis::AllD), mixer, "gates", "all_d", expected)
    }

    fn check_algorithm(&self, mixer: &'static str) -> Result<()> {
        let name = label(&self.algorithm);
        let positive = |x: f64| x > 0.0 && x.is_finite();
        match self.algorithm {
            Algorithm::Gd => return Ok(()),
            Algorithm::Momentum { start } => {
                let ok = start > 0.0 && start < 1.0;
                return require(ok, mixer, "algorithm.start", start, "must lie between 0 and 1");
            }
            Algorithm::MultiStep { steps } => {
                let expected = "must be 1 to 64";
                require((1..=64).contains(&steps), mixer, "algorithm.steps", steps, expected)?;
            }
            Algorithm::ConjugateGradient { iterations, eps } => {
                let expected = "must be 1 to 1000";
                require(
                    (1..=1000).contains(&iterations),
                    mixer,
                    "algorithm.iterations",
                    iterations,
                    expected,
                )?;
                require(positive(eps), mixer, "algorithm.eps", eps, "must be positive and finite")?;
            }
            Algorithm::Implicit => {}
        }
        let expected = format!("{name} takes its steps at every token's own memory: set `chunk` to 1");
        require(self.chunk == 1, mixer, "chunk", self.chunk, &expected)?;
        if matches!(self.algorithm, Algorithm::MultiStep { .. }) {
            return Ok(());
        }
        let closed = |what: &str| {
            format!("{name} has a closed form for {what} only: use that, or the algorithm `gd` or `momentum`")
        };
        let linear = self.memory == MemoryConfig::Linear;
        require(linear, mixer, "memory", label(&self.memory), &closed("the memory `linear`"))?;
        require(self.bias == Bias::L2, mixer, "bias", label(&self.bias), &closed("the bias `l2`"))?;
        let plain = self.retention.is_linear();
        let expected = closed("the retentions `none` and `l2`");
        require(plain, mixer, "retention", label(&self.retention), &expected)?;
        let (gates, names) = match self.algorithm {
            Algorithm::Implicit => (self.gates != GateAxis::AllD, "the gates `head` and `row`"),
            _ => (self.gates == GateAxis::Head, "the gates `head`"),
        };
        require(gates, mixer, "gates", label(&self.gates), &closed(names))
    }

    fn check_simplex(&self, mixer: &'static str) -> Result<()> {
        if !self.retention.on_simplex() {
            return Ok(());
        }
        let name = label(&self.retention);
        let vector = self.memory == MemoryConfig::Vector;
        let expected = format!("has rows of one number, which {name} fixes: use `linear` or `mlp`");
        require(!vector, mixer, "memory", "vector", &expected)?;
        let mixed = self.gates.axes(self.memory).contains(&super::gates::Axis::Cols);
        let expected = format!("gates columns apart, but {name} keeps the sums of rows: use `head` or `row`");
        require(!mixed, mixer, "gates", label(&self.gates), &expected)
    }
}

/// `x` with `softplus(x) = y`, for `y > 0`.
fn inverse_softplus(y: f64) -> f64 {
    y + (-(-y).exp_m1()).ln()
}
