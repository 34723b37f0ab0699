use super::*;
use crate::delta::delta_system;
use crate::params;
use crate::system::{System, Transition, engine};
use crate::testing::{gap, numbers};
use burn::tensor::{DType, Device};

/// Heads and channels of every test.
const H: usize = 2;
const N: usize = 4;

/// A memory with random weights, gains and biases.
fn memory(hidden: Option<usize>, norm: bool, init: &mut Init) -> TttMemory {
    let mut memory = TttMemory::new(H, N, hidden, norm, init);
    let m = hidden.unwrap_or(N);
    (memory.w1, memory.b1) = (init.normal([H, N, m], 0.5), init.normal([H, m], 0.3));
    memory.w2 = hidden.map(|m| init.normal([H, m, N], 0.5));
    memory.b2 = hidden.map(|_| init.normal([H, N], 0.3));
    memory.norm_weight = norm.then(|| init.normal([H, N], 1.0));
    memory.norm_bias = norm.then(|| init.normal([H, N], 1.0));
    memory
}

fn random(dims: [usize; 4], std: f64, init: &mut Init) -> Tensor<4> {
    init.normal(dims, std).val().detach()
}

/// `t` tokens with learning rates around 0.3 that all count in full.
fn tokens(t: usize, init: &mut Init) -> TttTokens {
    let [q, k, v] = [0, 1, 2].map(|_| random([1, H, t, N], 0.7, init));
    let eta = random([1, H, t, 1], 0.5, init).abs().mul_scalar(0.5).add_scalar(0.1);
    TttTokens { q, k, v, scale: eta.ones_like(), eta }
}

fn with_one(x: &Tensor<4>) -> Tensor<4> {
    Tensor::cat(vec![x.clone(), x.clone().narrow(3, 0, 1).ones_like()], 3)
}

/// A memory that is zero, without norm.
fn blank(device: &Device) -> TttMemory {
    TttMemory::new(H, N, None, false, &mut Init::blank(device))
}

#[test]
fn inner_gradients_are_the_autodiff_gradients_of_the_inner_loss() {
    for (hidden, norm) in [(None, true), (Some(6), true), (None, false), (Some(6), false)] {
        let mut init = Init::new(5, &Device::flex());
        let memory = params::cast(memory(hidden, norm, &mut init), DType::F64);
        let [k, v] = [0, 1].map(|_| random([1, H, 7, N], 0.8, &mut init).cast(DType::F64));
        let start = memory.initial(1).start.into_iter();
        let weights: Vec<_> = start.map(|w| w.detach().autodiff().require_grad()).collect();
        let residual = memory.read_at(&weights, k.clone()) - v.clone();
        let grads = residual.square().sum().mul_scalar(0.5).backward();
        // One mini-batch with rates of 1 leaves exactly the summed gradient.
        let ones = k.clone().narrow(3, 0, 1).ones_like();
        let tokens = TttTokens { q: k.clone(), k, v, eta: ones.clone(), scale: ones };
        let (_, fast) = memory.learn(tokens, memory.initial(1), 8, Form::Parallel);
        for (weight, sum) in weights.iter().zip(fast.sum.expect("an open mini-batch")) {
            let error = gap(sum, weight.grad(&grads).expect("a gradient"));
            assert!(error < 1e-10, "{hidden:?} {norm}: {error}");
        }
    }
}

/// Theorem 1 of the paper, with the bias as a key channel that is always 1. Its learning rate of 1/2 for
/// `|r|²` is 1 here for `½|r|²`.
#[test]
fn one_step_of_a_bare_linear_memory_from_zero_is_linear_attention() {
    let device = Device::flex();
    let mut tokens = tokens(9, &mut Init::new(1, &device));
    tokens.eta = tokens.eta.ones_like();
    let [q, k] = [&tokens.q, &tokens.k].map(with_one);
    let system = System::outer(Transition::Identity, q, k, tokens.v.clone());
    let zero = Tensor::zeros([1, H, N + 1, N], &device);
    let (expected, _) = engine::run(system, zero, Form::Recurrent).unwrap();
    let memory = blank(&device);
    for form in [Form::Recurrent, Form::Parallel] {
        let (z, _) = memory.learn(tokens.clone(), memory.initial(1), 16, form);
        assert!(gap(z, expected.clone()) < 1e-6, "{form}");
    }
}

