//! What the kernel writes, and where; that it is right is tested beside its callers, `miras::fused` and
//! `miras::ttt_memory`.

use burn::backend::Flex;

use super::flex::inputs;
use super::heads::{Gradients, backward, forward};
use super::*;
use crate::kernels::view::{Number, view};
use crate::testing::Draw;

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    let ([b, h, t, n], mut draw) = ([2, 2, 9, 5], Draw::new(7));
    let normed = Map::Normed { q: 4.0, least: 0.1, most: 10.0 };
    let maps = [Map::Same, Map::Same, normed, Map::Softmax];
    for ((norm, momentum, offset, depth), map) in
        [(true, true, true, 2), (false, false, false, 1), (true, false, true, 3), (true, false, false, 2)]
            .into_iter()
            .zip(maps)
    {
        let lag = map == Map::Softmax;
        let options = Options {
            chunk: 3,
            lag,
            width: n,
            hidden: 7,
            depth,
            offset,
            gelu: Gelu::Exact,
            norm,
            raw: false,
            eps: 1e-6,
            bias: Bias::HuberNorm,
            map,
            momentum,
            renewed: [true, false, true, false, false, true].repeat(if lag { 2 } else { 1 }),
        };
        let mut tensor = |dims: [usize; 4]| {
            let numbers = draw.numbers(dims.iter().product(), 0.1, 0.9);
            <f64 as Number>::tensor(numbers, &dims)
        };
        let (numbers, planned) = (options.numbers(), options.plan().iter().product());
        let given: Given<Flex> = [
            [b, h, t, n],
            [b, h, t, n],
            [b, h, t, n],
            [b, h, t, 1],
            [b, h, t / 3, planned],
            [b, h, 2, n],
            [b, h, 1, depth],
            [b, h, 1, numbers],
            [b, h, 1, numbers],
            [b, h, 1, numbers],
        ]
        .map(&mut tensor);
        let inputs = inputs::<f64>(&given, &options);
        let mut out = vec![f64::NAN; b * h * inputs.outputs()];
        let mut kept = vec![f64::NAN; b * h * inputs.kept()];
        forward(&inputs, &mut out, Some(&mut kept));
        assert!(out.iter().chain(&kept).all(|x| x.is_finite()));
        let d_out = <f64 as Number>::tensor(out, &[b, h, 1, inputs.outputs()]);
        let mut dirty = Gradients::filled(&inputs, f64::NAN);
        backward(&inputs, &kept, view(&d_out), &mut dirty);
        let Gradients { tokens: [q, k, v], threshold, plan, norm, sizes, weights } = dirty;
        let [running, anchor, momentum] = weights;
        let all = [q, k, v, threshold, plan, norm, sizes, running, anchor, momentum].concat();
        assert!(all.iter().all(|x| x.is_finite()));
    }
}
