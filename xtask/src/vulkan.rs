//! A Vulkan driver for machines without a GPU: SwiftShader, from Debian's `chromium` package.

use std::env;
use std::path::Path;

use crate::apt;
use crate::shell::output;

/// The variable by which the Vulkan loader is told which driver to use.
pub(crate) const VARIABLE: &str = "VK_ICD_FILENAMES";

const SWIFTSHADER: &str = "/usr/lib/chromium/vk_swiftshader_icd.json";

/// The driver's manifest, to be put in [`VARIABLE`]: one the caller already named, or SwiftShader.
pub(crate) fn driver() -> Option<String> {
    let named = env::var(VARIABLE).ok().filter(|value| !value.is_empty());
    named.or_else(|| Path::new(SWIFTSHADER).is_file().then(|| SWIFTSHADER.to_string()))
}

/// Debian packages that are missing for software Vulkan.
pub(crate) fn missing() -> Vec<&'static str> {
    let driver = driver().is_none().then_some("chromium");
    let loader = (!has_loader()).then_some("libvulkan1");
    driver.into_iter().chain(loader).collect()
}

/// Installs what [`missing`] names and returns the driver's manifest.
pub(crate) fn ensure() -> Result<String, String> {
    let packages = missing();
    if !packages.is_empty() {
        // A Vulkan driver in software (SwiftShader) and the loader.
        apt::install(&packages, &format!("or name your own driver in {VARIABLE}, or leave Vulkan out"))?;
    }
    driver().ok_or_else(|| {
        format!(
            "`chromium` is installed but brought no {SWIFTSHADER} (Ubuntu's is a snap); name another \
             driver in {VARIABLE} or leave Vulkan out"
        )
    })
}

fn has_loader() -> bool {
    let known = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    known.iter().any(|dir| Path::new(dir).join("libvulkan.so.1").exists())
        || output("ldconfig", &["-p"]).is_some_and(|list| list.contains("libvulkan.so.1"))
}
