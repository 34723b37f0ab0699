//! A cache with one entry per token: what attention keeps of the tokens it has read.
//!
//! It ends with each row's latest token, so where rows have seen different numbers of tokens their positions
//! say which entries are theirs: a step never reads anything back to the host.

use burn::tensor::{Int, Tensor, TensorData};

#[cfg(any(feature = "flex", feature = "cube"))]
use crate::kernels;
use crate::system::scan::NEGATIVE;
use crate::system::{Run, State};
use crate::{Error, Result};

/// Tensors `[b, h, T, n]` of all tokens that a call may look at, the cached ones first.
pub(super) struct Cached<const N: usize> {
    pub(super) all: [Tensor<4>; N],
    /// Number of cached tokens, `T - t`.
    pub(super) cached: usize,
    /// `[b, 1, 1, T]`: hugely negative where a row has no such token. `None` when all rows have all.
    pub(super) absent: Option<Tensor<4>>,
}

/// Adds the call's tokens `new: [b, h, t, n]` to the caches `names`, and keeps what a later token may see: with
/// a window, the last `window - 1`.
///
/// # Errors
/// When the cached tensors are those of another layer.
pub(super) fn append<const N: usize>(
    state: &mut State,
    names: [&str; N],
    new: [Tensor<4>; N],
    window: Option<usize>,
    run: Run<'_>,
) -> Result<Cached<N>> {
    let t = new[0].dims()[2];
    let mut older = Vec::with_capacity(N);
    for (name, new) in names.iter().zip(&new) {
        let found = state.take::<4>(name)?;
        if let Some(found) = &found {
            let ([b, h, _, n], given) = (new.dims(), found.dims());
            if [given[0], given[1], given[3]] != [b, h, n] {
                return Err(Error::shape(format!("cache `{name}`"), format!("[{b}, {h}, T, {n}]"), &given));
            }
        }
        older.push(found);
    }
    let lengths: Vec<usize> = older.iter().map(|x| x.as_ref().map_or(0, |x| x.dims()[2])).collect();
    let cached = lengths[0];
    if lengths.iter().any(|&length| length != cached) {
        let names = names.join(", ");
        return Err(Error::State(format!("the caches {names} have different lengths {lengths:?}")));
    }
    let all = join_all(older, new);
    // A row that has seen fewer tokens than the cache has entries lacks the first ones.
    let missing = |&seen: &usize| cached.saturating_sub(seen);
    let absent = state.positions().iter().any(|seen| missing(seen) > 0).then(|| {
        let flags = state.positions().iter().flat_map(|seen| {
            let missing = missing(seen);
            (0..cached + t).map(move |j| j < missing)
        });
        hidden(flags.collect(), cached + t, &all[0])
    });
    store(state, names, &all, cached, window, run);
    Ok(Cached { all, cached, absent })
}

/// Every `older`, where there is one, and then its `new`, along axis 2.
fn join_all<const N: usize>(older: Vec<Option<Tensor<4>>>, new: [Tensor<4>; N]) -> [Tensor<4>; N] {
    #[cfg(feature = "cube")]
    if kernels::enabled()
        && new.iter().all(kernels::linear::on_graphics)
        && let Some(older) = older.iter().cloned().collect::<Option<Vec<_>>>()
        && let Some(all) = kernels::join(&older, &new)
    {
        return std::array::from_fn(|i| all[i].clone());
    }
    let mut older = older.into_iter();
    new.map(|new| match older.next().flatten() {
        Some(older) => join(older, new),
        None => new,
    })
}

/// `older` and then `new`, along axis 2.
fn join(older: Tensor<4>, new: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if kernels::enabled() {
        return kernels::append::append(older, new);
    }
    Tensor::cat(vec![older, new], 2)
}

fn store<const N: usize>(
    state: &mut State,
    names: [&str; N],
    all: &[Tensor<4>; N],
    cached: usize,
    window: Option<usize>,
    run: Run<'_>,
) {
    let [b, _, total, _] = all[0].dims();
    let added = |row: usize| run.lengths.map_or(total - cached, |lengths| lengths.0[row]);
    let seen = state.positions().iter().enumerate().map(|(row, &seen)| seen + added(row));
    let window = window.map_or(usize::MAX, |w| w - 1);
    let keep = seen.max().unwrap_or(0).min(window).min(total);
    if keep == 0 {
        return;
    }
    let trim = |x: Tensor<4>| {
        if run.lengths.is_none() {
            return if keep == total { x } else { x.narrow(2, total - keep, keep) };
        }
        // Padding is dropped: each row ends with its last real token.
        let [_, h, _, n] = x.dims();
        let source = |row: usize, j: usize| (cached + added(row) + j).saturating_sub(keep);
        let index: Vec<i64> =
            (0..b).flat_map(|row| (0..keep).map(move |j| (row * total + source(row, j)) as i64)).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [b * keep]), &x.device().inner());
        let rows = x.swap_dims(1, 2).reshape([b * total, h * n]).select(0, index);
        rows.reshape([b, keep, h, n]).swap_dims(1, 2)
    };
    for (name, x) in names.iter().zip(all) {
        state.put_cache(name, trim(x.clone()), 2);
    }
}

/// Hugely negative where flagged, 0 elsewhere: `[rows, 1, 1, total]`.
pub(super) fn hidden(flags: Vec<bool>, total: usize, like: &Tensor<4>) -> Tensor<4> {
    let values: Vec<f32> = flags.into_iter().map(|hide| if hide { NEGATIVE as f32 } else { 0.0 }).collect();
    let data = TensorData::new(values, [like.dims()[0], 1, 1, total]);
    Tensor::from_data(data, (&like.device().inner(), like.dtype()))
}
