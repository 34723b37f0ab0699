//! The functions and their derivatives, number by number.

use crate::kernels::vector::{Vector, fused, log_1p, sigmoid};
use crate::nn::{Formula, Function, LOG_ZERO, MOST_SLOPE};

/// Of one place: `x`, `y`, `z`, `p`, `q`.
pub(super) type Five<E> = [E; 5];

/// Numbers of a function, rounded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers<E> {
    scale: E,
    low: E,
    high: E,
}

impl<E: Vector> Numbers<E> {
    pub(super) fn new(formula: Formula) -> Self {
        let [scale, low, high] = [formula.scale, formula.low, formula.high].map(E::of);
        Self { scale, low, high }
    }
}

/// Runs `$run` with the number of a function as a constant, so that its loop has no choice inside.
macro_rules! constant {
    ($function:expr, $($of:ident)*, |$f:ident| $run:expr) => {
        match $function {
            $(Function::$of => {
                const $f: u8 = Function::$of as u8;
                $run
            })*
        }
    };
}

pub(super) use constant;

#[inline(always)]
pub(super) fn value<E: Vector, const FUSED: bool, const F: u8>(
    [x, y, z, p, q]: Five<E>,
    numbers: Numbers<E>,
) -> E {
    let one = E::of(1.0);
    if F == Function::Silu as u8 {
        x * sigmoid::<E, FUSED>(x)
    } else if F == Function::Sigmoid as u8 {
        numbers.scale * sigmoid::<E, FUSED>(x)
    } else if F == Function::Closed as u8 {
        numbers.scale * sigmoid::<E, FUSED>(-x)
    } else if F == Function::GeluTanh as u8 {
        gelu::<E, FUSED>(x)[0]
    } else if F == Function::LogSigmoid as u8 {
        -(numbers.scale * softplus::<E, FUSED>(-x))
    } else if F == Function::EluPlusOne as u8 {
        numbers.scale * elu_plus_one::<E, FUSED>(x)
    } else if F == Function::LogGate as u8 {
        -(numbers.scale * softplus::<E, FUSED>(-(x + p)))
    } else if F == Function::Skip as u8 {
        fused::<E, FUSED>(p, y, x)
    } else if F == Function::SiluGate as u8 {
        x * (y * sigmoid::<E, FUSED>(y))
    } else if F == Function::SigmoidGate as u8 {
        x * sigmoid::<E, FUSED>(y)
    } else if F == Function::GeluGate as u8 {
        x * gelu::<E, FUSED>(y)[0]
    } else if F == Function::Step as u8 {
        clamp(softplus::<E, FUSED>(x + p), numbers)
    } else if F == Function::StepDecay as u8 {
        -(grow::<E, FUSED>(q) * clamp(softplus::<E, FUSED>(x + p), numbers))
    } else if F == Function::GateDecay as u8 {
        let log = -(numbers.scale * softplus::<E, FUSED>(q)) * sigmoid::<E, FUSED>(x + p);
        fused::<E, FUSED>(log, one - y, y * E::of(LOG_ZERO))
    } else if F == Function::Erase as u8 {
        -(x * y.exponential::<FUSED>())
    } else if F == Function::Share as u8 {
        x / (y + numbers.scale)
    } else if F == Function::Tanh as u8 {
        x.bounded::<FUSED>()
    } else if F == Function::SquaredRelu as u8 {
        positive(x) * positive(x)
    } else if F == Function::Rate as u8 {
        -(if x > numbers.scale { numbers.scale } else { x }).exponential::<FUSED>()
    } else if F == Function::Lerp as u8 {
        fused::<E, FUSED>(p, y - x, x)
    } else if F == Function::Mix as u8 {
        fused::<E, FUSED>(z + p, y - x, x)
    } else if F == Function::Rescale as u8 {
        x * fused::<E, FUSED>(p, y - one, one)
    } else if F == Function::Product as u8 {
        x * y * p
    } else {
        E::of(minus_expm1::<E, FUSED>(x + x).to_f64().sqrt()) * sigmoid::<E, FUSED>(y + p) * z
    }
}

