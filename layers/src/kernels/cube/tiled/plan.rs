//! What a kernel is compiled for, and how its units share the work.

use cubecl::prelude::*;

/// Channels of a memory that one unit holds, each way.
pub(super) const TILE: usize = 4;

/// Units of a cube beside each other along the values.
pub(super) const ACROSS: usize = 4;

/// Values of a slice: a cube's share of a memory is `[n, SLICE]`.
pub(super) const SLICE: usize = TILE * ACROSS;

/// Numbers of shared memory that WebGPU promises, 16 KiB, but for places of one number.
const SHARED: usize = 4096 - 8;

/// Sums of the first of two rounds, where all units add up to one number.
pub(super) const SUMS: usize = 16;

/// Sizes that a kernel is compiled for.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) n: usize,
    pub(super) p: usize,
    /// Numbers per decay, 1 or `n`
    pub(super) width: usize,
    pub(super) rank_one: bool,
}

impl Plan {
    /// Units of a cube along the keys: an even number, since Mesa 22.3's software adapter loses units of a vector of eight
    /// that is not full.
    pub(super) fn rows(self) -> usize {
        self.n.div_ceil(TILE).next_multiple_of(2)
    }

    /// Keys with those that fill the last unit's.
    pub(super) fn keys(self) -> usize {
        self.rows() * TILE
    }

    /// As many as there are keys.
    pub(super) fn units(self) -> usize {
        self.rows() * ACROSS
    }

    pub(super) fn slices(self) -> usize {
        self.p.div_ceil(SLICE)
    }

    /// Numbers per decay in shared memory.
    pub(super) fn decays(self) -> usize {
        if self.width == 1 { 1 } else { self.keys() }
    }

    /// Room for what units share of a sum over keys or over values.
    pub(super) fn share(self) -> usize {
        TILE * (self.units() + 4)
    }

    /// Tokens whose numbers a cube of the forward pass holds at a time.
    pub(super) fn stage(self) -> usize {
        let keys = if self.rank_one { 4 } else { 2 };
        let token = keys * self.keys() + self.decays() + SLICE + self.share();
        let once = if self.rank_one { self.share() + SLICE } else { 0 };
        [16, 8, 4, 2].into_iter().find(|stage| stage * token + once <= SHARED).unwrap_or(1)
    }

    /// The same on the way back, where every unit also holds its part of the memory before each of them.
    pub(super) fn stage_back(self) -> usize {
        [4, 2].into_iter().find(|&stage| self.shared_back(stage) <= SHARED).unwrap_or(1)
    }

    /// Numbers that the way back shares.
    fn shared_back(self, stage: usize) -> usize {
        let keys = if self.rank_one { 4 } else { 2 };
        let token = keys * self.keys() + self.decays() + 3 * SLICE + SUMS;
        stage * token + self.parts() * self.share() + SLICE
    }

    /// Sums over units that a token needs on the way back.
    pub(super) fn parts(self) -> usize {
        if self.rank_one { 6 } else { 4 }
    }

    /// Whether shared memory and units of the smallest device suffice, both ways.
    pub(super) fn fits(self) -> bool {
        self.units() <= 256 && self.shared_back(1) <= SHARED
    }

    pub(super) fn dim(self) -> CubeDim {
        CubeDim::new_1d(self.units() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_usual_sizes_fit() {
        for (width, rank_one, most) in [(1, false, 200), (2, false, 200), (1, true, 128), (2, true, 128)] {
            for n in 1..=most {
                let plan = Plan { n, p: 40, width: if width == 1 { 1 } else { n }, rank_one };
                assert!(plan.fits(), "{plan:?}");
            }
            let large = Plan { n: 256, p: 40, width, rank_one };
            assert!(!large.fits(), "{large:?}");
        }
        let usual = |rank_one| Plan { n: 64, p: 64, width: 1, rank_one };
        assert_eq!([usual(false).stage(), usual(true).stage()], [8, 4]);
        assert_eq!([usual(false).stage_back(), usual(true).stage_back()], [4, 4]);
    }
}
