//! [`norm`](crate::kernels::norm): some units take a row together and keep their numbers of it in registers.
//!
//! Floor: memory, as on the CPU, in one launch forward. Backward one, and one more where there is a weight: a unit adds up
//! its columns of some rows in registers, and the second launch adds those sums up, which are fewer by the number of
//! rows.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

mod parts;

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::buffer::{MOST_CUBES, dims, empty};
use super::functions::sigmoid;
use super::sum::{COLUMNS, add_up};
use crate::kernels::norm::{Opening, Options, Passes, Read, Shape};

/// Units of a cube, unless a row has more.
const UNITS: usize = 64;

/// Most units of a row.
const MOST_LANES: usize = 128;

/// Most numbers of a unit.
const MOST_EACH: usize = 32;

/// Cubes that keep a device busy.
const BUSY: usize = 1024;

/// Whether the kernel can run these: `x: [a, b, m, n]`.
pub(in crate::kernels) fn normalises(x: &burn::tensor::Tensor<4>, joint: bool) -> bool {
    let [_, b, m, n] = x.dims();
    let width = if joint { m * n } else { n };
    // Cubes that add up weights: of each head, or token.
    let groups = b.max(m).saturating_mul(2 * width).div_ceil(COLUMNS);
    width <= MOST_LANES * MOST_EACH && super::fits(x, groups)
}

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    /// Numbers of a row
    width: usize,
    /// Numbers of it that lie one after another
    n: usize,
    /// Units of a row
    lanes: usize,
    /// Rows of a cube
    slots: usize,
    /// The axis of the weight's rows
    axis: usize,
    joint: bool,
    mean: bool,
    centred: bool,
    weighted: bool,
    biased: bool,
    before: bool,
    after: bool,
    opening: Opening,
}

impl Form {
    fn new(read: &Read<CubeBackend>) -> (Self, Shape) {
        let Options { scaling, weight, bias, gate } = read.options;
        let of = weight.then(|| dims(&read.weight));
        let shape = Shape::new(dims(&read.x), of, scaling.joint);
        let most = if shape.width <= 128 { 32 } else { MOST_LANES };
        let lanes = shape.width.next_power_of_two().min(most);
        let form = Self {
            width: shape.width,
            n: dims(&read.x)[3],
            lanes,
            slots: (UNITS / lanes).max(1),
            axis: if of.is_some_and(|[_, heads, ..]| heads > 1) { 1 } else { 2 },
            joint: scaling.joint,
            mean: scaling.mean,
            centred: scaling.centred,
            weighted: weight,
            biased: bias,
            before: gate.is_some_and(|gate| gate.before),
            after: gate.is_some_and(|gate| !gate.before),
            opening: gate.map_or(Opening::Linear, |gate| gate.opening),
        };
        (form, shape)
    }

    /// What is added to the weight, or multiplies where there is none.
    fn offset(Options { scaling, weight, .. }: Options) -> f32 {
        (if weight { scaling.offset } else { scaling.gain }) as f32
    }

    fn units(self) -> CubeDim {
        CubeDim::new_2d(self.lanes as u32, self.slots as u32)
    }
}

