//! `H_t = D_t H_{t-1} + k_t v_tᵀ`, `y_t = H_tᵀ q_t`: a block is quadratic inside.

use super::decay::{Decay, Ledger, Side, SideBack, When};
use super::inputs::{Place, Sizes};
use super::passes::{HeadGradients, Rule};
use crate::kernels::dense::{Matrix, Part, Real};
use crate::kernels::room::HeadRoom;
use crate::kernels::view::{Head, read};

/// Scratch memory for a block.
pub(super) struct Linear<E, D: Decay<E>>
where
    E: Real,
{
    sizes: Sizes,
    decay: D,
    q: Matrix<E>,
    k: Matrix<E>,
    v: Matrix<E>,
    keys: D::Keys,
    scores: Matrix<E>,
    y: Matrix<E>,
    back: Option<Back<E>>,
}

/// What only the way back needs.
struct Back<E> {
    d_scores: Matrix<E>,
    dq: Matrix<E>,
    dk: Matrix<E>,
    dv: Matrix<E>,
    v_turned: Matrix<E>,
    state_turned: Matrix<E>,
    ledger: Ledger<E>,
}

impl<E: Real, D: Decay<E>> Linear<E, D> {
    fn read_writes(&mut self, at: Place<'_, E>) {
        at.read(&at.inputs.k, &mut self.k);
        at.read(&at.inputs.v, &mut self.v);
        self.decay.set(at.inputs.log_d.head(at.head), at.range);
    }

    /// `S ← e^{G_m} S + Kᵀ (e^{G_m - G} ∘ V)`
    fn move_on(&mut self, state: &mut Matrix<E>) {
        self.decay.to_end(&mut self.k);
        self.decay.total(state);
        state.add_turned_product(&self.k, &self.v, Part::Whole);
    }
}

impl<E: Real, D: Decay<E>> Rule<E> for Linear<E, D> {
    fn new(sizes: Sizes, backward: bool) -> Self {
        let Sizes { n, p, block, .. } = sizes;
        let back = backward.then(|| Back {
            d_scores: Matrix::new(block, block),
            dq: Matrix::new(block, n),
            dk: Matrix::new(block, n),
            dv: Matrix::new(block, p),
            v_turned: Matrix::new(p, block),
            state_turned: Matrix::new(p, n),
            ledger: Ledger::default(),
        });
        Self {
            sizes,
            decay: D::new(sizes),
            q: Matrix::new(block, n),
            k: Matrix::new(block, n),
            v: Matrix::new(block, p),
            keys: D::new_keys(sizes),
            scores: Matrix::new(block, block),
            y: Matrix::new(block, p),
            back,
        }
    }

    fn forward(&mut self, at: Place<'_, E>, state: &mut Matrix<E>, out: &mut HeadRoom<'_, E>) {
        self.read_writes(at);
        let Self { sizes, decay, q, k, v, keys, scores, y, .. } = self;
        at.read(&at.inputs.q, q);
        decay.keys(k, keys);
        decay.scores(When::After, q, [Side { y: k, keys, scores }]);
        y.set_product(scores, v, Part::LeftLower);
        decay.since_start(When::After, q);
        y.add_product(q, state, Part::Whole);
        y.scale(at.inputs.gain);
        out.put(at.range.0, y.rows(), sizes.streamed);
        self.move_on(state);
    }

    fn advance(&mut self, at: Place<'_, E>, state: &mut Matrix<E>) {
        self.read_writes(at);
        self.move_on(state);
    }

    /// With `P` for the scores, and `D = dY Vᵀ` for their gradients:
    ///
    /// ```text
    /// dQ = D K + e^G ∘ (dY Sᵀ)           dV = Pᵀ dY + (e^{G_m - G} ∘ K) dS
    /// dK = Dᵀ Q + e^{G_m - G} ∘ (V dSᵀ)  dS ← e^{G_m} dS + (e^G ∘ Q)ᵀ dY
    /// ```
    ///
    /// where products with `D` have the decays between.
    fn backward(
        &mut self,
        at: Place<'_, E>,
        dy: Head<'_, E>,
        state: &Matrix<E>,
        d_state: &mut Matrix<E>,
        to: &mut HeadGradients<'_, E>,
    ) {
        self.read_writes(at);
        let Self { sizes, decay, q, k, v, keys, scores, y, back } = self;
        let Some(Back { d_scores, dq, dk, dv, v_turned, state_turned, ledger }) = back else { return };
        at.read(&at.inputs.q, q);
        read(y, dy, at.range, sizes.p);
        y.scale(at.inputs.gain);
        ledger.clear(to.log_d.is_some(), at.range.1, sizes.width);

        decay.keys(k, keys);
        decay.scores(When::After, q, [Side { y: k, keys, scores }]);
        v_turned.set_transpose(v);
        d_scores.set_product(y, v_turned, Part::Lower);
        dv.set_turned_product(scores, y, Part::LeftLower);

        state_turned.set_transpose(state);
        dq.set_product(y, state_turned, Part::Whole);
        decay.since_start(When::After, dq);
        state_turned.set_transpose(d_state);
        dk.set_product(v, state_turned, Part::Whole);
        decay.to_end(dk);
        if ledger.wanted() {
            decay.note_reads(When::After, q, dq, ledger);
            decay.note_writes(k, dk, ledger);
            decay.note_memory(state, d_state, ledger);
        }
        decay.scores_back(When::After, q, dq, [SideBack { y: k, keys, scores, d_scores, dy: dk }], ledger);
        to.q.put(at.range.0, dq.rows(), sizes.streamed);
        to.k.put(at.range.0, dk.rows(), sizes.streamed);

        decay.to_end(k);
        dv.add_product(k, d_state, Part::Whole);
        to.v.put(at.range.0, dv.rows(), sizes.streamed);
        decay.since_start(When::After, q);
        decay.total(d_state);
        d_state.add_turned_product(q, y, Part::Whole);
        if let Some(log_d) = &mut to.log_d {
            log_d.put(at.range.0, ledger.finish(), sizes.streamed);
        }
    }
}
