//! What the delta rule, gated or not, makes of its projections before the recurrence reads them, without gradients: some
//! units take a token of a head together.
//!
//! ```text
//! q = gain q / |q|,   k = k / |k|,   β = most sigmoid(b), or `most`,   write = β k
//! log d = -exp(A_log) softplus(a + dt_bias), or 0:     read = k,             erase = -e^{log d} write
//! the same per channel, or -c sigmoid(exp(A_log) (a + dt_bias)):     read = e^{log d} ∘ k,   erase = -write
//! ```
//!
//! With a decay per head the memory is corrected and then decays, with one per channel it decays first.
//!
//! Floor: memory, in one launch instead of seven, or of nine where it also makes `a` and `b`, a few numbers per token.
//! What is multiplied into the memory, `log d`, `read` and `erase`, is also written as the recurrence's kernel reads it, beside
//! each other, in place of a launch that packs them.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, MOST_CUBES, empty, part_of, plain};
use super::functions::sigmoid;
use super::pointwise::softplus;
use crate::system::{System, Transition};

/// Units of a token of a head.
const LANES: usize = 32;

/// Tokens of a cube.
const SLOTS: usize = 2;

/// Largest key.
const MOST: usize = 256;

/// A few numbers of every token, one per value head.
#[derive(Clone, Debug)]
pub(crate) enum HeadInputs {
    /// `[b, t, h]`
    Made(Burn<3>),
    /// `x W` of `x: [b, t, d]`, which is the same for all, and `W: [d, h]`: the kernel makes it
    Of(Burn<3>, Burn<2>),
}

/// What decays are made of.
#[derive(Clone, Debug)]
pub(crate) enum Decaying {
    /// One per head: parameters `[h]`
    Heads { a: HeadInputs, dt_bias: Burn<1>, a_log: Burn<1> },
    /// One per channel of the keys: `a: [b, t, h n]`, `dt_bias: [h n]`, `a_log: [h]`, and `c` where there is a bound
    Channels { a: Burn<3>, dt_bias: Burn<1>, a_log: Burn<1>, bound: Option<f64> },
}

/// Projections of a delta rule, and its parameters.
#[derive(Clone, Debug)]
pub(crate) struct DeltaRule {
    /// `[b, t, heads n]`
    pub(crate) q: Burn<3>,
    /// `[b, t, heads n]`
    pub(crate) k: Burn<3>,
    /// What steps are made of; they are `most` without
    pub(crate) b: Option<HeadInputs>,
    /// Nothing decays without
    pub(crate) decay: Option<Decaying>,
    /// Query heads; each is for as many value heads in a row
    pub(crate) heads: usize,
    /// Length of a query
    pub(crate) gain: f64,
    /// Largest `β`
    pub(crate) most: f64,
    /// Added to sums of squares
    pub(crate) eps: f64,
}

