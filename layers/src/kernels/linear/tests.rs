//! The kernels against products of tensors in double precision.

use burn::tensor::{DType, Tensor};
use proptest::prelude::*;

use super::flex::run;
use crate::testing::{Draw, error, numbers, properties};

fn check([rows, n, m]: [usize; 3], turned: bool, biased: bool, seed: u64) {
    let mut draw = Draw::new(seed);
    let x = draw.tensor::<2>([rows, n], -1.0, 1.0);
    let weight = if turned {
        draw.tensor::<2>([m, n], -1.0, 1.0).transpose()
    } else {
        // A part of something wider.
        draw.tensor::<2>([n, m + 3], -1.0, 1.0).narrow(1, 2, m)
    };
    let bias = biased.then(|| draw.tensor::<1>([m], -1.0, 1.0));
    for (dtype, limit) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
        let (x, weight) = (x.clone().cast(dtype), weight.clone().cast(dtype));
        let bias = bias.clone().map(|bias| bias.cast(dtype));
        let found = run(&x, &weight, bias.as_ref()).expect("it is for the kernel");
        let expected = x.cast(DType::F64).matmul(weight.cast(DType::F64));
        let expected = match bias {
            Some(bias) => expected + bias.cast(DType::F64).unsqueeze(),
            None => expected,
        };
        let off = error(&numbers(found), &numbers(expected));
        assert!(off <= limit, "[{rows}, {n}, {m}], turned {turned}: off by {off:e}");
    }
}