/// With mini-batches of one token, plain online gradient descent: the delta rule.
#[test]
fn online_learning_of_a_bare_linear_memory_is_the_delta_rule() {
    let device = Device::flex();
    let tokens = tokens(9, &mut Init::new(2, &device));
    let [q, k] = [&tokens.q, &tokens.k].map(with_one);
    let beta = tokens.eta.clone().squeeze_dim::<3>(3);
    let system = delta_system(beta.zeros_like(), beta, q, k, tokens.v.clone());
    let zero = Tensor::zeros([1, H, N + 1, N], &device);
    let (expected, last) = engine::run(system, zero, Form::Recurrent).unwrap();
    let memory = blank(&device);
    for form in [Form::Recurrent, Form::Parallel] {
        let (z, fast) = memory.learn(tokens.clone(), memory.initial(1), 1, form);
        assert!(gap(z, expected.clone()) < 1e-6, "{form}");
        assert!(gap(fast.start[0].clone(), last.clone()) < 1e-6, "{form}");
        assert!(fast.sum.is_none());
    }
    // Gradients at the mini-batch's start are another function.
    let (z, _) = memory.learn(tokens, memory.initial(1), 4, Form::Parallel);
    assert!(gap(z, expected) > 1e-2);
}

#[test]
fn the_dual_form_is_the_primal_form() {
    for hidden in [None, Some(6)] {
        let mut init = Init::new(8, &Device::flex());
        let memory = params::cast(memory(hidden, true, &mut init), DType::F64);
        let mut tokens = tokens(14, &mut init);
        let places: Vec<f64> = (0..14).map(|t| 1.0 / (t % 4 + 1) as f64).collect();
        tokens.scale = Tensor::from_data(TensorData::new(places, [1, 1, 14, 1]), &Device::flex());
        let TttTokens { q, k, v, eta, scale } = tokens;
        let [q, k, v, eta, scale] = [q, k, v, eta, scale].map(|x| x.cast(DType::F64));
        let tokens = TttTokens { q, k, v, eta, scale };
        let (z, fast) = memory.learn(tokens.clone(), memory.initial(1), 4, Form::Recurrent);
        let (dual, dual_fast) = memory.learn(tokens, memory.initial(1), 4, Form::Auto);
        assert!(gap(dual, z) < 1e-12, "{hidden:?}");
        let sums = [fast.sum.expect("two tokens of a mini-batch"), dual_fast.sum.expect("the same")];
        let [a, b] = [[fast.start, sums[0].clone()].concat(), [dual_fast.start, sums[1].clone()].concat()];
        for (a, b) in a.into_iter().zip(b) {
            assert!(gap(b, a) < 1e-12, "{hidden:?}");
        }
    }
}

fn layer(config: &TttLinearConfig) -> Ttt {
    config.init(6, &mut Init::new(3, &Device::flex())).unwrap()
}

fn small() -> TttLinearConfig {
    TttConfig { heads: H, head_dim: N, mini_batch: 4, ..Default::default() }
}

fn input(t: usize) -> Tensor<3> {
    Init::new(9, &Device::flex()).normal([1, t, 6], 1.0).val().detach()
}

#[test]
fn without_a_learning_rate_nothing_is_learned() {
    let layer = layer(&TttConfig { base_lr: 0.0, ..small() });
    let start = layer.initial_state(1);
    let (_, end) = layer.forward(input(10), start.clone(), Form::Auto).unwrap();
    for ((name, before, _), (_, after, _)) in start.slots().zip(end.slots()) {
        assert_eq!(before.to_f64().unwrap(), after.to_f64().unwrap(), "{name}");
    }
    let losing = |layer: &Ttt| {
        let views = layer.views(input(1).repeat_dim(1, 12), layer.initial_state(1)).unwrap();
        numbers(views.memory_loss.expect("the inner loss"))
    };
    // One token again and again is learned, unless nothing is.
    let (learned, kept) = (losing(&self::layer(&TttConfig { rope: None, ..small() })), losing(&layer));
    assert!(learned[11] < 0.2 * learned[0], "{learned:?}");
    assert!(kept[11] > 0.2 * kept[0], "{kept:?}");
}

