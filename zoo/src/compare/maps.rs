//! Where the layers of a trained recall model look, on one sample.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use seqzoo_layers::Value;
use seqzoo_layers::system::{Form, Mixer, influence};

use super::Plan;
use super::recall::task;
use super::results::{LayerMap, MapKind};
use crate::Result;
use crate::data::{Batches, NOT_SCORED};
use crate::model::LanguageModel;

/// Layers shown.
const LAYERS: usize = 2;

/// Maps of the first layers.
pub(super) fn draw(model: &LanguageModel, plan: &Plan, seed: u64, device: &Device) -> Result<Vec<LayerMap>> {
    // A middle count: enough queries to see a pattern, and room between them.
    let pairs = plan.recall.pairs.get(plan.recall.pairs.len() / 2).copied().unwrap_or(4);
    let task = task(plan, pairs);
    let batch = task.batches(!seed, 1)?.next_batch();
    let targets = targets(&batch.inputs, &batch.labels, 2 * pairs);
    let size = batch.inputs.len();

    let ids = Tensor::<1, Int>::from_data(TensorData::new(batch.inputs, [size]), device);
    let mut x = model.embedding.val().select(0, ids).unsqueeze::<3>();
    x = x * model.config().embed_scale.unwrap_or(1.0);
    let mut maps = Vec::new();
    for (i, block) in model.blocks.iter().take(LAYERS).enumerate() {
        let input = block.mixer_input(x.clone(), &block.initial_state(1))?;
        let attention = block.mixer.views(input.clone(), block.mixer.initial_state(1))?.attention;
        let (heads, kind) = match attention {
            Some(attention) => {
                let [_, heads, ..] = attention.dims();
                (Value::from(attention.reshape([heads, size, size])), MapKind::Attention)
            }
            None => {
                let mixer = block.mixer.clone().train();
                let start = mixer.initial_state(1);
                let map = influence(&mixer, input, &start)?;
                (Value::from(map.inner().unsqueeze_dim::<3>(0)), MapKind::Influence)
            }
        };
        let heads: Vec<Vec<f64>> = heads.to_f64()?.chunks(size * size).map(<[f64]>::to_vec).collect();
        maps.extend(best(&heads, size, &targets).map(|(head, on_target)| LayerMap {
            layer: i + 1,
            head: (heads.len() > 1).then_some(head + 1),
            kind,
            size,
            weights: by_row(&heads[head], size),
            targets: targets.clone(),
            on_target,
        }));
        x = block.forward(x, block.initial_state(1), Form::Auto, None, false)?.0;
    }
    Ok(maps)
}

/// For every query the position of its pair's value among the first `context` tokens.
fn targets(inputs: &[i64], labels: &[i64], context: usize) -> Vec<[usize; 2]> {
    let value_of = |key: i64| (0..context).step_by(2).find(|&i| inputs[i] == key).map(|i| i + 1);
    (labels.iter().enumerate())
        .filter(|(_, label)| **label != NOT_SCORED)
        .filter_map(|(query, _)| Some([query, value_of(inputs[query])?]))
        .collect()
}

/// The head with the largest mean share of weight on the right pairs, and that share.
fn best(heads: &[Vec<f64>], size: usize, targets: &[[usize; 2]]) -> Option<(usize, f64)> {
    let share = |head: &[f64]| {
        let rows = targets.iter().map(|&[query, value]| {
            let row = &head[query * size..(query + 1) * size];
            let total: f64 = row.iter().map(|w| w.abs()).sum();
            if total > 0.0 { row[value].abs() / total } else { 0.0 }
        });
        rows.sum::<f64>() / targets.len().max(1) as f64
    };
    heads.iter().map(|head| share(head)).enumerate().max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Each row divided by its largest absolute entry.
fn by_row(map: &[f64], size: usize) -> Vec<f32> {
    map.chunks(size)
        .flat_map(|row| {
            let top = row.iter().fold(0.0f64, |top, w| top.max(w.abs())).max(1e-30);
            row.iter().map(move |w| (w / top) as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_values_of_the_queried_keys() {
        let inputs = [3, 9, 5, 8, 5, 0, 3, 0];
        let labels = [-100, -100, -100, -100, 8, -100, 9, -100];
        assert_eq!(targets(&inputs, &labels, 4), [[4, 3], [6, 1]]);
    }

    #[test]
    fn the_head_on_target_is_chosen_and_rows_are_scaled() {
        let flat = vec![1.0; 4];
        let sharp = vec![1.0, 0.0, -4.0, 1.0];
        let (head, share) = best(&[flat, sharp.clone()], 2, &[[1, 0]]).unwrap();
        assert_eq!((head, share), (1, 0.8));
        assert_eq!(by_row(&sharp, 2), [1.0, 0.0, -1.0, 0.25]);
        assert!(best(&[], 2, &[[1, 0]]).is_none());
    }
}
