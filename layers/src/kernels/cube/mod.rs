//! Kernels for graphics devices, in CubeCL: for CUDA, Vulkan and WebGPU from one source, so within what WebGPU
//! promises: `f32`, 8 storage buffers, 16 KiB of shared memory, 256 units to a cube, no subgroups.

mod append;
mod buffer;
mod conv;
mod delta;
#[cfg(feature = "flex")]
mod descent;
mod functions;
mod gate_maps;
mod gates;
mod learner;
pub(super) mod linear;
mod lstm;
mod norm;
mod output;
mod pointwise;
mod rotary;
mod scan;
mod softmax;
mod steps;
mod sum;
pub(super) mod tiled;
mod weighted;
mod wkv;

pub(crate) use append::join;
pub(crate) use buffer::columns;
pub(super) use buffer::fits;
pub(super) use conv::{convolve_parts, convolve_several, convolves};
pub(crate) use delta::{Decaying, DeltaRule, HeadInputs};
#[cfg(feature = "flex")]
pub(crate) use descent::{Call, Plans, descends};
pub(crate) use gate_maps::{GateOf, Opening, open_gates, rates_and_steps};
pub(crate) use gates::BlockGates;
pub(super) use learner::learn;
pub(super) use lstm::gates;
pub(super) use norm::normalises;
pub(crate) use output::Output;
pub(super) use pointwise::maps;
pub(crate) use rotary::Turn;
pub(super) use rotary::rotate_two;
pub(super) use softmax::attends;
pub(crate) use steps::decays_and_keys;
pub(crate) use weighted::{features_and_one, quotients};
pub(super) use wkv::average;