impl DeltaRule {
    /// The system that writes `v: [b, h, t, p]`; `None` where these are not for the kernel: gradients, another device or
    /// element type, large keys.
    pub(crate) fn system(&self, v: &Burn<4>) -> Option<System> {
        let ([b, t, width], [_, h, ..]) = (self.q.dims(), v.dims());
        let (n, rows) = (width / self.heads, b * h * t);
        if !(1..=MOST).contains(&n) || rows == 0 || rows >= 1 << 24 {
            return None;
        }
        let (q, k) = (plain(&self.q)?, plain(&self.k)?);
        // In place of what there is not: it is not read.
        let (mut x, mut depth) = (q.clone(), 0);
        let mut numbers = |of: &HeadInputs| match of {
            HeadInputs::Made(numbers) => Some((plain(numbers)?, Source::Made)),
            HeadInputs::Of(input, map) => {
                (x, depth) = (plain(input)?, input.dims()[2]);
                Some((plain(map)?, Source::Map))
            }
        };
        let (beta, step) = match &self.b {
            Some(b) => numbers(b)?,
            None => (q.clone(), Source::Nothing),
        };
        let ((a, decay), [dt_bias, a_log], bound) = match &self.decay {
            Some(Decaying::Heads { a, dt_bias, a_log }) => {
                (numbers(a)?, [plain(dt_bias)?, plain(a_log)?], None)
            }
            Some(Decaying::Channels { a, dt_bias, a_log, bound }) => {
                ((plain(a)?, Source::Channels), [plain(dt_bias)?, plain(a_log)?], *bound)
            }
            None => ((q.clone(), Source::Nothing), [q.clone(), q.clone()], None),
        };
        let width = if decay == Source::Channels { n } else { 1 };
        let apart = (rows * n).next_multiple_of(ALIGNED);
        let log_at = 4 * apart;
        let packed_at = log_at + (rows * width).next_multiple_of(ALIGNED);
        let out = empty(&q, &[packed_at + rows * (width + 2 * n)]);
        let cubes = rows.div_ceil(SLOTS);
        let across = cubes.min(MOST_CUBES);
        prepare_kernel::launch(
            &out.client,
            CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 1),
            CubeDim::new_2d(LANES as u32, SLOTS as u32),
            q.clone().into_tensor_arg(),
            k.into_tensor_arg(),
            x.into_tensor_arg(),
            a.into_tensor_arg(),
            beta.into_tensor_arg(),
            dt_bias.into_tensor_arg(),
            a_log.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            self.gain as f32,
            self.most as f32,
            self.eps as f32,
            bound.unwrap_or_default() as f32,
            rows,
            t,
            h,
            h / self.heads,
            apart,
            log_at,
            packed_at,
            depth,
            n,
            Made { decay, step, bounded: bound.is_some() },
        );
        let part = |start: usize, columns: usize| {
            let part: CubeTensor = part_of(&out, start, [b, h, t, columns]);
            Burn::<4>::from_primitive::<CubeBackend>(part)
        };
        let key = |which: usize| part(which * apart, n);
        let transition = Transition::Householder { log_d: part(log_at, width), a: key(2), b: key(3) };
        let mut system = System::outer(transition, key(0), key(1), v.clone());
        system.packed = Some(part(packed_at, width + 2 * n));
        Some(system)
    }
}

/// Where numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Nothing,
    Made,
    Map,
    /// Made, one per channel
    Channels,
}

/// How decays and steps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Made {
    decay: Source,
    step: Source,
    bounded: bool,
}

impl Made {
    fn wide(self) -> bool {
        self.decay == Source::Channels
    }

    fn multiplied(self) -> bool {
        self.decay == Source::Map || self.step == Source::Map
    }
}

