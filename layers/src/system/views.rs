//! What can be looked at: the same calls for every mixer.

use burn::tensor::{Tensor, TensorData};

use super::engine;
use super::scan::{segment_sums, unbind};
use super::{Form, Io, Mixer, State, System, Transition};
use crate::{Error, Result};

/// How a spectrum relates to the layer's true dynamics (dsf.md 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpectrumKind {
    /// Eigenvalues of `Λ_t`, which is the Jacobian `∂h_t/∂h_{t-1}`: linear-state mixers.
    Exact,
    /// Eigenvalues of `Λ_t` with gates frozen along the trajectory: non-linear cells.
    Frozen,
    /// Ratios of successive normalisers: softmax attention seen as a system.
    Normaliser,
}

/// Eigenvalues of the state transition, token by token.
#[derive(Clone, Debug)]
pub struct Spectrum {
    /// Real parts `[b, h, t, m]` of the `m` distinct eigenvalues.
    pub re: Tensor<4>,
    /// Imaginary parts, where there are any.
    pub im: Option<Tensor<4>>,
    /// What they are eigenvalues of.
    pub kind: SpectrumKind,
}

impl Spectrum {
    /// Moduli `[b, h, t, m]`.
    pub fn modulus(&self) -> Tensor<4> {
        match &self.im {
            Some(im) => (self.re.clone().square() + im.clone().square()).sqrt(),
            None => self.re.clone().abs(),
        }
    }

    /// Effective half-life in tokens, `ln 2 / mean_t(-ln|λ|)`, `[b, h, m]`; 1e9 stands for "never".
    pub fn half_life(&self) -> Tensor<3> {
        let modulus = self.modulus();
        let later = modulus.dims()[2] - 1;
        let modulus = match self.kind {
            // The first ratio is 0 because nothing was there, not because it was forgotten.
            SpectrumKind::Normaliser if later > 0 => modulus.narrow(2, 1, later),
            SpectrumKind::Normaliser => modulus.ones_like(),
            SpectrumKind::Exact | SpectrumKind::Frozen => modulus,
        };
        let decay = modulus.clamp_min(1e-30).log().neg().mean_dim(2).squeeze_dim::<3>(2);
        decay.clamp_min(std::f64::consts::LN_2 * 1e-9).recip().mul_scalar(std::f64::consts::LN_2)
    }
}

/// What implied attention is made of.
#[derive(Clone, Debug)]
pub enum Terms {
    /// `M_ij = C_i (Λ_i … Λ_{j+1}) B_j + [i = j] D_i`, before what the layer makes of its output.
    Linear(System),
    /// `M_ij = exp(s q_i·k_j) / Σ_{l ≤ i} exp(s q_i·k_l)`
    Softmax {
        /// Queries as they are compared, `[b, h, t, n]`.
        q: Tensor<4>,
        /// Keys as they are compared, `[b, h or a divisor of it, t, n]`: each serves a group of queries.
        k: Tensor<4>,
        /// `s`
        scale: f64,
    },
}

/// A named gate or decay along the sequence.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The paper's symbol and meaning, such as `α (decay)`.
    pub name: String,
    /// `[b, t, channels]`
    pub values: Tensor<3>,
}

/// Everything that can be looked at; what an architecture does not have is `None` or empty.
#[derive(Clone, Debug, Default)]
pub struct Views {
    /// Implied attention `M_ij = C_i (Λ_i … Λ_{j+1}) B_j + [i = j] D_i`: `[b, h, t, t]`. Channels that have
    /// a state each are averaged.
    pub attention: Option<Tensor<4>>,
    /// Eigenvalues of the transition.
    pub spectrum: Option<Spectrum>,
    /// Gates and decays.
    pub gates: Vec<Gate>,
    /// Weight given to each head, `[b, t, heads]`; 0 where the router left it out.
    pub router: Option<Tensor<3>>,
    /// Loss of the inner memory on each token before it is written, `[b, h, t]`.
    pub memory_loss: Option<Tensor<3>>,
    /// Frobenius norm of the memory after each token, `[b, h, t]`.
    pub memory_norm: Option<Tensor<3>>,
}

impl Views {
    /// All views of a linear system.
    pub fn of_system(system: System) -> Result<Self> {
        let system = system.settled();
        let spectrum = spectrum(&system)?;
        let log_decay = match &system.transition {
            Transition::Scalar { log_a } => Some(log_a.clone().unsqueeze_dim::<4>(3)),
            Transition::Diagonal { log_a: log } | Transition::Householder { log_d: log, .. } => {
                Some(log.clone())
            }
            Transition::Identity | Transition::Dense { .. } => None,
        };
        let log_decay = log_decay.map(|log| {
            let [b, h, t, n] = log.dims();
            let t = t / system.steps;
            let log = log.reshape([b, h, t, system.steps, n]).sum_dim(3).squeeze_dim::<4>(3);
            log.swap_dims(1, 2).reshape([b, t, h * n])
        });
        let gates =
            log_decay.map(|log| Gate { name: "Λ (decay)".into(), values: log.exp() }).into_iter().collect();
        Ok(Self { attention: Some(implied_attention(system)?), spectrum, gates, ..Self::default() })
    }