/// `z_i = q_i W + Σ_j M_ij (-dZ_j)`, across mini-batches.
#[test]
fn implied_attention_weighs_what_tokens_write() {
    let mut layer = layer(&TttConfig { memory_norm: false, ..small() });
    let mut init = Init::new(12, &Device::flex());
    layer.token_scale = init.normal([4], 0.2);
    layer.memory = memory(None, false, &mut init);
    let x = input(7);
    let mut state = layer.initial_state(1);
    let tokens = layer.tokens(&x, &mut state, Run::default()).unwrap();
    let start = layer.memory.initial(1);
    let cut = |x: &Tensor<4>, from: usize, size: usize| x.clone().narrow(2, from, size);
    let part = |from: usize, size: usize| TttTokens {
        q: cut(&tokens.q, from, size),
        k: cut(&tokens.k, from, size),
        v: cut(&tokens.v, from, size),
        eta: cut(&tokens.eta, from, size),
        scale: cut(&tokens.scale, from, size),
    };
    let (z, fast) = layer.memory.learn(part(0, 4), start.clone(), 4, Form::Auto);
    let (more, _) = layer.memory.learn(part(4, 3), fast.clone(), 4, Form::Auto);
    let z = Tensor::cat(vec![z, more], 2);
    let writes = [(0, 4, &start), (4, 3, &fast)].map(|(from, size, fast)| {
        let TttTokens { k, v, .. } = part(from, size);
        v - with_one(&k).matmul(fast.start[0].clone())
    });
    let attention = layer.views(x, layer.initial_state(1)).unwrap().attention.expect("a linear memory");
    let sum = with_one(&tokens.q).matmul(start.start[0].clone());
    let sum = sum + attention.matmul(Tensor::cat(writes.to_vec(), 2));
    assert!(gap(sum, z) < 1e-5);
}

#[test]
fn positions_start_again_in_every_mini_batch() {
    let layer = layer(&small());
    let (x, mut state) = (input(1).repeat_dim(1, 9), layer.initial_state(1));
    let k = layer.tokens(&x, &mut state, Run::default()).unwrap().k;
    let at = |t: usize| k.clone().narrow(2, t, 1);
    assert!(gap(at(8), at(0)) < 1e-6 && gap(at(5), at(1)) < 1e-6);
    assert!(gap(at(1), at(0)) > 1e-2);
    // Neighbouring channels turn together: their length stays.
    let length = |x: Tensor<4>| x.narrow(3, 0, 2).square().sum_dim(3);
    assert!(gap(length(at(3)), length(at(0))) < 1e-5);
}

#[test]
fn impossible_settings_are_refused() {
    let refused = |config: TttLinearConfig| config.init(6, &mut Init::new(0, &Device::flex())).is_err();
    assert!(!refused(small()));
    assert!(refused(TttConfig { mini_batch: 0, ..small() }));
    assert!(refused(TttConfig { heads: 0, ..small() }));
    assert!(refused(TttConfig { base_lr: f64::NAN, ..small() }));
    assert!(refused(TttConfig { base_lr: -1.0, ..small() }));
    let half = RopeConfig { fraction: 0.5, ..Default::default() };
    assert!(refused(TttConfig { rope: Some(half), ..small() }));
    assert!(!refused(TttConfig { rope: Some(half), rope_interleaved: false, ..small() }));
    let thin = TttMlpConfig { memory: HiddenLayer { expansion: 0 }, ..Default::default() };
    assert!(thin.init(6, &mut Init::new(0, &Device::flex())).is_err());
    // A state of another layer.
    let wide = layer(&TttConfig { head_dim: 2 * N, ..small() });
    assert!(layer(&small()).forward(input(3), wide.initial_state(1), Form::Auto).is_err());
    assert!(layer(&small()).forward(input(3), State::new(1), Form::Auto).is_err());
}

