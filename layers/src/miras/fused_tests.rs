//! The kernel against the same chunks in tensor operations, which run where the rule does not name its bias.

#[cfg(feature = "cube")]
#[path = "graphics_tests.rs"]
mod graphics;

use burn::module::Param;
use burn::tensor::{DType, Device};
use proptest::prelude::*;

use super::*;
use crate::Init;
use crate::miras::gates::Step;
use crate::miras::inner::chunk_wise;
use crate::miras::retention::Map;
use crate::miras::{Bias, MemoryConfig};
use crate::system::Lengths;
use crate::testing::{Draw, error, numbers, properties};

#[derive(Clone, Debug)]
struct Case {
    memory: MemoryConfig,
    bias: Bias,
    retention: Retention,
    /// `[b, h, t, n]`
    dims: [usize; 4],
    chunk: usize,
    phase: usize,
    momentum: bool,
    lag: bool,
    lengths: Option<Vec<usize>>,
    /// Whether inputs lie in another order than their axes
    turned: bool,
    /// What all inputs are multiplied by
    scale: f64,
    seed: u64,
}

const DEEP: MemoryConfig = MemoryConfig::mlp(2, 2);

const TTT: MemoryConfig = MemoryConfig::Mlp { expansion: 3, depth: 2, bias: true, gelu: Gelu::Tanh };

impl Default for Case {
    fn default() -> Self {
        Self {
            memory: DEEP,
            bias: Bias::L2,
            retention: Retention::L2,
            dims: [2, 2, 11, 5],
            chunk: 4,
            phase: 0,
            momentum: false,
            lag: false,
            lengths: None,
            turned: false,
            scale: 1.0,
            seed: 1,
        }
    }
}

impl Case {
    /// Everything that has a gradient: `q`, `k`, `v`, `δ`, the gates, `A`, `W`, `S`, the sums of rows and the learned
    /// start; the norm's parameters.
    fn inputs(&self, dtype: DType) -> (Vec<Tensor<4>>, [Tensor<2>; 2]) {
        let ([b, h, t, n], mut draw) = (self.dims, Draw::new(self.seed));
        let mut tensor =
            |dims, low, high| draw.tensor::<4>(dims, low, high).cast(dtype).mul_scalar(self.scale);
        let token = [b, h, t, n];
        let gate = [b, h, t, 1];
        let mut all = vec![
            tensor(token, -1.0, 1.0),
            tensor(token, -1.0, 1.0),
            tensor(token, -2.0, 2.0),
            // Residuals lie on both sides of the threshold.
            tensor(gate, 0.5, 3.0),
            tensor(gate, -0.3, 0.0),
            tensor(gate, 0.0, 0.1),
            tensor(gate, -0.5, 0.0),
        ];
        // Logits are spread, as those that a memory starts from: hidden units of uniform rows are all the same.
        let spread =
            |cols: usize| if self.retention == Retention::Kl { 2.0 } else { 1.5 / (cols as f64).sqrt() };
        for _ in 0..3 {
            for [rows, cols] in self.memory.sizes(n) {
                let size = spread(cols);
                all.push(tensor([b, h, rows, cols], -size, size));
            }
        }
        for _ in self.memory.sizes(n) {
            all.push(tensor([1, h, 1, 1], 1.0, 3.0));
        }
        for [rows, cols] in self.memory.sizes(n) {
            let size = spread(cols);
            all.push(tensor([1, h, rows, cols], -size, size));
        }
        let norm = [(0.5, 1.5), (-0.5, 0.5)].map(|(low, high)| draw.tensor([h, n], low, high).cast(dtype));
        (all, norm)
    }