/// Derivatives by all five; that by `y` of [`Function::GateDecay`] is missing.
#[inline(always)]
pub(super) fn slopes<E: Vector, const FUSED: bool, const F: u8>(
    [x, y, z, p, q]: Five<E>,
    numbers: Numbers<E>,
) -> Five<E> {
    let (none, one) = (E::default(), E::of(1.0));
    if F == Function::Silu as u8 {
        [silu::<E, FUSED>(x)[1], none, none, none, none]
    } else if F == Function::Sigmoid as u8 {
        let open = sigmoid::<E, FUSED>(x);
        [numbers.scale * open * (one - open), none, none, none, none]
    } else if F == Function::Closed as u8 {
        let open = sigmoid::<E, FUSED>(-x);
        [-(numbers.scale * open * (one - open)), none, none, none, none]
    } else if F == Function::GeluTanh as u8 {
        [gelu::<E, FUSED>(x)[1], none, none, none, none]
    } else if F == Function::LogSigmoid as u8 {
        [numbers.scale * sigmoid::<E, FUSED>(-x), none, none, none, none]
    } else if F == Function::EluPlusOne as u8 {
        let power = (if x > none { none } else { x }).exponential::<FUSED>();
        [numbers.scale * power, none, none, none, none]
    } else if F == Function::LogGate as u8 {
        let slope = numbers.scale * sigmoid::<E, FUSED>(-(x + p));
        [slope, none, none, slope, none]
    } else if F == Function::Skip as u8 {
        [one, p, none, y, none]
    } else if F == Function::SiluGate as u8 {
        let [value, slope] = silu::<E, FUSED>(y);
        [value, x * slope, none, none, none]
    } else if F == Function::SigmoidGate as u8 {
        let open = sigmoid::<E, FUSED>(y);
        [open, x * (open * (one - open)), none, none, none]
    } else if F == Function::GeluGate as u8 {
        let [value, slope] = gelu::<E, FUSED>(y);
        [value, x * slope, none, none, none]
    } else if F == Function::Step as u8 {
        let slope = step_slope::<E, FUSED>(x + p, numbers);
        [slope, none, none, slope, none]
    } else if F == Function::StepDecay as u8 {
        let rate = -grow::<E, FUSED>(q);
        let slope = rate * step_slope::<E, FUSED>(x + p, numbers);
        [slope, none, none, slope, rate * clamp(softplus::<E, FUSED>(x + p), numbers)]
    } else if F == Function::GateDecay as u8 {
        let (open, keep) = (sigmoid::<E, FUSED>(x + p), (one - y) * numbers.scale);
        let slope = -(keep * softplus::<E, FUSED>(q)) * (open * (one - open));
        [slope, none, none, slope, -(keep * sigmoid::<E, FUSED>(q)) * open]
    } else if F == Function::Erase as u8 {
        let power = -y.exponential::<FUSED>();
        [power, x * power, none, none, none]
    } else if F == Function::Share as u8 {
        let part = one / (y + numbers.scale);
        [part, -(x * part * part), none, none, none]
    } else if F == Function::Tanh as u8 {
        let found = x.bounded::<FUSED>();
        [one - found * found, none, none, none, none]
    } else if F == Function::SquaredRelu as u8 {
        [positive(x) + positive(x), none, none, none, none]
    } else if F == Function::Rate as u8 {
        let slope = -(if x > numbers.scale { numbers.scale } else { x }).exponential::<FUSED>();
        [if x > numbers.scale { none } else { slope }, none, none, none, none]
    } else if F == Function::Lerp as u8 {
        [one - p, p, none, y - x, none]
    } else if F == Function::Mix as u8 {
        [one - (z + p), z + p, y - x, y - x, none]
    } else if F == Function::Rescale as u8 {
        [fused::<E, FUSED>(p, y - one, one), x * p, none, x * (y - one), none]
    } else if F == Function::Product as u8 {
        [y * p, x * p, none, x * y, none]
    } else {
        let open = sigmoid::<E, FUSED>(y + p);
        let rest = minus_expm1::<E, FUSED>(x + x).to_f64();
        let least = 0.25 / (MOST_SLOPE * MOST_SLOPE);
        let root = E::of(rest.sqrt());
        // Of the root by `x`: its slope times `-2 e^{2 x}`.
        let steep = E::of(-1.0 / (if rest > least { rest } else { least }).sqrt());
        let by_root = steep * (x + x).exponential::<FUSED>();
        let by_gate = root * (open * (one - open)) * z;
        [by_root * open * z, by_gate, root * open, by_gate, none]
    }
}

