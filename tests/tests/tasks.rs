//! Properties of generated tasks, for any parameters.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use seqzoo::data::{Batches, Mqar, NOT_SCORED, Text, Tokenizer};

fn mqar() -> impl Strategy<Value = Mqar> {
    (1usize..12, 1usize..4, 0usize..20, 1usize..500, 0.01f64..2.0, any::<bool>()).prop_map(
        |(pairs, passes, slack, words, power, random_non_queries)| {
            let length = 2 * pairs * (passes + 1) + 2 * slack;
            Mqar { vocab: length + words, length, pairs, power, passes, random_non_queries }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn every_possible_recall_task_is_valid_and_solved_by_its_oracle(task in mqar(), seed: u64) {
        let batch = task.batches(seed, 3).unwrap().next_batch();
        prop_assert_eq!(batch.inputs.len(), 3 * task.length);
        prop_assert_eq!(batch.scored(), 3 * task.pairs);
        prop_assert!(batch.inputs.iter().all(|&id| id >= 0 && (id as usize) < task.vocab));
        let context = 2 * task.pairs * task.passes;
        for (inputs, labels) in batch.inputs.chunks(task.length).zip(batch.labels.chunks(task.length)) {
            let answers = task.oracle(inputs);
            for (t, (&label, &answer)) in labels.iter().zip(&answers).enumerate() {
                if label != NOT_SCORED {
                    prop_assert!(t >= context && label == answer);
                    prop_assert!(label as usize >= task.vocab / 2);
                }
            }
        }
    }

    #[test]
    fn too_many_pairs_are_refused_not_cut(task in mqar(), more in 1usize..50) {
        let crowded = Mqar { pairs: task.length / 2 + more, ..task };
        prop_assert!(crowded.batches(0, 1).is_err());
    }

    #[test]
    fn any_text_survives_the_byte_tokenizer(text in "\\PC*") {
        let ids = Tokenizer::Bytes.encode(&text).unwrap();
        prop_assert_eq!(Tokenizer::Bytes.decode(&ids).unwrap(), text);
    }

    #[test]
    fn any_bytes_decode_as_rust_decodes_them(bytes: Vec<u8>) {
        let ids: Vec<i64> = bytes.iter().map(|&b| i64::from(b)).collect();
        prop_assert_eq!(Tokenizer::Bytes.decode(&ids).unwrap(), String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn windows_lie_in_the_text(length in 2usize..200, time in 1usize..50, seed: u64) {
        let ids: Vec<i64> = (0..length as i64).collect();
        match Text::from_tokens(&ids).batches(seed, 2, time) {
            Ok(mut batches) => {
                let batch = batches.next_batch();
                prop_assert!(batch.inputs.iter().zip(&batch.labels).all(|(i, l)| i + 1 == *l));
                prop_assert!(batch.labels.iter().all(|&id| (id as usize) < length));
            }
            Err(_) => prop_assert!(length <= time),
        }
    }
}