#[test]
fn it_is_the_product_at_every_size() {
    // Around panels, their parts, and the size from which on threads share.
    let sizes = [[1, 1, 1], [1, 5, 64], [2, 7, 63], [3, 9, 81], [4, 30, 200], [1, 300, 1_000], [1, 40, 9]];
    for (seed, size) in (0..).zip(sizes) {
        for turned in [false, true] {
            check(size, turned, turned, seed);
        }
    }
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn it_is_the_product_whatever_is_asked(
        size in [1usize..=4, 1usize..=40, 1usize..=150],
        turned: bool,
        biased: bool,
        seed in any::<u64>(),
    ) {
        check(size, turned, biased, seed);
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let (x, weight) = (Draw::new(1).tensor([2, 3], -1.0, 1.0), Draw::new(2).tensor([3, 4], -1.0, 1.0));
    assert!(run(&x, &weight, None).is_some());
    assert!(run(&x, &weight, Some(&Draw::new(3).tensor([3], -1.0, 1.0))).is_none());
    assert!(run(&x.clone().autodiff(), &weight.clone().autodiff().require_grad(), None).is_none());
    assert!(run(&x.clone().cast(DType::F64), &weight, None).is_none());
    assert!(run(&x.repeat_dim(0, 3), &weight, None).is_none());
}

#[cfg(feature = "cube")]
mod graphics {
    use super::super::{Map, project};
    use super::*;
    use crate::kernels::pointwise;
    use crate::nn::{Formula, Function};
    use crate::testing::graphics;

    /// All of them in double precision on the CPU.
    fn expected(x: &Tensor<2>, maps: &[Map]) -> Vec<Vec<f64>> {
        let one = |map: &Map| {
            let y = x.clone().cast(DType::F64).matmul(map.weight.clone().cast(DType::F64));
            let add = |y: Tensor<2>, bias: &Tensor<1>| y + bias.clone().cast(DType::F64).unsqueeze();
            let y = map.biases.iter().fold(y, add).narrow(1, map.first, map.width);
            let alone = |y: Tensor<2>| pointwise::Inputs { tensors: vec![y.unsqueeze()], parameters: vec![] };
            match map.then {
                Some(formula) => numbers(alone(y).run(formula)),
                None => numbers(y),
            }
        };
        maps.iter().map(one).collect()
    }

    /// A matrix with `biases` biases of which some columns are wanted.
    fn map(draw: &mut Draw, n: usize, m: usize, biases: usize, [first, width]: [usize; 2]) -> Map {
        let weight = draw.tensor([n, m], -1.0, 1.0);
        let biases = (0..biases).map(|_| draw.tensor([m], -1.0, 1.0)).collect();
        let functions = [
            Function::Silu,
            Function::Sigmoid,
            Function::GeluTanh,
            Function::LogSigmoid,
            Function::EluPlusOne,
        ];
        let then = functions.get(m % 7).map(|&function| Formula { scale: 0.7, ..Formula::new(function) });
        Map { weight, biases, first, width, then }
    }

    fn check(rows: usize, n: usize, shapes: &[(usize, usize, [usize; 2])], turned: bool) {
        let mut draw = Draw::new((rows * n) as u64);
        let x = if turned {
            draw.tensor::<2>([n, rows], -1.0, 1.0)
        } else {
            draw.tensor::<2>([rows, n], -1.0, 1.0)
        };
        let view = |x: Tensor<2>| if turned { x.transpose() } else { x };
        let maps: Vec<Map> =
            shapes.iter().map(|&(m, biases, part)| map(&mut draw, n, m, biases, part)).collect();
        let expected = expected(&view(x.clone()), &maps);
        for device in graphics() {
            let there = |map: &Map| Map {
                weight: map.weight.clone().to_device(&device),
                biases: map.biases.iter().map(|bias| bias.clone().to_device(&device)).collect(),
                ..*map
            };
            let there: Vec<Map> = maps.iter().map(there).collect();
            let found = project(&view(x.clone().to_device(&device)), &there).expect("it is for the kernel");
            assert_eq!(found.len(), shapes.len());
            for (i, (found, expected)) in found.into_iter().zip(&expected).enumerate() {
                assert_eq!(found.dims(), [rows, shapes[i].2[1]]);
                let off = error(&numbers(found), expected);
                assert!(off <= 1e-5, "map {i} of {shapes:?}, {rows} rows of {n}: off by {off:e}");
            }
        }
    }

    #[test]
    fn all_maps_are_their_products() {
        // Around a cube's columns and rows of units; what fills a launch, and what takes several.
        check(1, 1, &[(1, 0, [0, 1])], false);
        check(1, 7, &[(31, 1, [0, 31]), (32, 2, [0, 32])], false);
        check(2, 8, &[(33, 0, [0, 33]), (64, 0, [0, 64]), (65, 0, [0, 65]), (1, 0, [0, 1])], true);
        check(3, 40, &[(5, 2, [0, 5]), (70, 1, [0, 70]), (9, 0, [0, 9]), (130, 2, [0, 130])], false);
        check(4, 300, &[(20, 0, [0, 20]); 8], true);
        // Parts of one matrix.
        check(2, 30, &[(100, 0, [0, 64]), (100, 1, [64, 33]), (100, 2, [97, 3])], false);
    }

    proptest! {
        #![proptest_config(properties(12))]

        #[test]
        fn any_maps_are_their_products(
            rows in 1usize..=4,
            n in 1usize..=70,
            shapes in prop::collection::vec((1usize..=100, 0usize..=2, any::<(u8, u8)>()), 1..=7),
            turned: bool,
        ) {
            let part = |&(m, biases, (a, b)): &(usize, usize, (u8, u8))| {
                let first = usize::from(a) % m;
                (m, biases, [first, 1 + usize::from(b) % (m - first)])
            };
            check(rows, n, &shapes.iter().map(part).collect::<Vec<_>>(), turned);
        }
    }

    #[test]
    fn it_declines_what_it_cannot_do() {
        for device in graphics() {
            let on = |x: Tensor<2>| x.to_device(&device);
            let x = on(Draw::new(1).tensor([2, 3], -1.0, 1.0));
            let weight = on(Draw::new(2).tensor([3, 4], -1.0, 1.0));
            let ended = |x: &Tensor<2>, weight: &Tensor<2>, width: usize, then: Option<Formula>| {
                let weight = weight.clone();
                project(x, &[Map { weight, biases: Vec::new(), first: 0, width, then }]).is_some()
            };
            let takes = |x: &Tensor<2>, weight: &Tensor<2>, width: usize| ended(x, weight, width, None);
            assert!(ended(&x, &weight, 4, Some(Formula::new(Function::Silu))));
            assert!(!ended(&x, &weight, 4, Some(Formula::new(Function::SiluGate))));
            assert!(takes(&x, &weight, 4));
            assert!(!takes(&x, &weight, 5));
            assert!(!takes(&x.clone().autodiff(), &weight.clone().autodiff().require_grad(), 4));
            assert!(!takes(&x.clone().repeat_dim(0, 3), &weight, 4));
            assert!(!takes(&on(Draw::new(1).tensor([2, 4], -1.0, 1.0)), &weight, 4));
            assert!(!takes(&x, &on(Draw::new(2).tensor([4, 3], -1.0, 1.0)).transpose(), 4));
        }
    }
}
