//! `H_t = (D_t + b_t a_tᵀ) H_{t-1} + k_t v_tᵀ`, `y_t = H_tᵀ q_t`: the delta family. What the tokens of a block read
//! before they write, `U`, is found for all of them by one triangular solve (the WY form of arXiv 2406.06484, with any
//! diagonal); then `b` and `U` are keys and values like `k` and `v`:
//!
//! ```text
//! (I - A^ab) U = (e^{G'} ∘ A) S + A^ak V               A^xy_ts = Σ_n x_t y_s e^{G_t - G_s},  G'_t = G_{t-1}
//! Y = (e^G ∘ Q) S + A^qb U + A^qk V                    for s < t (x = a, with G') or s ≤ t (x = q)
//! S ← e^{G_m} S + (e^{G_m - G} ∘ B)ᵀ U + (e^{G_m - G} ∘ K)ᵀ V
//! ```

use super::decay::{Decay, Ledger, Side, SideBack, When};
use super::inputs::{Place, Sizes};
use super::passes::{HeadGradients, Rule};
use super::solve::Solver;
use crate::kernels::dense::{Matrix, Part, Real};
use crate::kernels::room::HeadRoom;
use crate::kernels::view::{Head, read};

/// Scratch memory for a block.
pub(super) struct Delta<E: Real, D: Decay<E>> {
    sizes: Sizes,
    decay: D,
    solver: Solver<E>,
    q: Matrix<E>,
    k: Matrix<E>,
    v: Matrix<E>,
    a: Matrix<E>,
    b: Matrix<E>,
    u: Matrix<E>,
    y: Matrix<E>,
    k_keys: D::Keys,
    b_keys: D::Keys,
    /// Scores of `a` and `q` against `b` and `k`
    ab: Matrix<E>,
    ak: Matrix<E>,
    qb: Matrix<E>,
    qk: Matrix<E>,
    /// `U` of the blocks since a token, where it will be needed again.
    kept: Option<(usize, Vec<E>)>,
    back: Option<Back<E>>,
}

/// What only the way back needs.
struct Back<E> {
    /// Gradient of the right side of the solve
    dr: Matrix<E>,
    d_ab: Matrix<E>,
    d_ak: Matrix<E>,
    d_qb: Matrix<E>,
    d_qk: Matrix<E>,
    dq: Matrix<E>,
    dk: Matrix<E>,
    dv: Matrix<E>,
    da: Matrix<E>,
    db: Matrix<E>,
    /// A transpose, and keys with their decay to the end
    turned: Matrix<E>,
    scaled: Matrix<E>,
    ledger: Ledger<E>,
}

impl<E: Real, D: Decay<E>> Delta<E, D> {
    /// Reads what the memory needs to move on.
    fn read_writes(&mut self, at: Place<'_, E>) {
        at.read(&at.inputs.k, &mut self.k);
        at.read(&at.inputs.v, &mut self.v);
        if let Some([_, b]) = &at.inputs.rank_one {
            at.read(b, &mut self.b);
        }
        self.decay.set(at.inputs.log_d.head(at.head), at.range);
    }

    fn read_reads(&mut self, at: Place<'_, E>) {
        if let Some([a, _]) = &at.inputs.rank_one {
            at.read(a, &mut self.a);
        }
        let Self { decay, k, b, k_keys, b_keys, .. } = self;
        decay.keys(k, k_keys);
        decay.keys(b, b_keys);
    }

    /// The scores of `a`.
    fn read_scores(&mut self) {
        let Self { decay, k, a, b, k_keys, b_keys, ab, ak, .. } = self;
        let sides = [Side { y: b, keys: b_keys, scores: ab }, Side { y: k, keys: k_keys, scores: ak }];
        decay.scores(When::Before, a, sides);
    }

    /// The scores of `q`.
    fn query_scores(&mut self) {
        let Self { decay, q, k, b, k_keys, b_keys, qb, qk, .. } = self;
        let sides = [Side { y: b, keys: b_keys, scores: qb }, Side { y: k, keys: k_keys, scores: qk }];
        decay.scores(When::After, q, sides);
    }

