//! The numbers of a layer that is linear in its state, for all structures of `Λ` alike.

use burn::tensor::Tensor;
use seqzoo::Result;
use seqzoo_layers::Value;
use seqzoo_layers::system::{Io, Read, System, Transition};

use super::{Explanation, Term, dot, list, number};
use crate::Grid;

/// Numbers `[heads, time, width]` on the host.
struct Series {
    values: Vec<f64>,
    time: usize,
    width: usize,
}

impl Series {
    fn of<const D: usize>(x: &Tensor<D>) -> Result<Self> {
        let dims = x.dims();
        let width = dims[3..].iter().product();
        Ok(Self { values: Value::of(x.clone()).to_f64()?, time: dims[2], width })
    }

    /// The entry of a head and time; axes of length 1 are shared by all.
    fn at(&self, head: usize, time: usize) -> &[f64] {
        let heads = self.values.len() / (self.time * self.width).max(1);
        let (head, time) = (head.min(heads - 1), time.min(self.time - 1));
        let start = (head * self.time + time) * self.width;
        &self.values[start..start + self.width]
    }
}

enum Lambda {
    Identity,
    Scalar { log: Series },
    Diagonal { log: Series },
    Householder { log: Series, a: Series, b: Series },
    Dense { matrix: Series },
}

enum Flow {
    Outer { q: Series, k: Series, v: Series },
    Direct { u: Series, c: Option<Series> },
}

/// A [`System`] of one sequence on the host.
pub(super) struct Recurrence {
    lambda: Lambda,
    flow: Flow,
    skip: Option<Series>,
    early: bool,
    steps: usize,
    n: usize,
}

impl Recurrence {
    pub(super) fn read(system: &System) -> Result<Self> {
        let lambda = match &system.transition {
            Transition::Identity => Lambda::Identity,
            Transition::Scalar { log_a } => {
                Lambda::Scalar { log: Series::of(&log_a.clone().unsqueeze_dim::<4>(3))? }
            }
            Transition::Diagonal { log_a } => Lambda::Diagonal { log: Series::of(log_a)? },
            Transition::Householder { log_d, a, b } => {
                Lambda::Householder { log: Series::of(log_d)?, a: Series::of(a)?, b: Series::of(b)? }
            }
            Transition::Dense { lambda } => Lambda::Dense { matrix: Series::of(lambda)? },
        };
        let flow = match &system.io {
            Io::Outer { q, k, v } => Flow::Outer { q: Series::of(q)?, k: Series::of(k)?, v: Series::of(v)? },
            Io::Direct { u, c } => {
                Flow::Direct { u: Series::of(u)?, c: c.as_ref().map(Series::of).transpose()? }
            }
        };
        Ok(Self {
            lambda,
            flow,
            skip: system.skip.as_ref().map(Series::of).transpose()?,
            early: system.read == Read::Before,
            steps: system.steps,
            n: system.dims().1,
        })
    }

    /// `w ← Λ_step w`
    fn transport(&self, head: usize, step: usize, w: &mut [f64]) {
        match &self.lambda {
            Lambda::Identity => {}
            Lambda::Scalar { log } | Lambda::Diagonal { log } => decay(log.at(head, step), w),
            Lambda::Householder { log, a, b } => {
                let read = dot(a.at(head, step), w);
                decay(log.at(head, step), w);
                w.iter_mut().zip(b.at(head, step)).for_each(|(w, b)| *w += b * read);
            }
            Lambda::Dense { matrix } => {
                let old = w.to_vec();
                let rows = matrix.at(head, step).chunks(old.len());
                w.iter_mut().zip(rows).for_each(|(w, row)| *w = dot(row, &old));
            }
        }
    }