    /// Impulse response of token `from`: `M_{from + τ, from}` for `τ = 0…`, `[b, h, t - from]`.
    pub fn impulse_response(&self, from: usize) -> Option<Tensor<3>> {
        let attention = self.attention.clone()?;
        let t = attention.dims()[2];
        (from < t).then(|| attention.narrow(3, from, 1).narrow(2, from, t - from).squeeze_dim(3))
    }

    /// Effective half-life of each eigenvalue in tokens, `[b, h, m]`.
    pub fn half_life(&self) -> Option<Tensor<3>> {
        self.spectrum.as_ref().map(Spectrum::half_life)
    }
}

/// `M`, by running the system on unit impulses: with `v = I`, the output *is* the matrix.
fn implied_attention(system: System) -> Result<Tensor<4>> {
    let ([b, h, t], n) = system.dims();
    let (device, dtype) = match &system.io {
        Io::Outer { k, .. } => (k.device(), k.dtype()),
        Io::Direct { u, .. } => (u.device(), u.dtype()),
    };
    match (system.transition, system.io) {
        (transition, Io::Outer { q, k, .. }) => {
            let eye = Tensor::<2>::eye(t, &device.clone().inner()).cast(dtype);
            let m = system.steps;
            let v =
                eye.reshape([t, 1, t]).expand([t, m, t]).reshape([1, 1, t * m, t]).expand([b, h, t * m, t]);
            let skip = system.skip.map(|d| d.mean_dim(3));
            let impulses = System { transition, io: Io::Outer { q, k, v }, skip, ..system };
            let zero = Tensor::zeros([b, h, n, t], (&device.inner(), dtype));
            Ok(engine::run(impulses, zero, Form::Auto)?.0)
        }
        (Transition::Diagonal { log_a }, Io::Direct { c, .. }) => {
            // Channel by channel, [b·h, n, t, t]; then the mean over channels.
            let columns = log_a.reshape([b * h, t, n]).swap_dims(1, 2).unsqueeze_dim::<4>(3);
            let mut weights = segment_sums(columns).exp();
            if let Some(c) = c {
                let c = c.reshape([b * h, t, n]).swap_dims(1, 2).unsqueeze_dim::<4>(3);
                weights = weights * c;
            }
            let weights = weights.mean_dim(1).reshape([b, h, t, t]);
            let Some(skip) = system.skip else { return Ok(weights) };
            let eye = Tensor::<2>::eye(t, &device.inner()).cast(dtype);
            Ok(weights + skip.mean_dim(3) * eye.unsqueeze::<4>())
        }
        _ => Err(Error::State("one state per channel needs a `Diagonal` transition".into())),
    }
}

fn spectrum(system: &System) -> Result<Option<Spectrum>> {
    let exact = |re| Some(Spectrum { re, im: None, kind: SpectrumKind::Exact });
    if system.steps > 1 {
        let ([b, h, t], n) = system.dims();
        let factors = dense(system).reshape([b * h * t, system.steps, n, n]);
        let product = unbind(factors, 1).into_iter().reduce(|product, factor| factor.matmul(product));
        return product.map(|product| dense_spectrum(product.reshape([b, h, t, n, n]))).transpose();
    }
    Ok(match &system.transition {
        Transition::Identity => {
            let ([b, h, t], _) = system.dims();
            let like = match &system.io {
                Io::Outer { k, .. } => k,
                Io::Direct { u, .. } => u,
            };
            exact(Tensor::ones([b, h, t, 1], (&like.device(), like.dtype())))
        }
        Transition::Scalar { log_a } => exact(log_a.clone().exp().unsqueeze_dim(3)),
        Transition::Diagonal { log_a } => exact(log_a.clone().exp()),
        Transition::Householder { log_d, a, b } if log_d.dims()[3] == 1 => {
            // d (n-1 times) and d + aᵀb
            let d = log_d.clone().exp();
            let other = d.clone() + (a.clone() * b.clone()).sum_dim(3);
            exact(Tensor::cat(vec![d, other], 3))
        }
        Transition::Householder { log_d, a, b } => Some(dense_spectrum(diagonal_plus_rank_one(log_d, a, b))?),
        Transition::Dense { lambda } => Some(dense_spectrum(lambda.clone())?),
    })
}

