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
    /// Units of a cube along the keys.
    pub(super) fn rows(self) -> usize {
        self.n.div_ceil(TILE)
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

    /// Tokens whose numbers a cube of the forward pass holds at a time.
    pub(super) fn stage(self) -> usize {
        let keys = if self.rank_one { 4 } else { 2 };
        let token = keys * self.keys() + self.decays() + SLICE + self.rows() * SLICE;
        let once = if self.rank_one { self.rows() * SLICE + SLICE } else { 0 };
        [16, 8, 4, 2].into_iter().find(|stage| stage * token + once <= SHARED).unwrap_or(1)
    }

    /// The same on the way back, where every unit also holds its part of the memory before each of them.
    pub(super) fn stage_back(self) -> usize {
        let keys = if self.rank_one { 4 } else { 2 };
        let token = keys * self.keys() + self.decays() + 3 * SLICE;
        let once = self.parts() * self.keys() * ACROSS + SLICE;
        [4, 2].into_iter().find(|stage| stage * token + once <= SHARED).unwrap_or(1)
    }

    /// Sums over units that a token needs on the way back.
    pub(super) fn parts(self) -> usize {
        if self.rank_one { 6 } else { 4 }
    }

    /// Whether shared memory and units of the smallest device suffice, both ways.
    pub(super) fn fits(self) -> bool {
        let keys = if self.rank_one { 4 } else { 2 };
        let token = keys * self.keys() + self.decays() + 3 * SLICE;
        self.units() <= 256 && token + self.parts() * self.keys() * ACROSS + SLICE <= SHARED
    }

    pub(super) fn dim(self) -> CubeDim {
        CubeDim::new_1d(self.units() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_stays_within_what_it_says() {
        for n in 1..=220 {
            for (width, rank_one) in [(1, false), (n, false), (1, true), (n, true)] {
                let plan = Plan { n, p: 40, width, rank_one };
                let limit = if rank_one { 136 } else { 208 };
                assert!(plan.fits() || n > limit, "{plan:?}");
                if plan.fits() {
                    let keys = if rank_one { 4 } else { 2 } * plan.keys() + plan.decays();
                    let sums = plan.rows() * SLICE;
                    let once = if rank_one { sums + SLICE } else { 4 };
                    assert!(plan.stage() * (keys + SLICE + sums) + once <= 4096, "{plan:?}");
                    let values = if rank_one { 3 } else { 2 } * SLICE;
                    let once = plan.parts() * plan.keys() * ACROSS + SLICE;
                    assert!(plan.stage_back() * (keys + values) + once <= 4096, "{plan:?}");
                }
            }
        }
    }
}
