//! Few tokens normalised, gated and mapped, as layers end, without gradients: a cube makes the tokens ready, a tile at a
//! time, for [`COLUMNS`] columns of the matrix, whose rows its [`STRIPES`] rows of units share.
//!
//! Floor: memory, 4 bytes per number of the matrix in one launch instead of two. Every cube reads the tokens, and twice
//! where they are normalised; they come from the cache.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use cubecl::prelude::*;

use super::buffer::{MOST_CUBES, empty, plain};
use super::pointwise::alone;
use crate::kernels::linear::FEW;
use crate::nn::{Activation, Function, Gated, Normalize};

/// Columns of a cube.
const COLUMNS: usize = 32;

/// Rows of units in a cube.
const STRIPES: usize = 8;

/// Units of a cube, and numbers of a token that they make ready at a time.
const UNITS: usize = COLUMNS * STRIPES;

/// Most rows that are normalised.
const MOST_ROWS: usize = 512;

/// Numbers of a row from which on all units of a cube take it together.
const WIDE: usize = 512;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    tokens: usize,
    /// Numbers of a token
    depth: usize,
    /// Numbers of it that lie one after another
    n: usize,
    /// Numbers that are normalised together
    width: usize,
    /// Units that take them
    lanes: usize,
    normalised: bool,
    mean: bool,
    weighted: bool,
    gate: Option<Gate>,
    biased: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Gate {
    before: bool,
    /// None for the values themselves
    opening: Option<Function>,
}

/// What a layer ends with.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// Tokens `[a, b, m, n]`
    pub(crate) x: Burn<4>,
    pub(crate) norm: Option<Normalize>,
    /// As `x`
    pub(crate) gate: Option<Gated<4>>,
    /// `[m n, d]`
    pub(crate) weight: Burn<2>,
    /// `[d]`
    pub(crate) bias: Option<Burn<1>>,
}