/// Outputs, the last weights and the gradients of all tokens, weights and the norm's parameters.
fn everything(
    hidden: Option<usize>,
    norm: bool,
    (t, phase, lengths): (usize, usize, Option<[usize; 2]>),
    dtype: DType,
    dual: bool,
) -> Vec<Vec<f64>> {
    const MINI_BATCH: usize = 4;
    let mut init = Init::new(8, &Device::flex());
    let mut leaves = Vec::new();
    let mut leaf = |x: Tensor<4>| {
        let leaf = x.cast(dtype).autodiff().require_grad();
        leaves.push(leaf.clone());
        leaf
    };
    let mut memory = memory(hidden, norm, &mut init);
    let parameter = |x: Param<Tensor<2>>| Param::from_tensor(x.val().detach().cast(dtype).autodiff());
    memory.norm_weight = memory.norm_weight.map(parameter);
    memory.norm_bias = memory.norm_bias.map(parameter);
    let [q, k, v] = [0, 1, 2].map(|_| leaf(random([2, H, t, N], 0.7, &mut init)));
    let mut eta = leaf(random([2, H, t, 1], 0.3, &mut init).abs());
    if let Some(lengths) = lengths {
        let valid = crate::system::Lengths(lengths.to_vec()).valid(t, &Device::flex(), dtype);
        eta = eta * valid.unsqueeze_dim::<3>(1).unsqueeze_dim(3);
    }
    let scale = leaf(random([1, 1, t, 1], 0.3, &mut init).abs());
    let mut weights =
        || memory.initial(2).start.into_iter().map(|w| random(w.dims(), 0.5, &mut init)).collect();
    let (start, sum): (Vec<_>, Vec<_>) = (weights(), weights());
    let start = start.into_iter().map(&mut leaf).collect();
    let sum = (phase > 0).then(|| sum.into_iter().map(&mut leaf).collect());
    let (tokens, fast) = (TttTokens { q, k, v, eta, scale }, TttFast { start, sum });
    let clock = Clock::new(&[phase; 2], MINI_BATCH, lengths.as_ref().map(<[usize; 2]>::as_slice));
    let (z, fast) = match dual {
        true => memory.dual(tokens, fast, &clock, MINI_BATCH, phase),
        false => memory.recurrent(tokens, fast, &clock, |_, _| {}),
    };
    let found: Vec<_> = [vec![z], fast.start, fast.sum.unwrap_or_default()].concat();
    let weigh = |x: &Tensor<4>| (x.clone() * x.clone().detach().sin().inner()).sum();
    let grads = found.iter().map(weigh).reduce(|a, b| a + b).unwrap().backward();
    let gradient = |x: &Tensor<4>| numbers(x.grad(&grads).unwrap_or_else(|| x.clone().inner().zeros_like()));
    let parameters = memory.norm_weight.iter().chain(&memory.norm_bias);
    let of_norm =
        parameters.map(|x| numbers(x.val().grad(&grads).unwrap_or_else(|| x.val().inner().zeros_like())));
    found.iter().cloned().map(numbers).chain(leaves.iter().map(gradient)).chain(of_norm).collect()
}

#[test]
fn the_kernel_is_the_primal_form_with_all_gradients() {
    let calls = [
        (12, 0, None),
        (14, 0, None),
        (3, 1, None),
        (9, 3, None),
        (11, 0, Some([11, 6])),
        (7, 2, Some([2, 7])),
    ];
    for (hidden, norm) in [(None, true), (Some(6), true), (None, false), (Some(6), false)] {
        for call in calls {
            let expected = everything(hidden, norm, call, DType::F64, false);
            for (dtype, limits) in [(DType::F64, [1e-10; 2]), (DType::F32, [1e-5, 1e-4])] {
                let found = everything(hidden, norm, call, dtype, true);
                assert_eq!(found.len(), expected.len());
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let off = crate::testing::error(found, expected);
                    // Answers first.
                    let limit = limits[usize::from(i > 0)];
                    assert!(off < limit, "{i} of {hidden:?} {norm} {call:?} {dtype:?}: off by {off:e}");
                }
            }
        }
    }
}