impl Passes for CubeBackend {
    fn forward(read: &Read<Self>) -> CubeTensor {
        let (form, shape) = Form::new(read);
        let y = empty(&read.x, &dims(&read.x));
        let cubes = shape.rows.div_ceil(form.slots);
        let across = cubes.min(MOST_CUBES);
        forward::forward_kernel::launch(
            &y.client,
            CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 1),
            form.units(),
            read.x.clone().into_tensor_arg(),
            read.weight.clone().into_tensor_arg(),
            read.bias.clone().into_tensor_arg(),
            read.gate.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            read.options.scaling.eps as f32,
            Form::offset(read.options),
            shape.rows,
            shape.inner,
            shape.groups,
            form,
        );
        y
    }

    fn backward(read: Read<Self>, dy: CubeTensor) -> [Option<CubeTensor>; 4] {
        let (form, shape) = Form::new(&read);
        let Read { x, weight, bias, gate, options } = read;
        let client = x.client.clone();
        let rows = shape.rows / shape.groups;
        // As few sums as leave enough cubes.
        let parts = (BUSY / shape.groups).max(1).min(rows.div_ceil(form.slots));
        let count = rows.div_ceil(parts * form.slots);
        let parts = rows.div_ceil(count * form.slots);
        let columns = shape.groups * shape.width;
        let dx = empty(&x, &dims(&x));
        // What is written must not be bound twice, not even where nothing is written.
        let unless = |there: bool, dims: &[usize]| empty(&x, if there { dims } else { &[1] });
        let d_gate = unless(options.gate.is_some(), &dims(&x));
        let sums = unless(options.weight, &[parts * form.slots, 2, columns]);
        backward::backward_kernel::launch(
            &client,
            CubeCount::Static(parts as u32, shape.groups as u32, 1),
            form.units(),
            x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            bias.into_tensor_arg(),
            gate.into_tensor_arg(),
            dy.into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            d_gate.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            options.scaling.eps as f32,
            Form::offset(options),
            rows,
            shape.inner,
            count,
            form,
        );
        let d_gate = options.gate.map(|_| d_gate);
        if !options.weight {
            return [Some(dx), None, None, d_gate];
        }
        let scale = dims(&weight);
        let (d_weight, d_bias) = add_up(sums, scale, options.bias);
        [Some(dx), Some(d_weight), d_bias, d_gate]
    }
}

mod forward {
    use super::parts::{act, factor, place, scale_start, start};
    use super::*;

    #[cube(launch)]
    #[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
    pub(super) fn forward_kernel(
        x: &Tensor<f32>,
        weight: &Tensor<f32>,
        bias: &Tensor<f32>,
        gate: &Tensor<f32>,
        y: &mut Tensor<f32>,
        eps: f32,
        offset: f32,
        rows: usize,
        inner: usize,
        groups: usize,
        #[comptime] form: Form,
    ) {
        let (width, lanes) = comptime!((form.width, form.lanes));
        let each = comptime!(width.div_ceil(lanes));
        let mut shared = Shared::<[f32]>::new_slice(comptime!(lanes * form.slots));
        let lane = UNIT_POS_X as usize;
        let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
        let row = cube * form.slots + UNIT_POS_Y as usize;
        let here = row < rows;
        let x_start = start(x, row, form.joint);
        let gate_start = start(gate, row, form.joint);
        let mut u = Array::<f32>::new(each);
        let mut open = Array::<f32>::new(each);
        #[unroll]
        for i in 0..each {
            let c = lane + i * lanes;
            u[i] = f32::new(0.0);
            open[i] = f32::new(1.0);
            if here && c < width {
                u[i] = x[x_start + place(x, c, form)];
                if comptime!(form.before || form.after) {
                    open[i] = act(gate[gate_start + place(gate, c, form)], form.opening);
                }
                if comptime!(form.before) {
                    u[i] *= open[i];
                }
            }
        }
        let factor = factor(&mut u, &mut shared, eps, form);
        let group = row / inner % groups;
        let weight_start = scale_start(weight, group, form);
        let bias_start = scale_start(bias, group, form);
        #[unroll]
        for i in 0..each {
            let c = lane + i * lanes;
            if here && c < width {
                let mut scale = offset;
                if comptime!(form.weighted) {
                    scale += weight[weight_start + place(weight, c, form)];
                }
                let mut z = u[i] * factor * scale;
                if comptime!(form.biased) {
                    z += bias[bias_start + place(bias, c, form)];
                }
                if comptime!(form.after) {
                    z *= open[i];
                }
                y[row * width + c] = z;
            }
        }
    }
}

mod backward {
    use super::parts::{act, factor, place, scale_start, slope, start, total};
    use super::*;

