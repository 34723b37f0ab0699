//! Devices by name, as users type them.

use burn::tensor::Device;

use crate::{Error, Result};

/// Names of the devices this build can open, the default first.
pub fn available() -> Vec<&'static str> {
    let mut names = Vec::new();
    if cfg!(feature = "flex") {
        names.push("flex");
    }
    if cfg!(feature = "ndarray") {
        names.push("ndarray");
    }
    if cfg!(feature = "vulkan") {
        names.push("vulkan");
    }
    if cfg!(feature = "webgpu") {
        names.push("webgpu");
    }
    if cfg!(feature = "cuda") {
        names.push("cuda");
    }
    names
}

/// Opens a device by name: `flex` (CPU), `ndarray` (CPU), `vulkan`, `webgpu` or `cuda`.
///
/// # Errors
/// For a name that is unknown or whose backend is not compiled into this build.
///
/// ```
/// let device = seqzoo_layers::device::open("flex")?;
/// assert!(seqzoo_layers::device::open("abacus").is_err());
/// # Ok::<(), seqzoo_layers::Error>(())
/// ```
#[allow(unreachable_patterns, reason = "which names are matched above depends on the features")]
pub fn open(name: &str) -> Result<Device> {
    match name {
        #[cfg(feature = "flex")]
        "flex" => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "kept as a second opinion until Burn 0.23 drops it")]
        "ndarray" => Ok(Device::ndarray()),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "webgpu")]
        "webgpu" => Ok(Device::webgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(0)),
        "flex" | "ndarray" | "vulkan" | "webgpu" | "cuda" => Err(Error::Device {
            name: name.into(),
            reason: format!("not compiled in; build with `--features {name}`"),
        }),
        _ => Err(Error::Device {
            name: name.into(),
            reason: format!("unknown; this build has {}", available().join(", ")),
        }),
    }
}