/// `out` holds queries, what is written, read and erased, `[b, h, t, n]` each and `apart` numbers after the one before;
/// from `log_at` on the logarithms of decays, `[b, h, t, 1 or n]`, and from `packed_at` on these, what is read and what is
/// erased, beside each other.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn prepare_kernel(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    x: &Tensor<f32>,
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    dt_bias: &Tensor<f32>,
    a_log: &Tensor<f32>,
    out: &mut Tensor<f32>,
    gain: f32,
    most: f32,
    eps: f32,
    bound: f32,
    rows: usize,
    time: usize,
    heads: usize,
    group: usize,
    apart: usize,
    log_at: usize,
    packed_at: usize,
    depth: usize,
    #[comptime] n: usize,
    #[comptime] made: Made,
) {
    let each = comptime!(n.div_ceil(LANES));
    let half = comptime!(LANES * SLOTS);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(4 * LANES * SLOTS));
    let lane = UNIT_POS_X as usize;
    let slot = UNIT_POS_Y as usize;
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let row = cube * SLOTS + slot;
    let here = row < rows;
    let token = row % time;
    let head = row / time % heads;
    let batch = row / time / heads;
    let column = head / group * n;
    let q_start = batch * q.stride(0) + token * q.stride(1);
    let k_start = batch * k.stride(0) + token * k.stride(1);
    let mut query = Array::<f32>::new(each);
    let mut key = Array::<f32>::new(each);
    let mut q_squares = f32::new(0.0);
    let mut k_squares = f32::new(0.0);
    #[unroll]
    for i in 0..each {
        let c = lane + i * LANES;
        query[i] = f32::new(0.0);
        key[i] = f32::new(0.0);
        if here && c < n {
            query[i] = q[q_start + (column + c) * q.stride(2)];
            key[i] = k[k_start + (column + c) * k.stride(2)];
        }
        q_squares += query[i] * query[i];
        k_squares += key[i] * key[i];
    }
    // Of the products that make a head's decay and step.
    let mut a_part = f32::new(0.0);
    let mut b_part = f32::new(0.0);
    if comptime!(made.multiplied()) {
        if here {
            for c in range_stepped(lane, depth, LANES) {
                let number = x[batch * x.stride(0) + token * x.stride(1) + c * x.stride(2)];
                if comptime!(made.decay == Source::Map) {
                    a_part += number * a[c * a.stride(0) + head * a.stride(1)];
                }
                if comptime!(made.step == Source::Map) {
                    b_part += number * b[c * b.stride(0) + head * b.stride(1)];
                }
            }
        }
        shared[2 * half + slot * LANES + lane] = a_part;
        shared[3 * half + slot * LANES + lane] = b_part;
    }
    shared[slot * LANES + lane] = q_squares;
    shared[half + slot * LANES + lane] = k_squares;
    sync_cube();
    let mut q_sum = f32::new(0.0);
    let mut k_sum = f32::new(0.0);
    for i in 0..LANES {
        q_sum += shared[slot * LANES + i];
        k_sum += shared[half + slot * LANES + i];
    }
    if here {
        let mut a_all = f32::new(0.0);
        let mut b_all = f32::new(0.0);
        if comptime!(made.multiplied()) {
            for i in 0..LANES {
                a_all += shared[2 * half + slot * LANES + i];
                b_all += shared[3 * half + slot * LANES + i];
            }
        }
        let a_start = batch * a.stride(0) + token * a.stride(1);
        if comptime!(made.decay == Source::Made) {
            a_all = a[a_start + head * a.stride(2)];
        }
        if comptime!(made.step == Source::Made) {
            b_all = b[batch * b.stride(0) + token * b.stride(1) + head * b.stride(2)];
        }
        let mut rate = f32::new(0.0);
        if comptime!(made.decay != Source::Nothing) {
            rate = f32::exp(a_log[head * a_log.stride(0)]);
        }
        let mut log = f32::new(0.0);
        if comptime!(made.decay == Source::Made || made.decay == Source::Map) {
            log = -(rate * softplus(a_all + dt_bias[head * dt_bias.stride(0)]));
        }
        let mut beta = most;
        if comptime!(made.step != Source::Nothing) {
            beta = most * sigmoid(b_all);
        }
        let decay = f32::exp(log);
        let width = comptime!(if made.wide() { n } else { 1 });
        let q_factor = gain / f32::sqrt(q_sum + eps);
        let k_factor = f32::new(1.0) / f32::sqrt(k_sum + eps);
        let packed = packed_at + row * comptime!(width + 2 * n);
        if comptime!(!made.wide()) {
            if lane == 0 {
                out[log_at + row] = log;
                out[packed] = log;
            }
        }
        #[unroll]
        for i in 0..each {
            let c = lane + i * LANES;
            if c < n {
                let unit = key[i] * k_factor;
                let write = unit * beta;
                let to = row * n + c;
                let mut read = unit;
                let mut erase = -(write * decay);
                if comptime!(made.wide()) {
                    let channel = head * n + c;
                    let z = a[a_start + channel * a.stride(2)] + dt_bias[channel * dt_bias.stride(0)];
                    let mut log = -(rate * softplus(z));
                    if comptime!(made.bounded) {
                        log = -(bound * sigmoid(rate * z));
                    }
                    out[log_at + to] = log;
                    out[packed + c] = log;
                    read = unit * f32::exp(log);
                    erase = -write;
                }
                out[to] = query[i] * q_factor;
                out[apart + to] = write;
                out[2 * apart + to] = read;
                out[3 * apart + to] = erase;
                out[packed + width + c] = read;
                out[packed + comptime!(width + n) + c] = erase;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::{delta_system, kda_system};
    use crate::nn::{
        Normalize, Scaling, Steps, repeat_heads, scaled_sigmoid, softplus as plain_softplus, split_heads,
    };
    use crate::system::{Form, Io, engine};
    use crate::testing::{Draw, gap, graphics};

    /// In tensor operations.
    fn apart(x: DeltaRule, v: Burn<4>) -> System {
        let [b, h, t, _] = v.dims();
        let unit = |y, gain| {
            let norm = Normalize::plain(Scaling { gain, ..Scaling::l2(x.eps) });
            repeat_heads(norm.run(split_heads(y, x.heads), None), h / x.heads)
        };
        let (q, k) = (unit(x.q, x.gain), unit(x.k, 1.0));
        let made = |of| match of {
            HeadInputs::Made(made) => made,
            HeadInputs::Of(x, map) => x.matmul(map.unsqueeze()),
        };
        let beta = match x.b {
            Some(b) => scaled_sigmoid(made(b), x.most).swap_dims(1, 2),
            None => Burn::full([b, h, t], x.most, &v.device()),
        };
        let log = match x.decay {
            Some(Decaying::Heads { a, dt_bias, a_log }) => {
                Steps::ALL.decays(made(a), dt_bias, a_log).swap_dims(1, 2)
            }
            Some(Decaying::Channels { a, dt_bias, a_log, bound }) => {
                let z = split_heads(a + dt_bias.unsqueeze(), h);
                let rate = a_log.exp().reshape([1, h, 1, 1]);
                let log = match bound {
                    Some(bound) => scaled_sigmoid(z * rate, 1.0).mul_scalar(-bound),
                    None => plain_softplus(z) * rate.neg(),
                };
                return kda_system(log, beta, q, k, v);
            }
            None => Burn::zeros([b, h, t], &v.device()),
        };
        delta_system(log, beta, q, k, v)
    }

    fn householder(system: System) -> [Burn<4>; 5] {
        let (Transition::Householder { log_d, a, b }, Io::Outer { q, k, .. }) =
            (system.transition, system.io)
        else {
            panic!("it is a delta rule")
        };
        [log_d, a, b, q, k]
    }

    #[test]
    fn it_is_the_rule_in_tensor_operations() {
        for device in graphics() {
            for (b, t, heads, group, n) in
                [(1, 1, 1, 1, 1), (2, 5, 3, 2, 20), (1, 70, 2, 1, 32), (2, 3, 1, 3, 100)]
            {
                let mut draw = Draw::new(n as u64);
                let h = heads * group;
                let mut wide = |width| draw.tensor::<3>([b, t, width], -2.0, 2.0).to_device(&device);
                let (q, k, made) = (wide(heads * n), wide(heads * n), [wide(h), wide(h)]);
                let of_channels = wide(h * n);
                let biases = draw.tensor::<1>([h * n], -1.0, 1.0).to_device(&device);
                let [dt_bias, a_log] = [0, 1].map(|_| draw.tensor::<1>([h], -1.0, 1.0).to_device(&device));
                let x = draw.tensor::<3>([t, b, 41], -1.0, 1.0).to_device(&device).swap_dims(0, 1);
                let maps = [false, true].map(|turned| {
                    let sizes = if turned { [h, 41] } else { [41, h] };
                    let map = draw.tensor::<2>(sizes, -0.3, 0.3).to_device(&device);
                    if turned { map.transpose() } else { map }
                });
                let v = draw.tensor::<4>([b, h, t, 7], -1.0, 1.0).to_device(&device);
                let memory = draw.tensor::<4>([b, h, n, 7], -1.0, 1.0).to_device(&device);
                let multiplied = maps.map(|map| HeadInputs::Of(x.clone(), map));
                for [a, step] in [made.map(HeadInputs::Made), multiplied] {
                    let (dt_bias, a_log) = (dt_bias.clone(), a_log.clone());
                    let heads_decay = Decaying::Heads { a, dt_bias, a_log: a_log.clone() };
                    let channels_decay = [None, Some(5.0)].map(|bound| {
                        let (a, dt_bias) = (of_channels.clone(), biases.clone());
                        Decaying::Channels { a, dt_bias, a_log: a_log.clone(), bound }
                    });
                    let decays = channels_decay.into_iter().chain([heads_decay]).map(Some).chain([None]);
                    let steps = decays.map(|decay| (decay, Some(step.clone())));
                    for (decay, step) in steps.chain([(None, None)]) {
                        let (q, k) = (q.clone(), k.clone());
                        let rule = DeltaRule { q, k, b: step, decay, heads, gain: 0.3, most: 2.0, eps: 1e-6 };
                        check(rule, &v, &memory);
                    }
                }
            }
        }
    }

    fn check(rule: DeltaRule, v: &Burn<4>, memory: &Burn<4>) {
        let found = rule.system(v).expect("it is for the kernel");
        let expected = apart(rule.clone(), v.clone());
        let run = |system| engine::run(system, memory.clone(), Form::Auto).unwrap();
        let (y, last) = run(found.clone());
        let (y_expected, last_expected) = run(expected.clone());
        assert!(gap(y, y_expected) <= 1e-5 && gap(last, last_expected) <= 1e-5, "{:?}", v.dims());
        for (found, expected) in householder(found).into_iter().zip(householder(expected)) {
            assert_eq!(found.dims(), expected.dims());
            assert!(gap(found, expected) <= 1e-5, "{:?}", v.dims());
        }
        let leaf = rule.q.clone().autodiff().require_grad();
        assert!(DeltaRule { q: leaf, ..rule }.system(v).is_none());
    }
}
