//! Pairs of tokens inside a tile of a few, with one decay per channel: some channels of all of them at a time, so that
//! what goes from pair to pair stays in a register.

use super::decay::{SideBack, When};
use crate::kernels::dense::{Matrix, Real};
use crate::kernels::lanes::{add_up, part, put_part};
use crate::kernels::vector::{LANES, Work, block_by_block, fused};

/// Tokens of a tile.
pub(super) const TILE: usize = 8;

/// Some channels.
type Lanes<E> = [E; LANES];

/// Room for the sums over channels of all pairs of a tile, lane by lane.
pub(super) struct Sums<E> {
    /// `[TILE², LANES]`
    pairs: Matrix<E>,
    turned: Matrix<E>,
}

impl<E: Real> Sums<E> {
    pub(super) fn new() -> Self {
        Self { pairs: Matrix::new(TILE * TILE, LANES), turned: Matrix::new(LANES, TILE * TILE) }
    }
}

/// The last token of a tile from `first` on that `t` sees.
#[inline(always)]
fn top(when: When, t: usize, first: usize) -> Option<usize> {
    match when {
        When::After => Some(t),
        When::Before if t > first => Some(t - 1),
        When::Before => None,
    }
}

/// Scores inside a tile: `Σ_n w_s y_s` with `w_s = x_t ∘ e^{G_t - G_s}`, from the last key to the first.
pub(super) struct TileScores<'a, E> {
    pub(super) when: When,
    pub(super) decays: &'a Matrix<E>,
    pub(super) x: &'a Matrix<E>,
    pub(super) y: &'a Matrix<E>,
    pub(super) scores: &'a mut Matrix<E>,
    /// First token, and the end
    pub(super) tile: (usize, usize),
    pub(super) sums: &'a mut Sums<E>,
}

impl<E: Real> Work for TileScores<'_, E> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is a register")]
    fn run<const FUSED: bool>(self) {
        let Self { when, decays, x, y, scores, tile: (first, last), sums: Sums { pairs, turned } } = self;
        let (tokens, n) = (last - first, x.columns());
        let pairs_of_lanes = pairs.blocks_mut();
        pairs_of_lanes.fill([E::default(); LANES]);
        let (mut keys, mut decay) = ([[E::default(); LANES]; TILE], [[E::default(); LANES]; TILE]);
        for channel in (0..n).step_by(LANES) {
            for s in 0..tokens {
                keys[s] = part(y.row(first + s), channel);
                decay[s] = part(decays.row(first + s), channel);
            }
            for t in 0..tokens {
                let Some(top) = top(when, t, 0) else { continue };
                let mut w: Lanes<E> = part(x.row(first + t), channel);
                for s in (0..=top).rev() {
                    block_by_block();
                    let (key, decay) = (keys[s], decay[s]);
                    let mut sum = pairs_of_lanes[t * TILE + s];
                    for i in 0..LANES {
                        sum[i] = fused::<E, FUSED>(w[i], key[i], sum[i]);
                        w[i] *= decay[i];
                    }
                    pairs_of_lanes[t * TILE + s] = sum;
                }
            }
        }
        let mut total = [E::default(); TILE * TILE];
        add_up(pairs, turned, &mut total);
        for t in 0..tokens {
            let Some(top) = top(when, t, 0) else { continue };
            scores.row_mut(first + t)[first..=first + top].copy_from_slice(&total[t * TILE..][..=top]);
        }
    }
}

/// The way back through a tile. For row `t` with `w_s = x_t ∘ e^{G_t - G_s}` and, over the keys from the tile's first one
/// on, `z_s = D_ts y_s + d_s ∘ z_{s-1}`: `dx_t = z_t`, `dy_s = D_ts w_s`, and `w_s ∘ d_s ∘ z_{s-1}` crosses token `s`.
pub(super) struct TileBack<'a, 'b, E, K, const N: usize> {
    pub(super) when: When,
    pub(super) decays: &'a Matrix<E>,
    pub(super) x: &'a Matrix<E>,
    pub(super) dx: &'a mut Matrix<E>,
    pub(super) sides: &'a mut [SideBack<'b, E, K>; N],
    /// First token, and the end
    pub(super) tile: (usize, usize),
    /// `[m, n]`, or nothing if no gradient of the decays is wanted
    pub(super) pairs: &'a mut [E],
}

impl<E: Real, K, const N: usize> Work for TileBack<'_, '_, E, K, N> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is a register")]
    fn run<const FUSED: bool>(self) {
        let Self { when, decays, x, dx, sides, tile: (first, last), pairs } = self;
        let (tokens, n) = (last - first, x.columns());
        let mut factors = [[[E::default(); TILE]; TILE]; N];
        for (side, factors) in sides.iter().zip(&mut factors) {
            for t in 0..tokens {
                factors[t] = part(&side.d_scores.row(first + t)[..last], first);
            }
        }
        let none = [[E::default(); LANES]; TILE];
        let (mut keys, mut d_keys) = ([none; N], [none; N]);
        let (mut decay, mut crossed, mut z) = (none, none, none);
        for channel in (0..n).step_by(LANES) {
            for s in 0..tokens {
                decay[s] = part(decays.row(first + s), channel);
                for (side, (keys, d_keys)) in sides.iter().zip(keys.iter_mut().zip(&mut d_keys)) {
                    keys[s] = part(side.y.row(first + s), channel);
                    d_keys[s] = part(side.dy.row(first + s), channel);
                }
                crossed[s] = [E::default(); LANES];
            }
            for t in 0..tokens {
                let Some(top) = top(when, t, 0) else { continue };
                let mut sum = [E::default(); LANES];
                for s in 0..=top {
                    block_by_block();
                    let decay = decay[s];
                    for i in 0..LANES {
                        sum[i] *= decay[i];
                    }
                    for side in 0..N {
                        let (d, key) = (factors[side][t][s], keys[side][s]);
                        for i in 0..LANES {
                            sum[i] = fused::<E, FUSED>(d, key[i], sum[i]);
                        }
                    }
                    z[s] = sum;
                }
                let mut found: Lanes<E> = part(dx.row(first + t), channel);
                for i in 0..LANES {
                    found[i] += sum[i];
                }
                put_part(&found, dx.row_mut(first + t), channel);
                let mut w: Lanes<E> = part(x.row(first + t), channel);
                for s in (0..=top).rev() {
                    block_by_block();
                    for side in 0..N {
                        let (d, mut found) = (factors[side][t][s], d_keys[side][s]);
                        for i in 0..LANES {
                            found[i] = fused::<E, FUSED>(d, w[i], found[i]);
                        }
                        d_keys[side][s] = found;
                    }
                    if s == 0 {
                        continue;
                    }
                    let (decay, before, mut found) = (decay[s], z[s - 1], crossed[s]);
                    for i in 0..LANES {
                        w[i] *= decay[i];
                        found[i] = fused::<E, FUSED>(w[i], before[i], found[i]);
                    }
                    crossed[s] = found;
                }
            }
            for s in 0..tokens {
                for (side, d_keys) in sides.iter_mut().zip(&d_keys) {
                    put_part(&d_keys[s], side.dy.row_mut(first + s), channel);
                }
                if !pairs.is_empty() {
                    let row = &mut pairs[(first + s) * n..][..n];
                    let mut found: Lanes<E> = part(row, channel);
                    for i in 0..LANES {
                        found[i] += crossed[s][i];
                    }
                    put_part(&found, row, channel);
                }
            }
        }
    }
}
