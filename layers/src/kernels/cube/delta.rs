//! What the gated delta rule makes of its projections before the recurrence reads them, without gradients: some units
//! take a token of a head together.
//!
//! ```text
//! q = gain q / |q|,   k = k / |k|,   β = most sigmoid(b)
//! log d = -exp(A_log) softplus(a + dt_bias),   write = β k,   erase = -e^{log d} write
//! ```
//!
//! Floor: memory, in one launch instead of seven, or of nine where it also makes `a` and `b`, a few numbers per token. What is multiplied into the memory, `log d`, `k` and `erase`, is also
//! written as the recurrence's kernel reads it, beside each other, in place of a launch that packs them.

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

/// `a` and `b` of every value head; each head of `q` and `k` is for some in a row.
#[derive(Clone, Debug)]
pub(crate) enum HeadInputs {
    /// `[b, t, h]` each
    Made([Burn<3>; 2]),
    /// `x W_a` and `x W_b` of `x: [b, t, d]`, which the kernel makes: `[d, h]` each
    Of(Burn<3>, [Burn<2>; 2]),
}

/// Projections of the gated delta rule, and its parameters.
#[derive(Clone, Debug)]
pub(crate) struct GatedDelta {
    /// `[b, t, heads n]`
    pub(crate) q: Burn<3>,
    /// `[b, t, heads n]`
    pub(crate) k: Burn<3>,
    /// What decays and steps are made of
    pub(crate) of_heads: HeadInputs,
    /// `[h]`
    pub(crate) dt_bias: Burn<1>,
    /// `[h]`
    pub(crate) a_log: Burn<1>,
    /// Query heads
    pub(crate) heads: usize,
    /// Length of a query
    pub(crate) gain: f64,
    /// Largest `β`
    pub(crate) most: f64,
    /// Added to sums of squares
    pub(crate) eps: f64,
}

impl GatedDelta {
    /// The system that writes `v: [b, h, t, p]`; `None` where these are not for the kernel: gradients, another device or
    /// element type, large keys.
    pub(crate) fn system(&self, v: &Burn<4>) -> Option<System> {
        let ([b, t, width], h) = (self.q.dims(), self.dt_bias.dims()[0]);
        let (n, rows) = (width / self.heads, b * h * t);
        if !(1..=MOST).contains(&n) || rows == 0 || rows >= 1 << 24 {
            return None;
        }
        let [q, k] = [&self.q, &self.k].map(plain);
        let [dt_bias, a_log] = [&self.dt_bias, &self.a_log].map(plain);
        let q = q?;
        // In place of what is not multiplied: it is not read.
        let (x, depth, [a, beta]) = match &self.of_heads {
            HeadInputs::Made(both) => (q.clone(), 0, both.each_ref().map(plain)),
            HeadInputs::Of(x, maps) => (plain(x)?, x.dims()[2], maps.each_ref().map(plain)),
        };
        let apart = (rows * n).next_multiple_of(ALIGNED);
        let log_at = 4 * apart;
        let packed_at = log_at + rows.next_multiple_of(ALIGNED);
        let out = empty(&q, &[packed_at + rows * (1 + 2 * n)]);
        let cubes = rows.div_ceil(SLOTS);
        let across = cubes.min(MOST_CUBES);
        prepare_kernel::launch(
            &out.client,
            CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 1),
            CubeDim::new_2d(LANES as u32, SLOTS as u32),
            q.clone().into_tensor_arg(),
            k?.into_tensor_arg(),
            x.into_tensor_arg(),
            a?.into_tensor_arg(),
            beta?.into_tensor_arg(),
            dt_bias?.into_tensor_arg(),
            a_log?.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            self.gain as f32,
            self.most as f32,
            self.eps as f32,
            rows,
            t,
            h / self.heads,
            apart,
            log_at,
            packed_at,
            depth,
            n,
            depth > 0,
        );
        let part = |start: usize, columns: usize| {
            let part: CubeTensor = part_of(&out, start, [b, h, t, columns]);
            Burn::<4>::from_primitive::<CubeBackend>(part)
        };
        let key = |which: usize| part(which * apart, n);
        let transition = Transition::Householder { log_d: part(log_at, 1), a: key(2), b: key(3) };
        let mut system = System::outer(transition, key(0), key(1), v.clone());
        system.packed = Some(part(packed_at, 1 + 2 * n));
        Some(system)
    }
}