    /// `M_ij`, what token `i` reads of token `j`, shown in `grid`.
    pub(super) fn attention(&self, grid: &Grid, value: f64, [head, i, j]: [usize; 3]) -> Explanation {
        let own = self.entry(head, i, j);
        let row: Vec<f64> = (0..=i).map(|l| self.entry(head, i, l)).collect();
        let shown: Vec<f64> = (0..=i).map(|l| f64::from(grid.at(i, l).unwrap_or(0.0))).collect();
        // Some layers divide a row by one number, which no term of the recurrence knows.
        let normaliser = dot(&row, &row) / dot(&row, &shown);
        let gap =
            |z: f64| row.iter().zip(&shown).map(|(own, shown)| (own / z - shown).powi(2)).sum::<f64>().sqrt();
        let size = dot(&shown, &shown).sqrt().max(1e-12);
        let divided = normaliser.is_finite() && gap(1.0) > 1e-4 * size && gap(normaliser) < 1e-4 * size;
        let (mut equation, mut right, mut terms) = self.product(head, i, j);
        if let Some(skip) = self.skip.as_ref().filter(|_| i == j) {
            let d = mean(skip.at(head, i));
            equation.push_str(" + D_i");
            right.push_str(&format!(" + {}", number(d)));
            terms.push(Term::number("D_i", "what a token reads of itself past the state", d));
        }
        if divided {
            terms.push(Term::number(
                "Z_i",
                "the row's normaliser, the same for every j, read off the row",
                normaliser,
            ));
            let equation = equation.replacen("M_ij = ", "M_ij = (", 1) + ") / Z_i";
            let right = format!("({right}) / {}", number(normaliser));
            return Explanation::closed(value, own / normaliser, &equation, &right, terms);
        }
        let mut explanation = Explanation::closed(value, own, &equation, &right, terms);
        if gap(1.0) > 1e-4 * size {
            explanation.note = Some(
                "The recurrence alone; what the layer makes of its output changes this row further.".into(),
            );
        }
        explanation
    }

    /// `M_ij` of the recurrence.
    fn entry(&self, head: usize, i: usize, j: usize) -> f64 {
        let skip = match &self.skip {
            Some(skip) if i == j => mean(skip.at(head, i)),
            _ => 0.0,
        };
        skip + match &self.flow {
            Flow::Outer { q, .. } => dot(q.at(head, i), &self.carried(head, i, j)),
            Flow::Direct { c, .. } => {
                let carried = self.carried(head, i, j);
                match c {
                    Some(c) => dot(c.at(head, i), &carried) / self.n as f64,
                    None => mean(&carried),
                }
            }
        }
    }

    /// What is left of token `j`'s key when token `i` reads.
    fn carried(&self, head: usize, i: usize, j: usize) -> Vec<f64> {
        let mut w = vec![0.0; self.n];
        let last = (i + usize::from(!self.early)) * self.steps;
        for step in j * self.steps..last {
            self.transport(head, step, &mut w);
            if step / self.steps == j {
                match &self.flow {
                    Flow::Outer { k, .. } => {
                        w.iter_mut().zip(k.at(head, step)).for_each(|(w, k)| *w += k);
                    }
                    Flow::Direct { .. } => w.iter_mut().for_each(|w| *w += 1.0),
                }
            }
        }
        w
    }

