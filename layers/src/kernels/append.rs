//! New rows after those of a cache, in place: a cache grows by half when it is full, so a token costs its own rows and
//! not a copy of all before it.
//!
//! A cache with room is a view of something longer. Where nothing else holds that, as while a text is continued, rows are
//! written behind the view's end; where something does, as a kept clone of a state, all is copied, with new room.

use burn::backend::flex::Layout;
use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{DType, Tensor};

use super::view::{Double, Number, Primitive, View, computes, view};

/// Rows of room that a cache gets at least.
const LEAST: usize = 64;

/// `older: [b, h, T, n]` and `new: [b, h, t, n]` as one.
pub(crate) fn append(older: Tensor<4>, new: Tensor<4>) -> Tensor<4> {
    if !applies(&older, &new) {
        return Tensor::cat(vec![older, new], 2);
    }
    let dtype = older.dtype();
    let [older, new] = [older, new].map(|x| x.try_into_primitive::<Flex>().expect("it lies on Flex"));
    let whole =
        if dtype == DType::F64 { append_in::<Double>(older, &new) } else { append_in::<f32>(older, &new) };
    Tensor::from_primitive::<Flex>(whole)
}

/// Whether it is for this kernel: no gradients, numbers that it knows, where it can reach them, nothing empty.
fn applies(older: &Tensor<4>, new: &Tensor<4>) -> bool {
    let here = |x: &Tensor<4>| matches!(x.device().as_dispatch(), DispatchDevice::Flex(_));
    here(older)
        && here(new)
        && new.dtype() == older.dtype()
        && computes(older.dtype())
        && older.dims().iter().chain(&new.dims()).all(|&size| size > 0)
}

fn append_in<E: Number>(mut older: Primitive, new: &Primitive) -> Primitive {
    let new = view::<E>(new);
    let place = Place::of(&view::<E>(&older), new.dims[2]);
    let (place, mut older) = match place {
        Some(place) if older.is_unique() => (place, older),
        _ => {
            older = with_room(&view::<E>(&older), new.dims[2]);
            let place = Place::of(&view::<E>(&older), new.dims[2]).expect("room was made");
            (place, older)
        }
    };
    let [b, heads, t, n] = new.dims;
    let numbers = E::numbers_mut(&mut older).expect("nothing else holds it");
    for head in 0..b * heads {
        let rows = &mut numbers[place.start + head * place.head..][..t * n];
        rows.chunks_exact_mut(n).enumerate().for_each(|(i, row)| new.head(head).copy(i, 0, row));
    }
    let layout = older.layout().clone();
    let mut shape = layout.shape().clone();
    shape[2] += t;
    older.with_layout(Layout::new(shape, layout.strides().to_vec(), layout.start_offset()))
}

/// Where new rows go.
struct Place {
    /// The first of them, of the first head
    start: usize,
    /// From head to head
    head: usize,
}

impl Place {
    /// Behind `cache`, if rows of its heads lie side by side with room for `t` more after each head's.
    fn of<E>(cache: &View<'_, E>, t: usize) -> Option<Self> {
        let [b, heads, rows, n] = cache.dims;
        let strides = cache.strides.map(|stride| usize::try_from(stride).unwrap_or(0));
        let head = match (b, heads) {
            (1, 1) => cache.numbers.len(),
            (_, 1) => strides[0],
            _ => strides[1],
        };
        let even = b == 1 || heads == 1 || strides[0] == heads * head;
        let side_by_side = (n == 1 || strides[3] == 1) && (rows == 1 || strides[2] == n);
        // A view may start at a later row, but not in a later head.
        let whole = cache.numbers.len() == b * heads * head && cache.start < head;
        let start = cache.start + rows * n;
        (even && side_by_side && whole && start + t * n <= head).then_some(Self { start, head })
    }
}

/// The same rows, with room for at least `t` more.
fn with_room<E: Number>(cache: &View<'_, E>, t: usize) -> Primitive {
    let [b, heads, rows, n] = cache.dims;
    let room = rows + t + LEAST.max(rows / 2);
    let mut numbers = vec![E::default(); b * heads * room * n];
    for (head, out) in numbers.chunks_exact_mut(room * n).enumerate() {
        let rows = out.chunks_exact_mut(n).take(rows).enumerate();
        rows.for_each(|(i, row)| cache.head(head).copy(i, 0, row));
    }
    E::tensor(numbers, &[b, heads, room, n]).narrow(2, 0, rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, numbers, properties};

    fn address(x: &Tensor<4>) -> usize {
        let primitive = x.clone().try_into_primitive::<Flex>().unwrap();
        view::<f32>(&primitive).numbers.as_ptr() as usize
    }

    proptest! {
        #![proptest_config(properties(64))]

        /// Whatever is appended, cut off in front and kept aside, it is what concatenation gives.
        #[test]
        fn it_is_concatenation(
            [b, h, n] in [1usize..3, 1usize..4, 1usize..6],
            calls in prop::collection::vec((1usize..40, 0usize..30, any::<bool>()), 1..12),
            seed in any::<u64>(),
        ) {
            let mut draw = Draw::new(seed);
            let mut found = draw.tensor::<4>([b, h, 2, n], -1.0, 1.0);
            let mut expected = found.clone();
            let mut kept = Vec::new();
            for (t, cut, keep) in calls {
                // Heads split from `[b, t, h n]`.
                let new = draw.tensor::<4>([b, t, h, n], -1.0, 1.0).swap_dims(1, 2);
                if keep {
                    kept.push((found.clone(), numbers(found.clone())));
                }
                found = append(found, new.clone());
                expected = Tensor::cat(vec![expected, new], 2);
                let length = expected.dims()[2];
                let cut = cut.min(length - 1);
                [found, expected] = [found, expected].map(|x| x.narrow(2, cut, length - cut));
                prop_assert_eq!(numbers(found.clone()), numbers(expected.clone()));
            }
            for (clone, before) in kept {
                prop_assert_eq!(numbers(clone), before);
            }
        }
    }

    #[test]
    fn tokens_do_not_copy_the_cache() {
        let row = || Draw::new(1).tensor::<4>([2, 3, 1, 4], -1.0, 1.0);
        let mut cache = append(row(), row());
        let (mut moves, mut before) = (0, address(&cache));
        for _ in 0..1_000 {
            cache = append(cache, row());
            let now = address(&cache);
            moves += usize::from(now != before);
            before = now;
        }
        assert_eq!(cache.dims(), [2, 3, 1_002, 4]);
        assert!(moves < 10, "moved {moves} times");
    }

    #[test]
    fn it_declines_what_it_cannot_do() {
        let row = Draw::new(1).tensor::<4>([2, 3, 1, 4], -1.0, 1.0);
        assert!(applies(&row, &row));
        assert!(!applies(&row, &row.clone().cast(DType::F64)));
        let leaf = row.clone().autodiff().require_grad();
        assert!(!applies(&leaf, &row.clone().autodiff()));
        let grads = append(leaf.clone(), leaf.clone()).sum().backward();
        assert_eq!(numbers(leaf.grad(&grads).unwrap()), [2.0; 24]);
    }
}