/// `out` holds queries, what is written, keys and what is erased, `[b, h, t, n]` each and `apart` numbers after the one
/// before; from `log_at` on the logarithms of decays, `[b, h, t]`, and from `packed_at` on `[b, h, t, 1 + 2 n]`.
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
    rows: usize,
    time: usize,
    group: usize,
    apart: usize,
    log_at: usize,
    packed_at: usize,
    depth: usize,
    #[comptime] n: usize,
    #[comptime] multiplied: bool,
) {
    let each = comptime!(n.div_ceil(LANES));
    let half = comptime!(LANES * SLOTS);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(4 * LANES * SLOTS));
    let lane = UNIT_POS_X as usize;
    let slot = UNIT_POS_Y as usize;
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let row = cube * SLOTS + slot;
    let here = row < rows;
    let heads = dt_bias.shape(0);
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
    if comptime!(multiplied) {
        if here {
            for c in range_stepped(lane, depth, LANES) {
                let number = x[batch * x.stride(0) + token * x.stride(1) + c * x.stride(2)];
                a_part += number * a[c * a.stride(0) + head * a.stride(1)];
                b_part += number * b[c * b.stride(0) + head * b.stride(1)];
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
        if comptime!(multiplied) {
            for i in 0..LANES {
                a_all += shared[2 * half + slot * LANES + i];
                b_all += shared[3 * half + slot * LANES + i];
            }
        } else {
            a_all = a[batch * a.stride(0) + token * a.stride(1) + head * a.stride(2)];
            b_all = b[batch * b.stride(0) + token * b.stride(1) + head * b.stride(2)];
        }
        let z = a_all + dt_bias[head * dt_bias.stride(0)];
        let log = -(f32::exp(a_log[head * a_log.stride(0)]) * softplus(z));
        let beta = most * sigmoid(b_all);
        let decay = f32::exp(log);
        let q_factor = gain / f32::sqrt(q_sum + eps);
        let k_factor = f32::new(1.0) / f32::sqrt(k_sum + eps);
        let packed = packed_at + row * comptime!(1 + 2 * n);
        if lane == 0 {
            out[log_at + row] = log;
            out[packed] = log;
        }
        #[unroll]
        for i in 0..each {
            let c = lane + i * LANES;
            if c < n {
                let unit = key[i] * k_factor;
                let write = unit * beta;
                let erase = -(write * decay);
                let to = row * n + c;
                out[to] = query[i] * q_factor;
                out[apart + to] = write;
                out[2 * apart + to] = unit;
                out[3 * apart + to] = erase;
                out[packed + 1 + c] = unit;
                out[packed + comptime!(1 + n) + c] = erase;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::delta_system;
    use crate::nn::{Normalize, Scaling, Steps, repeat_heads, scaled_sigmoid, split_heads};
    use crate::system::{Form, Io, engine};
    use crate::testing::{Draw, gap, graphics};

    /// In tensor operations.
    fn apart(x: GatedDelta, v: Burn<4>) -> System {
        let group = v.dims()[1] / x.heads;
        let unit = |y, gain| {
            let norm = Normalize::plain(Scaling { gain, ..Scaling::l2(x.eps) });
            repeat_heads(norm.run(split_heads(y, x.heads), None), group)
        };
        let (q, k) = (unit(x.q, x.gain), unit(x.k, 1.0));
        let [a, b] = match x.of_heads {
            HeadInputs::Made(both) => both,
            HeadInputs::Of(x, maps) => maps.map(|map| x.clone().matmul(map.unsqueeze())),
        };
        let log = Steps::ALL.decays(a, x.dt_bias, x.a_log).swap_dims(1, 2);
        delta_system(log, scaled_sigmoid(b, x.most).swap_dims(1, 2), q, k, v)
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
                let (q, k, a, beta) = (wide(heads * n), wide(heads * n), wide(h), wide(h));
                let [dt_bias, a_log] = [0, 1].map(|_| draw.tensor::<1>([h], -1.0, 1.0).to_device(&device));
                let x = draw.tensor::<3>([t, b, 41], -1.0, 1.0).to_device(&device).swap_dims(0, 1);
                let maps = [false, true].map(|turned| {
                    let sizes = if turned { [h, 41] } else { [41, h] };
                    let map = draw.tensor::<2>(sizes, -0.3, 0.3).to_device(&device);
                    if turned { map.transpose() } else { map }
                });
                let v = draw.tensor::<4>([b, h, t, 7], -1.0, 1.0).to_device(&device);
                let memory = draw.tensor::<4>([b, h, n, 7], -1.0, 1.0).to_device(&device);
                let of_heads = HeadInputs::Made([a, beta]);
                let made =
                    GatedDelta { q, k, of_heads, dt_bias, a_log, heads, gain: 0.3, most: 2.0, eps: 1e-6 };
                let multiplied = GatedDelta { of_heads: HeadInputs::Of(x, maps), ..made.clone() };
                for rule in [made, multiplied] {
                    let found = rule.system(&v).expect("it is for the kernel");
                    let expected = apart(rule.clone(), v.clone());
                    let run = |system| engine::run(system, memory.clone(), Form::Auto).unwrap();
                    let (y, last) = run(found.clone());
                    let (y_expected, last_expected) = run(expected.clone());
                    assert!(gap(y, y_expected) <= 1e-5 && gap(last, last_expected) <= 1e-5, "{t} {n}");
                    for (found, expected) in householder(found).into_iter().zip(householder(expected)) {
                        assert_eq!(found.dims(), expected.dims());
                        assert!(gap(found, expected) <= 1e-5, "{t} {n}");
                    }
                    let leaf = rule.q.clone().autodiff().require_grad();
                    assert!(GatedDelta { q: leaf, ..rule }.system(&v).is_none());
                }
            }
        }
    }
}
