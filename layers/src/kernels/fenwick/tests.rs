//! The kernel against the memories token by token: positions, lengths and sizes of any kind, values and all gradients.

use burn::tensor::{DType, Tensor};
use proptest::prelude::*;

use super::{Places, run};
use crate::linear::{LogLinearInputs, bits, log_linear};
use crate::system::{Form, Lengths};
use crate::testing::{Draw, error, numbers, properties};

#[derive(Clone)]
struct Inputs {
    given: LogLinearInputs,
    buckets: Option<Tensor<5>>,
    starts: Vec<usize>,
    lengths: Lengths,
}

/// Heads, tokens, numbers of keys and values, levels; rows that start and end at these tokens.
fn inputs([h, t, n, p, levels]: [usize; 5], rows: &[(usize, usize)], seed: u64) -> Inputs {
    let b = rows.len();
    let mut draw = Draw::new(seed);
    let mut random = |dims: [usize; 4], from: f64| draw.tensor::<4>(dims, from, 1.0).cast(DType::F64);
    let given = LogLinearInputs {
        q: random([b, h, t, n], -1.0),
        k: random([b, h, t, n], -1.0),
        v: random([b, h, t, p], -1.0),
        log_a: random([b, h, t, 1], 0.0).mul_scalar(-0.3).squeeze_dim(3),
        scales: random([b, h, t, levels], 0.1),
    };
    let (starts, ends): (Vec<usize>, Vec<usize>) = rows.iter().copied().unzip();
    let count = bits(starts.iter().copied().max().unwrap_or(0));
    let buckets = (count > 0).then(|| random([b, h * count, n, p], -1.0).reshape([b, h, count, n, p]));
    Inputs { given, buckets, starts, lengths: Lengths(ends) }
}