    /// `U`, from [`Self::read_scores`]; scales `a` on the way.
    fn find_reads(&mut self, state: &Matrix<E>) {
        let Self { decay, solver, v, a, u, ab, ak, .. } = self;
        u.set_product(ak, v, Part::LeftLower);
        decay.since_start(When::Before, a);
        u.add_product(a, state, Part::Whole);
        solver.solve(ab, u);
    }

    /// The memory after the block; scales `b` and `k` on the way.
    fn move_on(&mut self, state: &mut Matrix<E>) {
        let Self { decay, k, v, b, u, .. } = self;
        decay.to_end(k);
        decay.to_end(b);
        decay.total(state);
        state.add_turned_product(b, u, Part::Whole);
        state.add_turned_product(k, v, Part::Whole);
    }

    /// `U` of a block that has it already.
    fn recall(&mut self, (first, rows): (usize, usize)) -> bool {
        let p = self.sizes.p;
        let Some((start, kept)) = &self.kept else { return false };
        let Some(kept) = kept.get((first - start) * p..(first - start + rows) * p) else { return false };
        self.u.resize(rows, p);
        self.u.rows_mut().zip(kept.chunks_exact(p)).for_each(|(row, kept)| row.copy_from_slice(kept));
        true
    }
}

impl<E: Real, D: Decay<E>> Rule<E> for Delta<E, D> {
    fn new(sizes: Sizes, backward: bool) -> Self {
        let Sizes { n, p, block, .. } = sizes;
        let key = || Matrix::new(block, n);
        let value = || Matrix::new(block, p);
        let square = || Matrix::new(block, block);
        let back = backward.then(|| Back {
            dr: value(),
            d_ab: square(),
            d_ak: square(),
            d_qb: square(),
            d_qk: square(),
            dq: key(),
            dk: key(),
            dv: value(),
            da: key(),
            db: key(),
            turned: Matrix::new(p, block.max(n)),
            scaled: key(),
            ledger: Ledger::default(),
        });
        Self {
            sizes,
            decay: D::new(sizes),
            solver: Solver::new(block, p),
            q: key(),
            k: key(),
            v: value(),
            a: key(),
            b: key(),
            u: value(),
            y: value(),
            k_keys: D::new_keys(sizes),
            b_keys: D::new_keys(sizes),
            ab: square(),
            ak: square(),
            qb: square(),
            qk: square(),
            kept: backward.then(|| (0, Vec::new())),
            back,
        }
    }

    fn start(&mut self, token: usize) {
        if let Some((start, kept)) = &mut self.kept {
            *start = token;
            kept.clear();
        }
    }

    fn forward(&mut self, at: Place<'_, E>, state: &mut Matrix<E>, out: &mut HeadRoom<'_, E>) {
        self.read_writes(at);
        self.read_reads(at);
        at.read(&at.inputs.q, &mut self.q);
        self.read_scores();
        self.find_reads(state);
        self.query_scores();
        let Self { sizes, decay, q, v, u, y, qb, qk, .. } = self;
        y.set_product(qb, u, Part::LeftLower);
        y.add_product(qk, v, Part::LeftLower);
        decay.since_start(When::After, q);
        y.add_product(q, state, Part::Whole);
        y.scale(at.inputs.gain);
        out.put(at.range.0, y.rows(), sizes.streamed);
        self.move_on(state);
    }

    fn advance(&mut self, at: Place<'_, E>, state: &mut Matrix<E>) {
        self.read_writes(at);
        if !self.recall(at.range) {
            self.read_reads(at);
            self.read_scores();
            self.find_reads(state);
            if let Some((_, kept)) = &mut self.kept {
                self.u.rows().for_each(|row| kept.extend_from_slice(row));
            }
        }
        self.move_on(state);
    }