    /// Equation, right side and terms of the product.
    fn product(&self, head: usize, i: usize, j: usize) -> (String, String, Vec<Term>) {
        let upper = if self.early { "i-1" } else { "i" };
        let carried = self.carried(head, i, j);
        let (q, k) = match &self.flow {
            Flow::Outer { q, k, .. } => (q, k),
            Flow::Direct { c, .. } => {
                let mut terms = vec![Term::vector("Π a_s", "what each channel keeps from j to i", &carried)];
                let equation = match c {
                    Some(_) => format!("M_ij = mean_n c_i[n] Π_{{s=j+1..{upper}}} a_s[n]"),
                    None => format!("M_ij = mean_n Π_{{s=j+1..{upper}}} a_s[n]"),
                };
                let mut right = format!("mean {}", list(&carried));
                if let Some(c) = c {
                    right = format!("mean {} ∘ {}", list(c.at(head, i)), list(&carried));
                    terms.push(Term::vector("c_i", "how each channel is read", c.at(head, i)));
                }
                return (equation, right, terms);
            }
        };
        let query = q.at(head, i);
        let mut terms = vec![Term::vector("q_i", "query of the reading token", query)];
        if self.early && i == j {
            terms.push(Term::number("q_i·0", "a token reads before it writes", 0.0));
            return ("M_ii = 0".into(), "0".into(), terms);
        }
        let simple = self.steps == 1;
        if simple {
            terms.push(Term::vector("k_j", "key of the token that is read", k.at(head, j)));
        }
        let steps = j + 1..i + usize::from(!self.early);
        let kept =
            |log: &Series, channel: usize| steps.clone().map(|s| log.at(head, s)[channel]).sum::<f64>().exp();
        match &self.lambda {
            Lambda::Identity if simple => {
                let right = format!("{}·{}", list(query), list(k.at(head, j)));
                ("M_ij = q_i · k_j".into(), right, terms)
            }
            Lambda::Scalar { log } if simple => {
                let kept = kept(log, 0);
                terms.push(Term::number("Π α_s", "what is left of everything written at j", kept));
                let right = format!("{} {}·{}", number(kept), list(query), list(k.at(head, j)));
                (format!("M_ij = (Π_{{s=j+1..{upper}}} α_s) q_i · k_j"), right, terms)
            }
            Lambda::Diagonal { log } if simple => {
                let kept: Vec<f64> = (0..self.n).map(|n| kept(log, n)).collect();
                terms.push(Term::vector(
                    "Π α_s",
                    "what is left in each channel of what was written at j",
                    &kept,
                ));
                let right = format!("{}·({} ∘ {})", list(query), list(&kept), list(k.at(head, j)));
                (format!("M_ij = q_i · (Π_{{s=j+1..{upper}}} α_s ∘ k_j)"), right, terms)
            }
            _ => {
                let meaning = "what later tokens have left of the key";
                let right = format!("{}·{}", list(query), list(&carried));
                let (equation, symbol) = match self.lambda {
                    Lambda::Householder { .. } if simple => (
                        format!("M_ij = q_i · Λ_{upper} … Λ_{{j+1}} k_j,  Λ_s = diag(d_s) + b_s a_sᵀ"),
                        "Λ … Λ k_j",
                    ),
                    _ if simple => (format!("M_ij = q_i · Λ_{upper} … Λ_{{j+1}} k_j"), "Λ … Λ k_j"),
                    _ => {
                        ("M_ij = q_i · Σ_m Λ … Λ k_{j,m}  over the m steps of token j".into(), "Σ Λ … Λ k_j")
                    }
                };
                terms.push(Term::vector(symbol, meaning, &carried));
                (equation, right, terms)
            }
        }
    }

    /// Entry `[row, column]` of a head's memory, `old` before the token and `new` after it.
    pub(super) fn state(
        &self,
        old: &[f64],
        new: &[f64],
        p: usize,
        [head, row, column]: [usize; 3],
        token: usize,
    ) -> Explanation {
        let at = |memory: &[f64], r: usize| memory[r * p + column];
        let value = at(new, row);
        let (written, write_terms, write) = match &self.flow {
            Flow::Outer { k, v, .. } if self.steps == 1 => {
                let (k, v) = (k.at(head, token)[row], v.at(head, token)[column]);
                let terms = vec![
                    Term::number("k_t[r]", "key channel of the token", k),
                    Term::number("v_t[c]", "value channel of the token", v),
                ];
                (k * v, terms, format!("{}·{}", number(k), number(v)))
            }
            Flow::Direct { u, .. } => {
                let u = u.at(head, token)[row];
                (u, vec![Term::number("u_t[r]", "what the token writes", u)], number(u))
            }
            Flow::Outer { .. } => {
                let note =
                    format!("The token takes {} steps, each of which corrects the memory.", self.steps);
                return Explanation::open(value, "H_t = Λ_{t,m} … Λ_{t,1} H_{t-1} + …", &note);
            }
        };
        let before = at(old, row);
        let mut terms = vec![Term::number("H_{t-1}[r,c]", "this entry before the token", before)];
        let outer = matches!(self.flow, Flow::Outer { .. });
        let tail = if outer { "k_t[r] v_t[c]" } else { "u_t[r]" };
        let place = if outer { "[r,c]" } else { "[r]" };
        let kept_row = |log: &Series| {
            let log = log.at(head, token);
            log[row.min(log.len() - 1)].exp()
        };
        let (recomputed, equation, right) = match &self.lambda {
            Lambda::Identity => (
                before + written,
                format!("H_t{place} = H_{{t-1}}{place} + {tail}"),
                format!("{} + {write}", number(before)),
            ),
            Lambda::Scalar { log } | Lambda::Diagonal { log } => {
                let kept = kept_row(log);
                terms.push(Term::number("α_t[r]", "share that is kept", kept));
                (
                    kept * before + written,
                    format!("H_t{place} = α_t[r] H_{{t-1}}{place} + {tail}"),
                    format!("{}·{} + {write}", number(kept), number(before)),
                )
            }
            Lambda::Householder { log, a, b } => {
                let (kept, b) = (kept_row(log), b.at(head, token)[row]);
                let read: f64 = a.at(head, token).iter().enumerate().map(|(r, a)| a * at(old, r)).sum();
                terms.push(Term::number("d_t[r]", "share that is kept", kept));
                terms.push(Term::number(
                    "(a_tᵀ H_{t-1})[c]",
                    "what the memory already answers to the key",
                    read,
                ));
                terms.push(Term::number("b_t[r]", "how that answer is taken back", b));
                (
                    kept * before + b * read + written,
                    format!("H_t[r,c] = d_t[r] H_{{t-1}}[r,c] + b_t[r] (a_tᵀ H_{{t-1}})[c] + {tail}"),
                    format!("{}·{} + {}·{} + {write}", number(kept), number(before), number(b), number(read)),
                )
            }
            Lambda::Dense { matrix } => {
                let matrix = &matrix.at(head, token)[row * self.n..(row + 1) * self.n];
                let moved: f64 = matrix.iter().enumerate().map(|(r, m)| m * at(old, r)).sum();
                terms.push(Term::number(
                    "(Λ_t H_{t-1})[r,c]",
                    "the old memory moved by the transition",
                    moved,
                ));
                (
                    moved + written,
                    format!("H_t[r,c] = (Λ_t H_{{t-1}})[r,c] + {tail}"),
                    format!("{} + {write}", number(moved)),
                )
            }
        };
        terms.extend(write_terms);
        Explanation::closed(value, recomputed, &equation, &right, terms)
    }

