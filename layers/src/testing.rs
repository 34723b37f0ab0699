//! What this crate's tests share: golden files, random numbers and the error measure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, SafeTensors};

use crate::Value;
use crate::params::Named;

/// `‖a - b‖ / max(‖b‖, 0.01 √len)`: the golden files' measure.
pub(crate) fn error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "different numbers of elements");
    assert!(a.iter().all(|x| x.is_finite()), "a result is not finite");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let gap = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    gap / norm(&mut b.iter().copied()).max(0.01 * (b.len() as f64).sqrt())
}

/// [`error`] between tensors.
pub(crate) fn gap<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    assert_eq!(a.dims(), b.dims());
    error(&numbers(a), &numbers(b))
}

/// A tensor's numbers, row-major.
pub(crate) fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.try_to_vec_as::<f64>().expect("a readable tensor")
}

/// Uniform numbers, the same for the same seed.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn numbers(&mut self, count: usize, low: f64, high: f64) -> Vec<f64> {
        (0..count).map(|_| low + (high - low) * self.0.random::<f64>()).collect()
    }

    /// A plain `F32` tensor on the CPU.
    pub(crate) fn tensor<const D: usize>(&mut self, shape: [usize; D], low: f64, high: f64) -> Tensor<D> {
        let values = self.numbers(shape.iter().product(), low, high);
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }
}

/// A case of the golden test vectors: `in.*`, `w.*`, `aux.*`, `out.*`, `cot.*` and `grad.*`.
pub(crate) struct Golden {
    name: String,
    tensors: Named,
    integers: BTreeMap<String, Vec<usize>>,
    tolerance: serde_json::Value,
}

impl Golden {
    /// Reads `tests/golden/layers/{name}.safetensors`; every float tensor becomes a leaf of its own.
    pub(crate) fn open(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/layers");
        let path = folder.join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let device = Device::flex().autodiff();
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let tolerance = &header.metadata().as_ref().expect("metadata")["tolerance"];
        let of_type = |dtype| {
            let tensors = file.tensors().into_iter();
            tensors.filter(move |(_, view)| view.dtype() == dtype && !view.shape().is_empty())
        };
        let tensors = of_type(Dtype::F32)
            .map(|(name, view)| {
                let data =
                    TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), DType::F32);
                let value = Value::from_data(data, &device).expect("a rank up to 5");
                (name, value.require_grad())
            })
            .collect();
        let integers = of_type(Dtype::I64)
            .map(|(name, view)| {
                let number = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("8 bytes")) as usize;
                (name, view.data().chunks(8).map(number).collect())
            })
            .collect();
        let tolerance = serde_json::from_str(tolerance).expect("a tolerance");
        Self { name: name.into(), tensors, integers, tolerance }
    }

    /// The limit of a tensor's error.
    fn limit(&self, name: &str) -> f64 {
        let own = self.tolerance["overrides"][name].as_f64();
        own.or(self.tolerance["default"].as_f64()).expect("a default tolerance")
    }

    /// The numbers of a tensor of indices.
    pub(crate) fn indices(&self, name: &str) -> &[usize] {
        self.integers.get(name).unwrap_or_else(|| panic!("{}: no `{name}`", self.name))
    }

    /// A tensor of the file, as a leaf.
    pub(crate) fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        let value = self.tensors.get(name).unwrap_or_else(|| panic!("{}: no `{name}`", self.name));
        value.tensor(name).expect("the rank of the file")
    }

    /// Whether the file has it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A linear weight `[out, in]` of the reference as this crate's `[in, out]`.
    pub(crate) fn linear(&self, name: &str) -> Value {
        self.get::<2>(name).transpose().into()
    }

    /// Checks every output of the file that is listed in `outputs` and every gradient the file has, for
    /// the file's own loss. Returns the worst error as a share of its limit.
    pub(crate) fn verify(&self, outputs: &[(&str, Value)]) -> f64 {
        let with = |prefix: &str| -> BTreeSet<String> {
            self.tensors.keys().filter_map(|name| name.strip_prefix(prefix)).map(str::to_string).collect()
        };
        let given: BTreeSet<String> = outputs.iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(given, with("out."), "{}: all outputs must be checked", self.name);
        let mut worst = 0.0_f64;
        let mut compare = |what: String, value: &Value| {
            let expected = &self.tensors[&what];
            assert_eq!(value.dims(), expected.dims(), "{}: shape of `{what}`", self.name);
            let error = error(&value.to_f64().unwrap(), &expected.to_f64().unwrap());
            let limit = self.limit(&what);
            assert!(error <= limit, "{}: `{what}` is off by {error:e}, more than {limit:e}", self.name);
            worst = worst.max(error / limit);
        };
        let mut loss: Option<Tensor<1>> = None;
        for (name, value) in outputs {
            compare(format!("out.{name}"), value);
            if let Some(cotangent) = self.tensors.get(&format!("cot.{name}")) {
                let term = value.clone().dot(cotangent.clone().detach(), name).unwrap();
                loss = Some(if let Some(loss) = loss { loss + term } else { term });
            }
        }
        let grads = loss.expect("a cotangent").backward();
        let named = with("grad.");
        assert!(!named.is_empty(), "{}: no gradients", self.name);
        for name in named {
            let grad = self.tensors[&name].grad(&grads);
            let grad = grad.unwrap_or_else(|| panic!("{}: `{name}` got no gradient", self.name));
            compare(format!("grad.{name}"), &grad);
        }
        worst
    }
}