impl Output {
    /// `W z + bias` of what becomes of every token, `[a, b, d]`; `None` where it is not for the kernel: many tokens,
    /// gradients, another device or element type, a norm with a mean or a bias, a matrix whose rows do not lie side by side.
    pub(crate) fn project(self) -> Option<Burn<3>> {
        let Self { x, norm, gate, weight, bias } = self;
        let ([a, b, m, n], [depth, d]) = (x.dims(), weight.dims());
        let tokens = a * b;
        if !FEW.contains(&tokens) || depth != m * n || depth == 0 || d.div_ceil(COLUMNS) > MOST_CUBES {
            return None;
        }
        let joint = norm.as_ref().is_some_and(|norm| norm.scaling.joint);
        let width = if joint { depth } else { n };
        let scales = |norm: &Normalize| {
            let fits = |scale: &Burn<4>| [[1, 1, 1, n], [1, 1, m, n]].contains(&scale.dims());
            !norm.scaling.centred && norm.bias.is_none() && norm.weight.as_ref().is_none_or(fits)
        };
        let opens = |gate: &Gated<4>| {
            let known = gate.activation == Activation::Identity || gate.activation.function().is_some();
            known && gate.values.dims() == x.dims()
        };
        let rows = tokens * depth / width;
        let all = norm.as_ref().is_none_or(|norm| scales(norm) && rows <= MOST_ROWS)
            && gate.as_ref().is_none_or(opens)
            && bias.as_ref().is_none_or(|bias| bias.dims() == [d]);
        if !all {
            return None;
        }
        let scaling = norm.as_ref().map(|norm| norm.scaling);
        let scale = norm.and_then(|norm| norm.weight);
        let form = Form {
            tokens,
            depth,
            n,
            width,
            lanes: if width < WIDE { COLUMNS } else { UNITS },
            normalised: scaling.is_some(),
            mean: scaling.is_some_and(|scaling| scaling.mean),
            weighted: scale.is_some(),
            gate: gate.as_ref().map(|gate| Gate { before: gate.before, opening: gate.activation.function() }),
            biased: bias.is_some(),
        };
        // Added to the weight, or multiplies where there is none.
        let offset = scaling.map_or(1.0, |scaling| if form.weighted { scaling.offset } else { scaling.gain });
        let [x, weight] = [plain(&x), plain(&weight.unsqueeze::<4>())];
        let (x, weight) = (x?, weight?);
        if weight.meta.strides()[3] != 1 && d > 1 {
            return None;
        }
        // In place of what there is not: it is not read.
        let given = |x: Option<Burn<4>>| x.map_or_else(|| Some(weight.clone()), |x| plain(&x));
        let scale = given(scale)?;
        let gate = given(gate.map(|gate| gate.values))?;
        let bias = given(bias.map(Burn::unsqueeze))?;
        let y = empty(&x, &[a, b, d]);
        output_kernel::launch(
            &y.client,
            CubeCount::Static(d.div_ceil(COLUMNS) as u32, 1, 1),
            CubeDim::new_2d(COLUMNS as u32, STRIPES as u32),
            x.into_tensor_arg(),
            scale.into_tensor_arg(),
            gate.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            scaling.map_or(0.0, |scaling| scaling.eps) as f32,
            offset as f32,
            form,
        );
        Some(Burn::from_primitive::<CubeBackend>(y))
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn output_kernel(
    x: &Tensor<f32>,
    scale: &Tensor<f32>,
    gate: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: &Tensor<f32>,
    y: &mut Tensor<f32>,
    eps: f32,
    offset: f32,
    #[comptime] form: Form,
) {
    let (tokens, depth) = comptime!((form.tokens, form.depth));
    let groups = comptime!(form.depth / form.width);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(form.tokens * UNITS));
    let mut factors = Shared::<[f32]>::new_slice(comptime!(form.tokens * groups));
    let lane = UNIT_POS_X as usize;
    let stripe = UNIT_POS_Y as usize;
    let unit = stripe * COLUMNS + lane;
    if comptime!(form.normalised) {
        let (lanes, count) = comptime!((form.lanes, form.tokens * groups));
        let slots = comptime!(UNITS / form.lanes);
        for round in 0..comptime!(count.div_ceil(slots)) {
            let row = round * slots + unit / lanes;
            let start = unit % lanes;
            let mut squares = f32::new(0.0);
            if row < count {
                for c in range_stepped(start, form.width, lanes) {
                    let u = entering(x, gate, row / groups, row % groups * form.width + c, form);
                    squares += u * u;
                }
            }
            // What was there before has been read by all.
            sync_cube();
            shared[unit] = squares;
            sync_cube();
            if row < count && start == 0 {
                let mut sum = f32::new(0.0);
                for i in 0..lanes {
                    sum += shared[unit + i];
                }
                if comptime!(form.mean) {
                    sum /= f32::cast_from(form.width);
                }
                factors[row] = f32::new(1.0) / f32::sqrt(sum + eps);
            }
        }
    }
    let d = weight.shape(3);
    let column = CUBE_POS_X as usize * COLUMNS + lane;
    let mut sums = Array::<f32>::new(tokens);
    #[unroll]
    for token in 0..tokens {
        sums[token] = f32::new(0.0);
    }
    for tile in 0..comptime!(depth.div_ceil(UNITS)) {
        let first = tile * UNITS;
        let at = first + unit;
        sync_cube();
        #[unroll]
        for token in 0..tokens {
            let mut z = f32::new(0.0);
            if at < depth {
                z = entering(x, gate, token, at, form);
                if comptime!(form.normalised) {
                    let mut grown = offset;
                    if comptime!(form.weighted) {
                        let head = at / form.n % scale.shape(2);
                        grown += scale[head * scale.stride(2) + at % form.n * scale.stride(3)];
                    }
                    z *= factors[token * groups + at / form.width] * grown;
                }
                if comptime!(form.gate.is_some_and(|gate| !gate.before)) {
                    z *= open(gate, token, at, form);
                }
            }
            shared[token * UNITS + unit] = z;
        }
        sync_cube();
        if column < d {
            for i in range_stepped(stripe, min(UNITS, depth - first), STRIPES) {
                let number = weight[(first + i) * weight.stride(2) + column];
                #[unroll]
                for token in 0..tokens {
                    sums[token] += number * shared[token * UNITS + i];
                }
            }
        }
    }
    sync_cube();
    #[unroll]
    for token in 0..tokens {
        shared[(token * STRIPES + stripe) * COLUMNS + lane] = sums[token];
    }
    sync_cube();
    if stripe < tokens && column < d {
        let mut sum = f32::new(0.0);
        for i in 0..STRIPES {
            sum += shared[(stripe * STRIPES + i) * COLUMNS + lane];
        }
        if comptime!(form.biased) {
            sum += bias[column * bias.stride(3)];
        }
        y[stripe * d + column] = sum;
    }
}

/// Number `at` of a token as it is normalised.
#[cube]
fn entering(x: &Tensor<f32>, gate: &Tensor<f32>, token: usize, at: usize, #[comptime] form: Form) -> f32 {
    let mut u = x[place(x, token, at, form)];
    if comptime!(form.gate.is_some_and(|gate| gate.before)) {
        u *= open(gate, token, at, form);
    }
    u
}

/// What multiplies number `at` of a token.
#[cube]
fn open(gate: &Tensor<f32>, token: usize, at: usize, #[comptime] form: Form) -> f32 {
    let value = gate[place(gate, token, at, form)];
    let opening = comptime!(form.gate.and_then(|gate| gate.opening));
    let mut found = value;
    if comptime!(opening.is_some()) {
        found = alone(value, f32::new(1.0), comptime!(opening.unwrap_or(Function::Sigmoid)));
    }
    found
}

/// Where number `at` of a token is in `x`.
#[cube]
fn place(x: &Tensor<f32>, token: usize, at: usize, #[comptime] form: Form) -> usize {
    let b = x.shape(1);
    token / b * x.stride(0) + token % b * x.stride(1) + at / form.n * x.stride(2) + at % form.n * x.stride(3)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::Scaling;
    use crate::testing::{Draw, error, graphics, numbers};

    /// The same in tensor operations on the CPU.
    fn apart(output: Output) -> Vec<f64> {
        let Output { x, norm, gate, weight, bias } = output;
        let [a, b, m, n] = x.dims();
        let y = match (norm, gate) {
            (Some(norm), gate) => norm.run_four(x, gate, false),
            (None, Some(gate)) => x * gate.open(),
            (None, None) => x,
        };
        let y = y.reshape([a * b, m * n]).matmul(weight);
        numbers(if let Some(bias) = bias { y + bias.unsqueeze() } else { y })
    }

    fn there(output: &Output, device: &Device) -> Output {
        let Output { x, norm, gate, weight, bias } = output.clone();
        let norm = norm.map(|norm| Normalize { weight: norm.weight.map(|x| x.to_device(device)), ..norm });
        let gate = gate.map(|gate| Gated { values: gate.values.to_device(device), ..gate });
        let bias = bias.map(|bias| bias.to_device(device));
        Output { x: x.to_device(device), norm, gate, weight: weight.to_device(device), bias }
    }

    #[test]
    fn it_is_norm_gate_and_map() {
        use Activation::{GeluTanh, Identity, Sigmoid, Silu};
        let rms = Scaling { offset: 0.5, ..Scaling::rms(1e-3) };
        let joint = Scaling { joint: true, ..rms };
        let l2 = Scaling { gain: 0.7, ..Scaling::l2(1e-3) };
        let norms =
            [None, Some((rms, Some(1))), Some((rms, Some(0))), Some((joint, Some(0))), Some((l2, None))];
        let gates = [
            None,
            Some((Silu, true)),
            Some((GeluTanh, false)),
            Some((Identity, false)),
            Some((Sigmoid, true)),
        ];
        // Around a tile, a cube's columns, and what is normalised by all units.
        let sizes = [
            ([1, 1, 1, 1], 1),
            ([1, 1, 4, 32], 128),
            ([2, 1, 3, 100], 33),
            ([1, 3, 1, 700], 31),
            ([2, 2, 17, 16], 65),
        ];
        for (seed, &([a, b, m, n], d)) in sizes.iter().enumerate() {
            for (norm, gate) in norms.iter().flat_map(|norm| gates.map(|gate| (*norm, gate))) {
                let mut draw = Draw::new(seed as u64);
                // Heads of the recurrence stand before its tokens.
                let x = draw.tensor::<4>([a, m, b, n], -1.0, 1.0).swap_dims(1, 2);
                let norm = norm.map(|(scaling, heads)| {
                    let dims = heads.map(|one| [1, 1, if one == 1 { 1 } else { m }, n]);
                    Normalize {
                        weight: dims.map(|dims| draw.tensor(dims, -1.0, 1.0)),
                        ..Normalize::plain(scaling)
                    }
                });
                let before = norm.is_some();
                let gate = gate.map(|(activation, first)| {
                    let values = draw.tensor::<4>([a, b, m, n], -2.0, 2.0);
                    Gated { before: before && first, ..Gated::new(values, activation) }
                });
                let weight = draw.tensor([m * n, d], -0.3, 0.3);
                let bias = (seed % 2 == 0).then(|| draw.tensor([d], -1.0, 1.0));
                let output = Output { x, norm, gate, weight, bias };
                let expected = apart(output.clone());
                for device in graphics() {
                    let found = there(&output, &device).project().expect("it is for the kernel");
                    assert_eq!(found.dims(), [a, b, d]);
                    let off = error(&numbers(found), &expected);
                    assert!(off <= 1e-5, "{:?} {:?}: off by {off:e}", sizes[seed], output.norm);
                }
            }
        }
    }

    #[test]
    fn it_declines_what_it_cannot_do() {
        for device in graphics() {
            let draw =
                |seed, dims: [usize; 4]| Draw::new(seed).tensor::<4>(dims, -1.0, 1.0).to_device(&device);
            let weight = Draw::new(1).tensor::<2>([6, 6], -1.0, 1.0).to_device(&device);
            let output = Output { x: draw(2, [1, 2, 2, 3]), norm: None, gate: None, weight, bias: None };
            let takes = |output: &Output| output.clone().project().is_some();
            assert!(takes(&output));
            assert!(!takes(&Output { x: draw(3, [1, 5, 2, 3]), ..output.clone() }));
            assert!(!takes(&Output { x: draw(3, [1, 2, 2, 4]), ..output.clone() }));
            assert!(!takes(&Output { weight: output.weight.clone().transpose(), ..output.clone() }));
            let relu = Gated::new(draw(4, [1, 2, 2, 3]), Activation::Relu);
            assert!(!takes(&Output { gate: Some(relu), ..output.clone() }));
            let layer = Normalize::plain(Scaling::layer(1e-3));
            assert!(!takes(&Output { norm: Some(layer), ..output.clone() }));
            assert!(!takes(&Output { x: output.x.clone().autodiff().require_grad(), ..output }));
        }
    }
}
