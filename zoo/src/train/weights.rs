//! Named tensors as safetensors.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::{DType, Device, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use seqzoo_layers::Value;
use seqzoo_layers::params::Named;

use crate::{Error, Result};

/// Serializes tensors in their own element type.
///
/// # Errors
/// When a tensor cannot be read back or has an element type that files do not hold.
pub fn to_bytes(named: &Named, metadata: &[(&str, String)]) -> Result<Vec<u8>> {
    let data: Vec<(&String, TensorData)> =
        named.iter().map(|(name, value)| Ok((name, value.to_data()?))).collect::<Result<_>>()?;
    let bad = |reason: String| Error::Layers(seqzoo_layers::Error::Weights(reason));
    let views = data
        .iter()
        .map(|(name, data)| {
            let dtype = match data.dtype() {
                DType::F64 => Dtype::F64,
                DType::F32 => Dtype::F32,
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::BF16,
                other => return Err(bad(format!("`{name}` has element type {other:?}"))),
            };
            let view = TensorView::new(dtype, data.shape().to_vec(), data.bytes());
            Ok((name, view.map_err(|e| bad(e.to_string()))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    safetensors::serialize(views, Some(metadata)).map_err(|e| bad(e.to_string()))
}

/// Reads all float tensors of a safetensors file.
///
/// # Errors
/// When the file is missing, truncated, malformed, or holds other than float tensors.
pub fn load(path: &Path, device: &Device) -> Result<Named> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    from_bytes(&bytes, &path.display().to_string(), device)
}

/// [`load`] from memory; `what` names the bytes in errors.
///
/// # Errors
/// When they are truncated, malformed, or hold other than float tensors.
pub fn from_bytes(bytes: &[u8], what: &str, device: &Device) -> Result<Named> {
    let bad = |reason: String| Error::Layers(seqzoo_layers::Error::SafeTensors { what: what.into(), reason });
    let file = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let dtype = match view.dtype() {
                Dtype::F64 => DType::F64,
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => return Err(bad(format!("`{name}` has element type {other:?}"))),
            };
            let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
            Ok((name, Value::from_data(data, device)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use seqzoo_layers::{Init, params};

    use super::*;

    #[test]
    fn tensors_return_bit_for_bit_and_a_cut_file_is_refused() {
        let device = Device::flex();
        let named = params::parameters(&Init::new(1, &device).linear_std(5, 3, 1.0, true));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let bytes = to_bytes(&named, &[("format", "test".into())]).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let again = load(&path, &device).unwrap();
        assert_eq!(again.keys().collect::<Vec<_>>(), ["bias", "weight"]);
        for (name, value) in &named {
            assert_eq!(value.to_data().unwrap(), again[name].to_data().unwrap());
        }
        for length in [0, 4, 20, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = load(&path, &device).unwrap_err().to_string();
            assert!(error.contains("w.safetensors") && error.contains("truncated"), "{error}");
        }
    }
}
