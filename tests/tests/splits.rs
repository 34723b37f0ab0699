//! Any sequence cut anywhere, each piece in any form, is the sequence read token by token.

use burn::tensor::{Device, Tensor};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use seqzoo::verify::{VALUE_TOLERANCE, subjects};
use seqzoo_layers::Init;
use seqzoo_layers::system::{Form, Mixer};
use seqzoo_tests::gap;

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![
        Just(Form::Recurrent),
        Just(Form::Parallel),
        Just(Form::Auto),
        (1usize..20).prop_map(|size| Form::Chunked { size }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn any_split_in_any_forms_is_the_whole(
        row: prop::sample::Index,
        seed in 0u64..1000,
        batch in 1usize..4,
        pieces in prop::collection::vec((1usize..24, form()), 1..5),
    ) {
        let rows = subjects(None);
        let subject = &rows[row.index(rows.len())];
        let mut init = Init::new(seed, &Device::flex());
        let layer = subject.config.init(subject.d_model, &mut init).expect("a valid row");
        let time: usize = pieces.iter().map(|(len, _)| len).sum();
        let x: Tensor<3> = init.normal([batch, time, subject.d_model], 1.0).val();
        let (whole, end) = layer.forward(x.clone(), layer.initial_state(batch), Form::Recurrent).expect("fits");

        let (mut state, mut start, mut parts) = (layer.initial_state(batch), 0, Vec::new());
        for &(len, form) in &pieces {
            let (y, next) = layer.forward(x.clone().narrow(1, start, len), state, form).expect("fits");
            parts.push(y);
            (state, start) = (next, start + len);
        }
        let error = gap(Tensor::cat(parts, 1), whole);
        prop_assert!(error <= VALUE_TOLERANCE, "{}: outputs differ by {error:e}", subject.name);
        prop_assert_eq!(state.positions(), end.positions());
        for ((slot, ours, _), (_, theirs, _)) in state.slots().zip(end.slots()) {
            let error = gap(ours.clone(), theirs.clone());
            prop_assert!(error <= VALUE_TOLERANCE, "{}: `{slot}` differs by {error:e}", subject.name);
        }
    }
}