type Found = Vec<(&'static str, Vec<f64>)>;

impl Inputs {
    fn map(
        &self,
        four: impl Fn(Tensor<4>) -> Tensor<4>,
        three: impl Fn(Tensor<3>) -> Tensor<3>,
        five: impl Fn(Tensor<5>) -> Tensor<5>,
    ) -> Self {
        let LogLinearInputs { q, k, v, log_a, scales } = self.given.clone();
        let [q, k, v, scales] = [q, k, v, scales].map(four);
        let given = LogLinearInputs { q, k, v, log_a: three(log_a), scales };
        Self { given, buckets: self.buckets.clone().map(five), ..self.clone() }
    }

    fn cast(&self, dtype: DType) -> Self {
        self.map(|x| x.cast(dtype), |x| x.cast(dtype), |x| x.cast(dtype))
    }

    fn real(&self) -> Vec<usize> {
        let t = self.given.k.dims()[2];
        self.lengths.0.iter().map(|&length| length.min(t)).collect()
    }

    fn plain(&self) -> (Tensor<4>, Tensor<5>) {
        let lengths = Some(&self.lengths);
        let found =
            log_linear(self.given.clone(), self.buckets.clone(), &self.starts, lengths, Form::Recurrent);
        let (y, last) = found.unwrap();
        (y, last.unwrap())
    }

    fn fused(&self) -> (Tensor<4>, Tensor<5>) {
        let real = self.real();
        let new = self.starts.iter().zip(&real).map(|(start, real)| bits(start + real)).max().unwrap();
        let buckets = [self.buckets.as_ref().map_or(0, |x| x.dims()[2]), new];
        let places = Places { starts: self.starts.clone(), real, buckets };
        run(&self.given, self.buckets.as_ref(), &places).expect("they are for the kernel")
    }

    /// Outputs that are no padding, buckets and the gradients of all inputs, weighed differently everywhere.
    fn everything(&self, run: impl FnOnce(&Self) -> (Tensor<4>, Tensor<5>)) -> Found {
        let inputs = self.map(
            |x| x.autodiff().require_grad(),
            |x| x.autodiff().require_grad(),
            |x| x.autodiff().require_grad(),
        );
        let (y, last) = run(&inputs);
        let t = y.dims()[2];
        let valid =
            self.lengths.valid(t, &y.device().inner(), y.dtype()).unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(3);
        let y = y * valid;
        let cotangent = Draw::new(91).tensor::<4>(y.dims(), -1.0, 1.0).cast(y.dtype());
        let dims = last.dims();
        let other = Draw::new(92).tensor::<5>(dims, -1.0, 1.0).cast(y.dtype());
        let grads = ((y.clone() * cotangent).sum() + (last.clone() * other).sum()).backward();
        let LogLinearInputs { q, k, v, log_a, scales } = &inputs.given;
        let four = [("dq", q), ("dk", k), ("dv", v), ("dλ", scales)]
            .map(|(name, x)| (name, numbers(x.grad(&grads).expect("a gradient"))));
        // The very first token has nothing that fades.
        let none = || vec![0.0; log_a.shape().num_elements()];
        let mut all = vec![("y", numbers(y)), ("buckets", numbers(last))];
        all.extend(four);
        all.push(("dlog a", log_a.grad(&grads).map_or_else(none, numbers)));
        all.extend(inputs.buckets.iter().map(|x| ("dbuckets", numbers(x.grad(&grads).expect("a gradient")))));
        all
    }
}

fn check(sizes: [usize; 5], rows: &[(usize, usize)], seed: u64) {
    let double = inputs(sizes, rows, seed);
    let expected = double.everything(Inputs::plain);
    for (inputs, limits) in [(double.clone(), [1e-11; 2]), (double.cast(DType::F32), [1e-5, 1e-4])] {
        for (i, ((name, found), (_, expected))) in
            inputs.everything(Inputs::fused).iter().zip(&expected).enumerate()
        {
            let (off, limit) = (error(found, expected), limits[usize::from(i >= 2)]);
            let kind = inputs.given.q.dtype();
            assert!(off <= limit, "{name}: off by {off:e}, {kind:?}, {sizes:?}, {rows:?}");
        }
    }
}

#[test]
fn it_is_the_memories_at_every_size() {
    for t in [1, 2, 7, 63, 64, 65, 128, 150] {
        for start in [0, 1, 5, 64, 70, 127] {
            check([1, t, 4, 3, 5], &[(start, t)], t as u64);
        }
    }
    // More blocks than share what is kept.
    check([1, 1100, 2, 3, 12], &[(40, 1100)], 1);
}

#[test]
fn rows_stand_and_end_anywhere() {
    check([2, 70, 5, 17, 4], &[(0, 70), (3, 20), (100, 64), (64, 0)], 1);
    check([3, 20, 16, 20, 1], &[(0, 0), (0, 3)], 2);
    check([1, 1, 3, 2, 15], &[(0, 1), (63, 1), (65, 0)], 3);
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn it_is_that_whatever_is_asked(
        sizes in [1usize..3, 1usize..150, 1usize..12, 1usize..20, 1usize..10],
        rows in proptest::collection::vec((0usize..200, 0usize..150), 1..3),
        seed in any::<u64>(),
    ) {
        let t = sizes[1];
        prop_assume!(rows.iter().any(|(start, length)| start + length > 0));
        check(sizes, &rows.iter().map(|&(start, length)| (start, length.min(t))).collect::<Vec<_>>(), seed);
    }
}

/// Parts of a projection, heads behind tokens, reversed time, turned buckets.
#[test]
fn inputs_may_lie_in_any_order() {
    let mut draw = Draw::new(5);
    let mut random = |dims| draw.tensor::<4>(dims, -1.0, 1.0).cast(DType::F64);
    let (whole, turned) = (random([2, 70, 3, 40]).swap_dims(1, 2), random([2, 3, 6, 70]));
    let part = |first, width| whole.clone().narrow(3, first, width);
    let buckets = random([2, 3 * 3, 6, 7]).swap_dims(2, 3).reshape([2, 3, 3, 7, 6]);
    let views = Inputs {
        given: LogLinearInputs {
            q: part(0, 7),
            k: part(7, 7).flip([2]),
            v: turned.swap_dims(2, 3),
            log_a: part(20, 1).squeeze_dim::<3>(3).abs().neg(),
            scales: part(30, 4),
        },
        buckets: Some(buckets),
        starts: vec![5, 6],
        lengths: Lengths(vec![70, 41]),
    };
    let expected = views
        .map(
            |x| Tensor::from_data(x.clone().into_data(), (&x.device(), x.dtype())),
            |x| Tensor::from_data(x.clone().into_data(), (&x.device(), x.dtype())),
            |x| x,
        )
        .everything(Inputs::plain);
    for ((name, found), (_, expected)) in views.everything(Inputs::fused).iter().zip(&expected) {
        let off = error(found, expected);
        assert!(off <= 1e-11, "{name}: off by {off:e}");
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let ok = inputs([2, 5, 4, 3, 2], &[(3, 5)], 1);
    let places = Places { starts: vec![3], real: vec![5], buckets: [2, 4] };
    let declines =
        |inputs: &Inputs, places: &Places| run(&inputs.given, inputs.buckets.as_ref(), places).is_none();
    assert!(!declines(&ok, &places));
    assert!(declines(&ok, &Places { buckets: [3, 4], ..places.clone() }));
    assert!(declines(&Inputs { buckets: None, ..ok.clone() }, &places));
    assert!(declines(&ok.cast(DType::F16), &places));
    let mut narrow = ok;
    narrow.given.q = narrow.given.q.narrow(3, 0, 2);
    assert!(declines(&narrow, &places));
}
