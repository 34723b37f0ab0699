//! One token of any recurrence with a matrix state, in one pass over the state:
//!
//! ```text
//! H ← diag(e^{log a}) H + b (aᵀ H) + k vᵀ,   y = Hᵀ q
//! ```
//!
//! It has no backward pass: where gradients are wanted, the recurrent form of plain tensor operations runs. Floor:
//! memory, the state is read once (twice with a rank-one part) and written once.

use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::vector::{Vector, add_scaled, vectors};
use super::view::{Double, Number, View, computes, view};
use crate::system::Transition;

/// Numbers of all states together from which on several threads are worth waking.
const LARGE: usize = 1 << 18;

/// `y: [b, h, 1, p]` and the next memory of one token, `q`, `k`: `[b, h, 1, n]`, `v: [b, h, 1, p]`; `None` where it is
/// not for this kernel: more tokens, gradients, another device or element type, a dense transition.
pub(crate) fn step(
    transition: &Transition,
    [q, k, v]: [&Tensor<4>; 3],
    memory: &Tensor<4>,
) -> Option<(Tensor<4>, Tensor<4>)> {
    let [b, h, n, p] = memory.dims();
    let (keys, values) = ([b, h, 1, n], [b, h, 1, p]);
    let mut decay = None;
    let mut rank_one = Vec::new();
    match transition {
        Transition::Identity => {}
        Transition::Scalar { log_a } => decay = Some(log_a.clone().unsqueeze_dim::<4>(3)),
        Transition::Diagonal { log_a } => decay = Some(log_a.clone()),
        Transition::Householder { log_d, a, b } => {
            decay = Some(log_d.clone());
            rank_one = vec![a.clone(), b.clone()];
        }
        Transition::Dense { .. } => return None,
    }
    let shapes = q.dims() == keys
        && k.dims() == keys
        && v.dims() == values
        && rank_one.iter().all(|x| x.dims() == keys)
        && decay
            .as_ref()
            .is_none_or(|x| x.dims().iter().zip(keys).all(|(&size, all)| size == all || size == 1));
    let same = [q, k, v].into_iter().chain(&rank_one).chain(&decay).all(|x| x.dtype() == memory.dtype());
    let here = matches!(memory.device().as_dispatch(), DispatchDevice::Flex(_))
        && [q, k, v].into_iter().chain(&rank_one).chain(&decay).all(|x| x.device() == memory.device());
    if !(shapes && same && here && computes(memory.dtype()) && b * h * n * p > 0) {
        return None;
    }
    let decay = decay.map(|x| x.expand(keys));
    let inputs = [Some(q.clone()), Some(k.clone()), Some(v.clone()), Some(memory.clone()), decay];
    let inputs = inputs.into_iter().chain([rank_one.first().cloned(), rank_one.get(1).cloned()]);
    match memory.dtype() {
        DType::F32 => step_in::<f32>(inputs, [b, h, n, p]),
        DType::F64 => step_in::<Double>(inputs, [b, h, n, p]),
        _ => None,
    }
}

fn step_in<E: Number + Vector>(
    inputs: impl Iterator<Item = Option<Tensor<4>>>,
    [b, h, n, p]: [usize; 4],
) -> Option<(Tensor<4>, Tensor<4>)> {
    let mut found = Vec::with_capacity(7);
    for input in inputs {
        found.push(match input {
            Some(input) => Some(input.try_into_primitive::<Flex>().ok()?),
            None => None,
        });
    }
    let mut views = found.iter().map(|x| x.as_ref().map(view::<E>));
    let mut next = || views.next().flatten();
    let (q, k, v, memory) = (next()?, next()?, next()?, next()?);
    let token = Token { q, k, v, memory, decay: next(), a: next(), b: next() };
    let (mut y, mut out) = (vec![E::default(); b * h * p], vec![E::default(); b * h * n * p]);
    let run = |(head, (y, out)): (usize, (&mut [E], &mut [E]))| advance(&token, head, y, out);
    if out.len() >= LARGE {
        y.par_chunks_mut(p).zip(out.par_chunks_mut(n * p)).enumerate().for_each(run);
    } else {
        y.chunks_mut(p).zip(out.chunks_mut(n * p)).enumerate().for_each(run);
    }
    let tensor = |numbers, dims: [usize; 4]| Tensor::from_primitive::<Flex>(E::tensor(numbers, &dims));
    Some((tensor(y, [b, h, 1, p]), tensor(out, [b, h, n, p])))
}

/// What one token reads.
struct Token<'a, E> {
    q: View<'a, E>,
    k: View<'a, E>,
    v: View<'a, E>,
    memory: View<'a, E>,
    decay: Option<View<'a, E>>,
    a: Option<View<'a, E>>,
    b: Option<View<'a, E>>,
}

