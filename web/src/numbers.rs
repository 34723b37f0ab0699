//! Arrays that are plain lists in JSON and typed arrays in a browser.

use burn::tensor::Tensor;
use seqzoo_layers::{Result, Value};
use serde::{Serialize, Serializer};

macro_rules! typed_array {
    ($(#[$doc:meta])* $name:ident, $number:ty, $array:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name(pub Vec<$number>);

        impl Serialize for $name {
            #[cfg(not(target_arch = "wasm32"))]
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)
            }

            #[cfg(target_arch = "wasm32")]
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let array = js_sys::$array::from(self.0.as_slice());
                serde_wasm_bindgen::preserve::serialize(&array, serializer)
            }
        }
    };
}

typed_array!(
    /// A `Float32Array`.
    Floats,
    f32,
    Float32Array
);
typed_array!(
    /// A `Float64Array`.
    Doubles,
    f64,
    Float64Array
);

/// A matrix, row-major.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grid {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows × columns` numbers.
    pub values: Floats,
}

impl Grid {
    /// One entry; `None` outside.
    pub fn at(&self, row: usize, column: usize) -> Option<f32> {
        if column >= self.columns { None } else { self.values.0.get(row * self.columns + column).copied() }
    }

    /// `[1, rows, columns]`
    pub(crate) fn of(tensor: Tensor<3>) -> Result<Self> {
        let [_, rows, columns] = tensor.dims();
        Ok(Self { rows, columns, values: floats(&tensor.into())? })
    }

    /// `[1, heads, rows, columns]`, one grid per head.
    pub(crate) fn per_head(tensor: Tensor<4>) -> Result<Vec<Self>> {
        let [_, _, rows, columns] = tensor.dims();
        let all = floats(&tensor.into())?.0;
        let heads = all.chunks((rows * columns).max(1));
        Ok(heads.map(|values| Self { rows, columns, values: Floats(values.to_vec()) }).collect())
    }
}

/// All numbers of a tensor.
pub(crate) fn floats(value: &Value) -> Result<Floats> {
    Ok(Floats(value.to_f64()?.into_iter().map(|v| v as f32).collect()))
}