    /// The decay of a token and channel (heads one after the other).
    pub(super) fn decay(&self, value: f64, token: usize, channel: usize) -> Explanation {
        let log = match &self.lambda {
            Lambda::Scalar { log } | Lambda::Diagonal { log } | Lambda::Householder { log, .. } => log,
            Lambda::Identity | Lambda::Dense { .. } => {
                return Explanation::open(value, "Λ_t", "This layer has no decay.");
            }
        };
        let (head, channel) = (channel / log.width, channel % log.width);
        let log: f64 = (0..self.steps).map(|m| log.at(head, token * self.steps + m)[channel]).sum();
        let terms = vec![Term::number("log α_t", "kept as a logarithm, never above 0", log)];
        Explanation::closed(value, log.exp(), "α_t = exp(log α_t)", &format!("exp({})", number(log)), terms)
    }

    /// An eigenvalue with a closed form, where there is one.
    pub(super) fn eigenvalue(&self, value: f64, [head, token, m]: [usize; 3]) -> Option<Explanation> {
        if self.steps > 1 {
            return None;
        }
        let (recomputed, equation, right, terms) = match &self.lambda {
            Lambda::Identity => (1.0, "λ = 1: nothing is forgotten".to_string(), "1".to_string(), Vec::new()),
            Lambda::Scalar { log } | Lambda::Diagonal { log } => {
                let log = *log.at(head, token).get(m)?;
                let terms = vec![Term::number("log α_t", "kept as a logarithm, never above 0", log)];
                (log.exp(), "λ = α_t = exp(log α_t)".into(), format!("exp({})", number(log)), terms)
            }
            Lambda::Householder { log, a, b } if log.width == 1 => {
                let d = log.at(head, token)[0].exp();
                let along = dot(a.at(head, token), b.at(head, token));
                let mut terms = vec![Term::number("d_t", "share that is kept", d)];
                if m == 0 {
                    let equation = "λ₁ = d_t: every direction but the key's".into();
                    (d, equation, number(d), terms)
                } else {
                    terms.push(Term::number("a_t·b_t", "what is taken back along the key", along));
                    let equation = "λ₂ = d_t + a_t·b_t: along the key".into();
                    (d + along, equation, format!("{} + {}", number(d), number(along)), terms)
                }
            }
            Lambda::Householder { .. } | Lambda::Dense { .. } => return None,
        };
        let same = (recomputed - value).abs() < 1e-4 * value.abs().max(1e-3);
        same.then(|| Explanation::closed(value, recomputed, &equation, &right, terms))
    }
}

fn decay(log: &[f64], w: &mut [f64]) {
    let last = log.len() - 1;
    w.iter_mut().enumerate().for_each(|(n, w)| *w *= log[n.min(last)].exp());
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}
