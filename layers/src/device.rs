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
    if cfg!(feature = "wgpu") {
        names.push("wgpu");
    }
    if cfg!(feature = "webgpu") {
        names.push("webgpu");
    }
    if cfg!(feature = "cuda") {
        names.push("cuda");
    }
    names
}

/// The device that is used where none is named: the first that is compiled in.
pub fn default_name() -> &'static str {
    available().first().copied().unwrap_or("flex")
}

/// Opens a device by name: `flex` (CPU), `ndarray` (CPU), `wgpu` (any graphics API, WGSL shaders), `vulkan`
/// (SPIR-V shaders), `webgpu` or `cuda`.
///
/// # Errors
/// For a name that is unknown, a backend that is not compiled in, or hardware that is not there.
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
        "vulkan" => graphics("vulkan", burn::tensor::wgpu::WgpuBackend::Vulkan),
        #[cfg(feature = "wgpu")]
        "wgpu" => graphics("wgpu", burn::tensor::wgpu::WgpuBackend::Auto),
        #[cfg(feature = "webgpu")]
        "webgpu" => graphics("webgpu", burn::tensor::wgpu::WgpuBackend::WebGpu),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(0)),
        "flex" | "ndarray" | "wgpu" | "vulkan" | "webgpu" | "cuda" => Err(Error::Device {
            name: name.into(),
            reason: format!("not compiled in; build with `--features {name}`"),
        }),
        _ => Err(Error::Device {
            name: name.into(),
            reason: format!("unknown; this build has {}", available().join(", ")),
        }),
    }
}

/// Initialises a graphics device once per name; Burn refuses to initialise the same one twice.
#[cfg(all(any(feature = "vulkan", feature = "wgpu", feature = "webgpu"), not(target_family = "wasm")))]
fn graphics(name: &'static str, api: burn::tensor::wgpu::WgpuBackend) -> Result<Device> {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    static OPENED: Mutex<BTreeMap<&str, Device>> = Mutex::new(BTreeMap::new());
    let mut opened = OPENED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(device) = opened.get(name) {
        return Ok(device.clone());
    }
    let device = Device::wgpu_options().graphics_api(api).init().map_err(|error| Error::Device {
        name: name.into(),
        reason: format!("no usable adapter ({error}); install a driver or use `flex`"),
    })?;
    opened.insert(name, device.clone());
    Ok(device)
}

/// In a browser a device is opened asynchronously, with `Device::wgpu_options().init_async()`.
#[cfg(all(any(feature = "vulkan", feature = "wgpu", feature = "webgpu"), target_family = "wasm"))]
fn graphics(name: &'static str, _api: burn::tensor::wgpu::WgpuBackend) -> Result<Device> {
    Err(Error::Device {
        name: name.into(),
        reason: "a browser opens it with `Device::wgpu_options().init_async().await`".into(),
    })
}