    /// Outputs, the last memory and the gradients of all inputs.
    fn everything(&self, dtype: DType, kernel: bool) -> Vec<Vec<f64>> {
        let [b, h, t, n] = self.dims;
        let (inputs, parameters) = self.inputs(dtype);
        let leaves: Vec<_> = inputs.into_iter().map(|x| x.autodiff().require_grad()).collect();
        let norm = parameters.map(|x| Param::from_tensor(x.autodiff()));
        let order = |x: &Tensor<4>| match self.turned {
            true => x.clone().swap_dims(1, 3).mul_scalar(1.0).swap_dims(1, 3),
            false => x.clone(),
        };
        let [q, k, v, delta, log_alpha, eta, log_mu] = [0, 1, 2, 3, 4, 5, 6].map(|i| order(&leaves[i]));
        let mut memory = self.memory.init(h, n, 0.02, &mut Init::new(1, &Device::flex()));
        if let Memory::Mlp(mlp) = &mut memory {
            [mlp.norm_weight, mlp.norm_bias] = norm.clone();
        }
        let log_mu = self.momentum.then_some(log_mu);
        let gates = vec![Step { log_alpha, eta, log_mu }];
        let tokens = Tokens { q, k, v, delta, gates, valid: None };
        let tokens = match &self.lengths {
            Some(lengths) => {
                let valid = Lengths(lengths.clone()).valid(t, &Device::flex(), dtype);
                tokens.gate_padding(valid.unsqueeze_dim::<3>(1).unsqueeze_dim(3))
            }
            None => tokens,
        };
        let depth = memory.names().len();
        let slot =
            |index: usize| -> Vec<_> { leaves[7 + index * depth..][..depth].iter().map(order).collect() };
        let momentum = if self.momentum { slot(2) } else { Vec::new() };
        let fast = Fast { running: slot(0), anchor: slot(1), momentum };
        let sums = if self.retention == Retention::Kl { slot(3) } else { Vec::new() };
        let gradient = |r, v, delta| self.bias.gradient(r, v, delta);
        let rule = Rule {
            memory: &memory,
            gradient: &gradient,
            bias: kernel.then_some(self.bias),
            map: Map::new(self.retention, &slot(4), sums),
            axes: vec![Axis::All; depth],
            steps: 1,
            read: ReadAt::Token,
        };
        let clock = Clock::new(&vec![self.phase; b], self.chunk, self.lengths.as_deref()).with_lag(self.lag);
        assert_eq!(rule.kernel(&tokens, &clock, 1).is_some(), kernel);
        let (y, fast) = chunk_wise(&rule, tokens, fast, &clock, self.phase);
        let found: Vec<_> =
            [vec![y], fast.running, fast.anchor, fast.momentum].into_iter().flatten().collect();
        let weighed = found.iter().enumerate().map(|(i, x)| {
            let weights = Draw::new(50 + i as u64).tensor::<4>(x.dims(), -1.0, 1.0).cast(dtype);
            (x.clone() * weights).sum()
        });
        let grads = weighed.reduce(|a, b| a + b).unwrap().backward();
        let gradient =
            |x: &Tensor<4>| numbers(x.grad(&grads).unwrap_or_else(|| x.clone().inner().zeros_like()));
        let of_norm = norm
            .iter()
            .map(|x| numbers(x.val().grad(&grads).unwrap_or_else(|| x.val().inner().zeros_like())));
        found.into_iter().map(numbers).chain(leaves.iter().map(gradient)).chain(of_norm).collect()
    }

    /// The largest error among outputs and the last memory, and among gradients.
    fn off(&self, dtype: DType, kernel: bool) -> [f64; 2] {
        let expected = self.everything(DType::F64, false);
        let values = 1 + (2 + usize::from(self.momentum)) * self.memory.sizes(self.dims[3]).len();
        let found = self.everything(dtype, kernel);
        let errors: Vec<_> =
            found.iter().zip(&expected).map(|(found, expected)| error(found, expected)).collect();
        let (values, gradients) = errors.split_at(values);
        [values, gradients].map(|errors| errors.iter().copied().fold(0.0, f64::max))
    }

    fn check_double(&self) {
        let [values, gradients] = self.off(DType::F64, true);
        assert!(values < 1e-10 && gradients < 1e-10, "{self:?}: off by {values:e} and {gradients:e}");
    }

    fn check(&self) {
        self.check_double();
        let [values, gradients] = self.off(DType::F32, true);
        assert!(values < 1e-5 && gradients < 1e-4, "{self:?}, f32: off by {values:e} and {gradients:e}");
    }
}

fn memories() -> [MemoryConfig; 6] {
    [
        MemoryConfig::Linear,
        MemoryConfig::mlp(3, 1),
        DEEP,
        MemoryConfig::mlp(2, 3),
        TTT,
        MemoryConfig::Mlp { expansion: 2, depth: 1, bias: true, gelu: Gelu::Exact },
    ]
}

fn biases() -> [Bias; 8] {
    let lp = |p, nu| Bias::Lp { p, nu, clip: 1.5 };
    [
        Bias::DotProduct,
        lp(3.0, None),
        lp(1.5, Some(2.0)),
        Bias::ValueShift,
        Bias::ValueLess { nu: 3.0 },
        Bias::HuberNorm,
        Bias::HuberCoordinate,
        Bias::HuberMixture { nu: 3.0 },
    ]
}