    /// With `R` for the right side of the solve:
    ///
    /// ```text
    /// dU = A^qbᵀ dY + B̃ dS          dR = (I - A^ab)⁻ᵀ dU        dV = A^qkᵀ dY + A^akᵀ dR + K̃ dS
    /// dA^ab = dR Uᵀ   dA^ak = dR Vᵀ   dA^qb = dY Uᵀ   dA^qk = dY Vᵀ
    /// dQ̃ = dY Sᵀ      dÃ = dR Sᵀ      dB̃ = U dSᵀ      dK̃ = V dSᵀ
    /// dS ← e^{G_m} dS + Q̃ᵀ dY + Ãᵀ dR
    /// ```
    ///
    /// where a tilde has the decay from the start, or to the end.
    fn backward(
        &mut self,
        at: Place<'_, E>,
        dy: Head<'_, E>,
        state: &Matrix<E>,
        d_state: &mut Matrix<E>,
        to: &mut HeadGradients<'_, E>,
    ) {
        self.read_writes(at);
        self.read_reads(at);
        self.read_scores();
        if !self.recall(at.range) {
            self.find_reads(state);
            self.read_reads(at);
        }
        at.read(&at.inputs.q, &mut self.q);
        self.query_scores();
        read(&mut self.y, dy, at.range, self.sizes.p);
        self.y.scale(at.inputs.gain);
        let Self { sizes, decay, solver, q, k, v, a, b, u, y, k_keys, b_keys, ab, ak, qb, qk, back, .. } =
            self;
        let Some(Back { dr, d_ab, d_ak, d_qb, d_qk, dq, dk, dv, da, db, turned, scaled, ledger }) = back
        else {
            return;
        };
        ledger.clear(to.log_d.is_some(), at.range.1, sizes.width);

        // What reads and writes of the memory give, without the scores.
        turned.set_transpose(d_state);
        db.set_product(u, turned, Part::Whole);
        dk.set_product(v, turned, Part::Whole);
        decay.to_end(db);
        decay.to_end(dk);
        if ledger.wanted() {
            decay.note_writes(b, db, ledger);
            decay.note_writes(k, dk, ledger);
        }

        dr.set_turned_product(qb, y, Part::LeftLower);
        scaled.copy_from(b);
        decay.to_end(scaled);
        dr.add_product(scaled, d_state, Part::Whole);
        solver.solve_turned(ab, dr);

        dv.set_turned_product(qk, y, Part::LeftLower);
        dv.add_turned_product(ak, dr, Part::LeftLower);
        scaled.copy_from(k);
        decay.to_end(scaled);
        dv.add_product(scaled, d_state, Part::Whole);
        to.v.put(at.range.0, dv.rows(), sizes.streamed);

        turned.set_transpose(state);
        dq.set_product(y, turned, Part::Whole);
        da.set_product(dr, turned, Part::Whole);
        decay.since_start(When::After, dq);
        decay.since_start(When::Before, da);
        if ledger.wanted() {
            decay.note_reads(When::After, q, dq, ledger);
            decay.note_reads(When::Before, a, da, ledger);
            decay.note_memory(state, d_state, ledger);
        }

        turned.set_transpose(u);
        d_ab.set_product(dr, turned, Part::Lower);
        d_qb.set_product(y, turned, Part::Lower);
        turned.set_transpose(v);
        d_ak.set_product(dr, turned, Part::Lower);
        d_qk.set_product(y, turned, Part::Lower);
        let sides = [
            SideBack { y: b, keys: b_keys, scores: ab, d_scores: d_ab, dy: db },
            SideBack { y: k, keys: k_keys, scores: ak, d_scores: d_ak, dy: dk },
        ];
        decay.scores_back(When::Before, a, da, sides, ledger);
        let sides = [
            SideBack { y: b, keys: b_keys, scores: qb, d_scores: d_qb, dy: db },
            SideBack { y: k, keys: k_keys, scores: qk, d_scores: d_qk, dy: dk },
        ];
        decay.scores_back(When::After, q, dq, sides, ledger);
        to.q.put(at.range.0, dq.rows(), sizes.streamed);
        to.k.put(at.range.0, dk.rows(), sizes.streamed);
        if let Some([to_a, to_b]) = &mut to.rank_one {
            to_a.put(at.range.0, da.rows(), sizes.streamed);
            to_b.put(at.range.0, db.rows(), sizes.streamed);
        }

        decay.since_start(When::After, q);
        decay.since_start(When::Before, a);
        decay.total(d_state);
        d_state.add_turned_product(q, y, Part::Whole);
        d_state.add_turned_product(a, dr, Part::Whole);
        if let Some(log_d) = &mut to.log_d {
            log_d.put(at.range.0, ledger.finish(), sizes.streamed);
        }
    }
}