    /// A cube goes through `count` times as many rows as it has slots for.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
    pub(super) fn backward_kernel(
        x: &Tensor<f32>,
        weight: &Tensor<f32>,
        bias: &Tensor<f32>,
        gate: &Tensor<f32>,
        dy: &Tensor<f32>,
        dx: &mut Tensor<f32>,
        d_gate: &mut Tensor<f32>,
        sums: &mut Tensor<f32>,
        eps: f32,
        offset: f32,
        rows: usize,
        inner: usize,
        count: usize,
        #[comptime] form: Form,
    ) {
        let (width, lanes) = comptime!((form.width, form.lanes));
        let each = comptime!(width.div_ceil(lanes));
        let gated = comptime!(form.before || form.after);
        let mut shared = Shared::<[f32]>::new_slice(comptime!(lanes * form.slots));
        let lane = UNIT_POS_X as usize;
        let slot = UNIT_POS_Y as usize;
        let group = CUBE_POS_Y as usize;
        let groups = CUBE_COUNT_Y as usize;
        let weight_start = scale_start(weight, group, form);
        let bias_start = scale_start(bias, group, form);
        let mut scale = Array::<f32>::new(each);
        let mut shift = Array::<f32>::new(each);
        let mut d_scale = Array::<f32>::new(each);
        let mut d_shift = Array::<f32>::new(each);
        #[unroll]
        for i in 0..each {
            let c = lane + i * lanes;
            scale[i] = offset;
            shift[i] = f32::new(0.0);
            d_scale[i] = f32::new(0.0);
            d_shift[i] = f32::new(0.0);
            if c < width {
                if comptime!(form.weighted) {
                    scale[i] += weight[weight_start + place(weight, c, form)];
                }
                if comptime!(form.biased) {
                    shift[i] = bias[bias_start + place(bias, c, form)];
                }
            }
        }
        let mut u = Array::<f32>::new(each);
        let mut dz = Array::<f32>::new(each);
        let mut values = Array::<f32>::new(each);
        let mut given = Array::<f32>::new(each);
        for index in 0..count {
            let of_group = (CUBE_POS_X as usize * count + index) * form.slots + slot;
            let here = of_group < rows;
            let row = (of_group / inner * groups + group) * inner + of_group % inner;
            let x_start = start(x, row, form.joint);
            let gate_start = start(gate, row, form.joint);
            let dy_start = start(dy, row, form.joint);
            #[unroll]
            for i in 0..each {
                let c = lane + i * lanes;
                u[i] = f32::new(0.0);
                dz[i] = f32::new(0.0);
                values[i] = f32::new(0.0);
                given[i] = f32::new(0.0);
                if here && c < width {
                    u[i] = x[x_start + place(x, c, form)];
                    dz[i] = dy[dy_start + place(dy, c, form)];
                    if gated {
                        values[i] = gate[gate_start + place(gate, c, form)];
                    }
                    if comptime!(form.before) {
                        given[i] = u[i];
                        u[i] *= act(values[i], form.opening);
                    }
                }
            }
            let factor = factor(&mut u, &mut shared, eps, form);
            let mut along = f32::new(0.0);
            let mut all = f32::new(0.0);
            #[unroll]
            for i in 0..each {
                let c = lane + i * lanes;
                let h = u[i] * factor;
                u[i] = h;
                if comptime!(form.after) {
                    if here && c < width {
                        let z = h * scale[i] + shift[i];
                        d_gate[row * width + c] = dz[i] * z * slope(values[i], form.opening);
                        dz[i] *= act(values[i], form.opening);
                    }
                }
                if comptime!(form.weighted) {
                    d_scale[i] += dz[i] * h;
                    d_shift[i] += dz[i];
                }
                dz[i] *= scale[i];
                along += dz[i] * h;
                all += dz[i];
            }
            along = total(along, &mut shared, form);
            if comptime!(form.mean) {
                along /= f32::cast_from(width);
            }
            let mut mean = f32::new(0.0);
            if comptime!(form.centred) {
                mean = total(all, &mut shared, form) / f32::cast_from(width);
            }
            #[unroll]
            for i in 0..each {
                let c = lane + i * lanes;
                if here && c < width {
                    let mut du = (dz[i] - u[i] * along - mean) * factor;
                    if comptime!(form.before) {
                        d_gate[row * width + c] = du * given[i] * slope(values[i], form.opening);
                        du *= act(values[i], form.opening);
                    }
                    dx[row * width + c] = du;
                }
            }
        }
        if comptime!(form.weighted) {
            let columns = groups * width;
            let part = CUBE_POS_X as usize * form.slots + slot;
            #[unroll]
            for i in 0..each {
                let c = lane + i * lanes;
                if c < width {
                    let to = 2 * part * columns + group * width + c;
                    sums[to] = d_scale[i];
                    sums[to + columns] = d_shift[i];
                }
            }
        }
    }
}