#[test]
fn it_is_the_tensor_form_for_every_memory_and_loss() {
    for memory in memories() {
        for momentum in [false, true] {
            Case { memory, momentum, ..Case::default() }.check();
        }
    }
    for bias in biases() {
        for memory in [MemoryConfig::Linear, DEEP] {
            Case { memory, bias, ..Case::default() }.check();
        }
    }
}

#[test]
fn weights_may_be_of_a_fixed_size() {
    let [narrow, wide] = [1.05, 4.0].map(|clamp| LqMap::Rescaled { clamp });
    let [low, high] = [1e-3, 5.0].map(|floor| LqMap::Literal { floor });
    for (q, map) in [(4.0, wide), (4.0, low), (2.5, wide), (3.0, narrow), (3.0, high), (2.0, wide)] {
        let retention = Retention::Lq { q, map };
        for (memory, momentum) in [(MemoryConfig::Linear, false), (DEEP, true), (TTT, false)] {
            Case { retention, memory, momentum, ..Case::default() }.check();
        }
        // Where rows end, `W` and `ν` stay.
        let lengths = Some(vec![11, 6]);
        Case { retention, lengths, phase: 3, turned: true, ..Case::default() }.check();
    }
    let retention = Retention::Lq { q: 4.0, map: wide };
    Case { retention, memory: MemoryConfig::mlp(2, 3), ..Case::default() }.check();
}

#[test]
fn rows_of_weights_may_be_distributions() {
    // Single precision is tested below: hidden units that are nearly the same make much of the last digit.
    let distributions = Case { retention: Retention::Kl, ..Case::default() };
    for lag in [false, true] {
        for memory in [MemoryConfig::Linear, MemoryConfig::mlp(3, 1), DEEP, MemoryConfig::mlp(2, 3), TTT] {
            Case { memory, lag, ..distributions.clone() }.check_double();
        }
        for (t, chunk, phase) in [
            (1, 4, 0),
            (3, 4, 0),
            (3, 4, 1),
            (1, 4, 1),
            (4, 4, 2),
            (9, 4, 3),
            (9, 1, 0),
            (9, 2, 1),
            (40, 19, 7),
        ] {
            Case { dims: [2, 1, t, 5], chunk, phase, lag, ..distributions.clone() }.check_double();
        }
        // Where rows end, `W` stays.
        for (phase, lengths) in [(0, [11, 6]), (1, [3, 11]), (0, [4, 0]), (0, [9, 8])] {
            let lengths = Some(lengths.to_vec());
            Case { phase, lengths, lag, turned: true, ..distributions.clone() }.check_double();
        }
        // More columns than a block, and whole blocks.
        Case { dims: [1, 1, 9, 17], lag, ..distributions.clone() }.check_double();
        Case { dims: [1, 2, 9, 32], memory: MemoryConfig::Linear, lag, ..distributions.clone() }
            .check_double();
    }
    Case { bias: Bias::HuberNorm, ..distributions }.check_double();
}

#[test]
fn chunks_may_begin_and_end_anywhere() {
    for (t, chunk, phase) in [(1, 4, 0), (3, 4, 0), (3, 4, 1), (4, 4, 2), (9, 4, 3), (6, 1, 0), (40, 19, 7)] {
        for momentum in [false, true] {
            Case { dims: [2, 1, t, 4], chunk, phase, momentum, ..Case::default() }.check();
        }
    }
    // More columns than a vector, more tokens than numbers of a head.
    Case { dims: [1, 1, 35, 17], chunk: 33, ..Case::default() }.check();
    Case { dims: [1, 2, 40, 3], chunk: 40, memory: MemoryConfig::Linear, ..Case::default() }.check();
}

#[test]
fn rows_may_end_before_others() {
    for (phase, lengths) in [(0, [11, 6]), (1, [3, 11]), (0, [4, 0]), (0, [9, 8])] {
        for (momentum, memory) in [(false, DEEP), (true, TTT), (true, MemoryConfig::Linear)] {
            let lengths = Some(lengths.to_vec());
            Case { phase, lengths, momentum, memory, ..Case::default() }.check();
        }
    }
}

#[test]
fn inputs_may_lie_in_any_order() {
    for (momentum, memory) in [(false, DEEP), (true, TTT)] {
        Case { momentum, memory, turned: true, ..Case::default() }.check();
    }
}