#[inline(always)]
fn clamp<E: Vector>(x: E, numbers: Numbers<E>) -> E {
    let x = if x < numbers.low { numbers.low } else { x };
    if x > numbers.high { numbers.high } else { x }
}

/// `max(x, 0)`
#[inline(always)]
fn positive<E: Vector>(x: E) -> E {
    if x > E::default() { x } else { E::default() }
}

/// Of a clamped step.
#[inline(always)]
fn step_slope<E: Vector, const FUSED: bool>(z: E, numbers: Numbers<E>) -> E {
    let step = softplus::<E, FUSED>(z);
    let slope = sigmoid::<E, FUSED>(z);
    if step < numbers.low || step > numbers.high { E::default() } else { slope }
}

#[inline(always)]
fn silu<E: Vector, const FUSED: bool>(x: E) -> [E; 2] {
    let one = E::of(1.0);
    let open = sigmoid::<E, FUSED>(x);
    [x * open, open * fused::<E, FUSED>(x, one - open, one)]
}

#[inline(always)]
fn elu_plus_one<E: Vector, const FUSED: bool>(x: E) -> E {
    let (none, one) = (E::default(), E::of(1.0));
    // The vector function is for numbers below 87.
    let power = (if x > none { none } else { x }).exponential::<FUSED>();
    if x > none { x + one } else { power }
}

/// The value and the derivative.
#[inline(always)]
fn gelu<E: Vector, const FUSED: bool>(x: E) -> [E; 2] {
    // `(1 + tanh u) / 2 = sigmoid(2 u)`
    let one = E::of(1.0);
    let double = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let (rate, cubic) = (E::of(double), E::of(double * 0.044715));
    let square = x * x;
    let open = sigmoid::<E, FUSED>(x * fused::<E, FUSED>(cubic, square, rate));
    let inner = fused::<E, FUSED>(E::of(3.0) * cubic, square, rate);
    [x * open, open * fused::<E, FUSED>(x * inner, one - open, one)]
}

/// `log(1 + e^z)`
#[inline(always)]
fn softplus<E: Vector, const FUSED: bool>(z: E) -> E {
    let power = minus_size(z).exponential::<FUSED>();
    log_1p::<E, FUSED>(power) + if z > E::default() { z } else { E::default() }
}

/// `e^z`
#[inline(always)]
fn grow<E: Vector, const FUSED: bool>(z: E) -> E {
    // The vector function is for numbers below 87.
    if z > E::of(80.0) { E::of(z.to_f64().exp()) } else { z.exponential::<FUSED>() }
}

/// `-|z|`
#[inline(always)]
fn minus_size<E: Vector>(z: E) -> E {
    if z > E::default() { -z } else { z }
}

/// `1 - e^v` for `v ≤ 0`, without cancellation near 0.
#[inline(always)]
fn minus_expm1<E: Vector, const FUSED: bool>(v: E) -> E {
    let one = E::of(1.0);
    let terms = if size_of::<E>() == 4 { 9 } else { 16 };
    let mut sum = one;
    let mut k = terms;
    while k > 1 {
        sum = fused::<E, FUSED>(sum, v * E::of(1.0 / k as f64), one);
        k -= 1;
    }
    if v > E::of(-0.5) { -v * sum } else { one - v.exponential::<FUSED>() }
}