vectors! {
    fn advance = advance_head(token: &Token<'_, E>, head: usize, y: &mut [E], out: &mut [E])
}

/// One head: `y: [p]`, `out: [n, p]`, both full of zeros.
#[inline(always)]
fn advance_head<E: Vector, const FUSED: bool>(token: &Token<'_, E>, head: usize, y: &mut [E], out: &mut [E]) {
    let p = y.len();
    let one = |view: &View<'_, E>, count: usize| -> Vec<E> {
        let mut row = vec![E::default(); count];
        view.head(head).copy(0, 0, &mut row);
        row
    };
    let n = out.len() / p;
    let (q, k, v) = (one(&token.q, n), one(&token.k, n), one(&token.v, p));
    let memory = token.memory.head(head);
    let mut space = vec![E::default(); p];
    let mut read = vec![E::default(); p];
    let rank_one = token.a.as_ref().zip(token.b.as_ref()).map(|(a, b)| (one(a, n), one(b, n)));
    if let Some((a, _)) = &rank_one {
        for (i, &a) in a.iter().enumerate() {
            add_scaled::<E, FUSED, 1>(&mut read, [a], [memory.some(i, 0, p, &mut space)]);
        }
    }
    let decay = token.decay.as_ref().map(|decay| one(decay, n));
    for (i, out) in out.chunks_exact_mut(p).enumerate() {
        let factor = decay.as_ref().map_or(E::of(1.0), |decay| decay[i].exponential::<FUSED>());
        let before = memory.some(i, 0, p, &mut space);
        match &rank_one {
            Some((_, b)) => add_scaled::<E, FUSED, 3>(out, [factor, b[i], k[i]], [before, &read, &v]),
            None => add_scaled::<E, FUSED, 2>(out, [factor, k[i]], [before, &v]),
        }
        add_scaled::<E, FUSED, 1>(y, [q[i]], [out]);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::system::{Form, System, engine};
    use crate::testing::{Draw, error, gap, numbers};

    fn transitions(draw: &mut Draw, [b, h, n]: [usize; 3]) -> [Transition; 5] {
        let mut rows = |width, low: f64, high: f64| draw.tensor::<4>([b, h, 1, width], low, high);
        [
            Transition::Identity,
            Transition::Scalar { log_a: rows(1, -2.0, 0.0).squeeze_dim(3) },
            Transition::Diagonal { log_a: rows(n, -2.0, 0.0) },
            Transition::Householder {
                log_d: rows(1, -2.0, 0.0),
                a: rows(n, -1.0, 1.0),
                b: rows(n, -1.0, 1.0),
            },
            Transition::Householder {
                log_d: rows(n, -2.0, 0.0),
                a: rows(n, -1.0, 1.0),
                b: rows(n, -1.0, 1.0),
            },
        ]
    }

    #[test]
    fn a_token_is_one_step_of_the_recurrence() {
        let mut draw = Draw::new(1);
        // The last one is large enough for several threads.
        for [b, h, n, p] in [[1, 1, 1, 1], [2, 3, 5, 7], [1, 2, 33, 16], [2, 32, 64, 65]] {
            for transition in transitions(&mut draw, [b, h, n]) {
                let mut random = |dims| draw.tensor::<4>(dims, -1.0, 1.0);
                let (q, k, v) = (random([b, h, 1, n]), random([b, h, 1, n]), random([b, h, 1, p]));
                // Where it lies must not matter.
                let memory = random([b, h, p, n]).swap_dims(2, 3);
                let (y, next) = step(&transition, [&q, &k, &v], &memory).expect("it is for the kernel");
                let system = System::outer(transition, q, k, v);
                let (expected, last) = engine::run_with(system, memory, Form::Recurrent, false).unwrap();
                assert!(gap(y, expected) < 1e-5 && gap(next, last) < 1e-5, "{b} {h} {n} {p}");
            }
        }
    }

    #[test]
    fn doubles_are_exact() {
        let mut draw = Draw::new(2);
        for transition in transitions(&mut draw, [2, 3, 5]) {
            let mut random = |dims| draw.tensor::<4>(dims, -1.0, 1.0).cast(DType::F64);
            let io = [random([2, 3, 1, 5]), random([2, 3, 1, 5]), random([2, 3, 1, 4]), random([2, 3, 5, 4])];
            let cast = |x: Tensor<4>| x.cast(DType::F64);
            let transition = match transition {
                Transition::Scalar { log_a } => Transition::Scalar { log_a: log_a.cast(DType::F64) },
                Transition::Diagonal { log_a } => Transition::Diagonal { log_a: cast(log_a) },
                Transition::Householder { log_d, a, b } => {
                    Transition::Householder { log_d: cast(log_d), a: cast(a), b: cast(b) }
                }
                other => other,
            };
            let [q, k, v, memory] = io;
            let (y, next) = step(&transition, [&q, &k, &v], &memory).expect("it is for the kernel");
            let system = System::outer(transition, q, k, v);
            let (expected, last) = engine::run_with(system, memory, Form::Recurrent, false).unwrap();
            assert!(error(&numbers(y), &numbers(expected)) < 1e-13);
            assert!(error(&numbers(next), &numbers(last)) < 1e-13);
        }
    }

    #[test]
    fn what_it_is_not_for_is_left_alone() {
        let mut draw = Draw::new(3);
        let mut random = |dims| draw.tensor::<4>(dims, -1.0, 1.0);
        let (q, v, memory) = (random([1, 2, 1, 3]), random([1, 2, 1, 4]), random([1, 2, 3, 4]));
        let run = |q: &Tensor<4>, v: &Tensor<4>, memory: &Tensor<4>| {
            step(&Transition::Identity, [q, q, v], memory).is_some()
        };
        assert!(run(&q, &v, &memory));
        let tracked = |x: &Tensor<4>| x.clone().autodiff();
        assert!(!run(&tracked(&q), &tracked(&v), &tracked(&memory)));
        assert!(!run(&q, &v, &memory.clone().cast(DType::F64)));
        let half = |x: &Tensor<4>| x.clone().cast(DType::F16);
        assert!(!run(&half(&q), &half(&v), &half(&memory)));
        let two = random([1, 2, 2, 3]);
        assert!(!run(&two, &random([1, 2, 2, 4]), &memory));
        let none = Tensor::<4>::zeros([0, 2, 1, 3], &Device::flex());
        assert!(!run(&none, &none, &Tensor::zeros([0, 2, 3, 3], &Device::flex())));
        let lambda = random([1, 2, 3, 3]).unsqueeze_dim::<5>(2);
        assert!(step(&Transition::Dense { lambda }, [&q, &q, &v], &memory).is_none());
    }
}