fn retentions() -> impl Strategy<Value = Retention> {
    let normed =
        (2.0..6.0, 1.0..4.0).prop_map(|(q, clamp)| Retention::Lq { q, map: LqMap::Rescaled { clamp } });
    prop_oneof![Just(Retention::L2), normed, Just(Retention::Kl)]
}

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn it_is_the_tensor_form_whatever_is_asked(
        // A layer norm over two or three channels makes too much of the last digit; they have their own tests.
        dims in [1usize..3, 1usize..3, 1usize..24, 4usize..10],
        (chunk, phase) in (1usize..10).prop_flat_map(|chunk| (Just(chunk), 0..chunk)),
        momentum: bool,
        offset: bool,
        lag: bool,
        retention in retentions(),
        seed in any::<u64>(),
    ) {
        let memory = if offset { TTT } else { DEEP };
        // What the kernel has no form for.
        let (momentum, lag) = if retention == Retention::Kl { (false, lag) } else { (momentum, false) };
        // Single precision is tested below: some of these memories make much of the last digit.
        Case { memory, dims, chunk, phase, momentum, lag, retention, seed, ..Case::default() }.check_double();
    }
}

/// A layer norm over three channels, renewed at every token, makes much of the last digit, in tensors as here; so do
/// weights that are distributions.
#[test]
fn it_rounds_no_worse_than_tensors() {
    let one_by_one = Case { dims: [1, 1, 23, 3], chunk: 1, ..Case::default() };
    let distributions = Case { retention: Retention::Kl, lag: true, ..Case::default() };
    for case in [one_by_one, distributions] {
        let median = |kernel: bool, part: usize| {
            let off = |seed| Case { seed, ..case.clone() }.off(DType::F32, kernel)[part];
            let mut errors: Vec<_> = (0..15).map(off).collect();
            errors.sort_by(f64::total_cmp);
            errors[7]
        };
        for part in 0..2 {
            let (kernel, tensors) = (median(true, part), median(false, part));
            assert!(kernel < 2.0 * tensors, "{kernel:e} for {tensors:e}");
        }
    }
}

/// The tensors' own gradients move by up to 5e-5 there when all inputs do by their last digit.
#[test]
fn over_two_channels_it_is_as_close_as_the_last_digit_allows() {
    let mut ratios: Vec<_> = (0..15)
        .map(|seed| {
            let case = Case { dims: [2, 2, 19, 2], chunk: 2, phase: 1, seed, ..Case::default() };
            let nudged = Case { scale: 1.0 + f64::EPSILON, ..case.clone() };
            let pairs =
                case.everything(DType::F64, false).into_iter().zip(nudged.everything(DType::F64, false));
            let moved = pairs.map(|(at, beside)| error(&beside, &at)).fold(0.0, f64::max);
            let [values, gradients] = case.off(DType::F64, true);
            values.max(gradients) / moved
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[7] < 3.0, "off by so many times what the last digit does: {ratios:?}");
}

#[test]
fn what_it_cannot_do_is_left_to_tensors() {
    let memory = DEEP.init(2, 4, 0.02, &mut Init::new(1, &Device::flex()));
    let gradient = |r, _, _| r;
    let rule = |axis, retention| Rule {
        memory: &memory,
        gradient: &gradient,
        bias: Some(Bias::L2),
        map: Map::new(retention, &[], Vec::new()),
        axes: vec![axis; 2],
        steps: 1,
        read: ReadAt::Token,
    };
    let tokens = |b: usize| {
        let x = Tensor::<4>::ones([b, 2, 3, 4], &Device::flex());
        let gate = Tensor::<4>::zeros([b, 2, 3, 1], &Device::flex());
        let step = Step { log_alpha: gate.clone(), eta: gate.clone(), log_mu: None };
        Tokens { q: x.clone(), k: x.clone(), v: x, delta: gate, gates: vec![step], valid: None }
    };
    let clock = Clock::new(&[0], 4, None);
    let covers = |rule: Rule<'_>, b, clock: &Clock| rule.kernel(&tokens(b), clock, 4).is_some();
    assert!(covers(rule(Axis::All, Retention::L2), 1, &clock));
    assert!(!covers(rule(Axis::All, Retention::L2), 0, &clock));
    assert!(!covers(rule(Axis::Rows, Retention::L2), 1, &clock));
    assert!(!covers(rule(Axis::All, Retention::Bregman), 1, &clock));
    assert!(covers(rule(Axis::All, Retention::Kl), 1, &clock.clone().with_lag(true)));
    assert!(!covers(rule(Axis::All, Retention::L2), 1, &clock.clone().with_lag(true)));
    let boundary = Rule { read: ReadAt::Boundary, ..rule(Axis::All, Retention::L2) };
    assert!(!covers(boundary, 1, &clock));
}