/// `diag(exp(log_d)) + b aᵀ`, `[b, h, t, n, n]`.
fn diagonal_plus_rank_one(log_d: &Tensor<4>, a: &Tensor<4>, b: &Tensor<4>) -> Tensor<5> {
    let n = a.dims()[3];
    let eye = Tensor::<2>::eye(n, &a.device().inner()).cast(a.dtype()).reshape([1, 1, 1, n, n]);
    let rank_one = b.clone().unsqueeze_dim::<5>(4) * a.clone().unsqueeze_dim::<5>(3);
    log_d.clone().exp().unsqueeze_dim::<5>(4) * eye + rank_one
}

/// `Λ` of every step as a matrix, `[b, h, t m, n, n]`.
fn dense(system: &System) -> Tensor<5> {
    let ([b, h, t], n) = system.dims();
    let (steps, like) = match &system.io {
        Io::Outer { k, .. } => (t * system.steps, k),
        Io::Direct { u, .. } => (t, u),
    };
    let none = Tensor::zeros([b, h, steps, n], (&like.device(), like.dtype()));
    let diagonal = |log_d: &Tensor<4>| diagonal_plus_rank_one(log_d, &none, &none);
    match &system.transition {
        Transition::Identity => diagonal(&none),
        Transition::Scalar { log_a } => diagonal(&log_a.clone().unsqueeze_dim(3)),
        Transition::Diagonal { log_a } => diagonal(log_a),
        Transition::Householder { log_d, a, b } => diagonal_plus_rank_one(log_d, a, b),
        Transition::Dense { lambda } => lambda.clone(),
    }
}

/// Eigenvalues of `[b, h, t, n, n]` by falling real part, computed on the host.
fn dense_spectrum(lambda: Tensor<5>) -> Result<Spectrum> {
    let [b, h, t, n, _] = lambda.dims();
    let (device, dtype) = (lambda.device().inner(), lambda.dtype());
    let entries = crate::Value::from(lambda).to_f64()?;
    let (mut re, mut im) = (Vec::new(), Vec::new());
    for matrix in entries.chunks(n * n) {
        let matrix = nalgebra::DMatrix::from_row_slice(n, n, matrix);
        // Where many eigenvalues are equal, rounding can keep the iteration above the tightest tolerance for ever.
        let schur = [1e-13, 1e-11, 1e-9, 1e-7]
            .into_iter()
            .find_map(|tolerance| nalgebra::linalg::Schur::try_new(matrix.clone(), tolerance, 100 * n));
        let schur = schur.ok_or_else(|| Error::State("the eigenvalues of `Λ` did not converge".into()))?;
        // The iteration's own order hangs on the last bit of its input.
        let mut values: Vec<_> =
            schur.complex_eigenvalues().iter().map(|v| (v.re as f32, v.im as f32)).collect();
        values.sort_by(|x, y| y.0.total_cmp(&x.0).then(y.1.total_cmp(&x.1)));
        for (real, imaginary) in values {
            re.push(real);
            im.push(imaginary);
        }
    }
    let tensor = |v| Tensor::from_data(TensorData::new(v, [b, h, t, n]), (&device, dtype));
    Ok(Spectrum { re: tensor(re), im: Some(tensor(im)), kind: SpectrumKind::Exact })
}

/// Local linearization for any mixer: `[t, t]` with `J_ij ≈ ‖∂y_i/∂x_j‖_F`, by one backward pass through a
/// random ±1 combination of output channels (so each entry is an unbiased estimate of its square).
///
/// The layer's parameters must live on an autodiff device or the input be moved there; `x` is one
/// sequence, `[1, t, d_model]`.
pub fn influence<M: Mixer + ?Sized>(mixer: &M, x: Tensor<3>, state: &State) -> Result<Tensor<2>> {
    let [b, t, d] = x.dims();
    if b != 1 {
        return Err(Error::shape("influence input", "[1, time, d_model]", &x.dims()));
    }
    let signs: Vec<f32> =
        (0..d).map(|c| if (c * 2_654_435_761) >> 7 & 1 == 0 { 1.0 } else { -1.0 }).collect();
    let (device, dtype) = (x.device().inner(), x.dtype());
    let signs = Tensor::<3>::from_data(TensorData::new(signs, [1, 1, d]), (&device, dtype));
    let eye = Tensor::<2>::eye(t, &device).cast(dtype).unsqueeze_dim::<3>(2);
    let rows = x.inner().autodiff().repeat_dim(0, t).require_grad();
    let (y, _) = mixer.forward(rows.clone(), state.repeat(t)?, Form::Auto)?;
    let grads = (y * (eye * signs)).sum().backward();
    let grad = rows.grad(&grads).ok_or_else(|| Error::State("no gradient reached the input".into()))?;
    Ok(grad.square().sum_dim(2).sqrt().squeeze_dim(2))
}
