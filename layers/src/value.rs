//! A float tensor whose rank is known at run time: what states and named parameters are made of.

use std::any::Any;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::{Error, Result};

/// A float tensor of rank 1 to 5.
#[derive(Clone, Debug)]
pub enum Value {
    /// Rank 1.
    R1(Tensor<1>),
    /// Rank 2.
    R2(Tensor<2>),
    /// Rank 3.
    R3(Tensor<3>),
    /// Rank 4.
    R4(Tensor<4>),
    /// Rank 5.
    R5(Tensor<5>),
}

macro_rules! with_rank {
    ($value:expr, $t:ident => $body:expr) => {
        match $value {
            Value::R1($t) => $body,
            Value::R2($t) => $body,
            Value::R3($t) => $body,
            Value::R4($t) => $body,
            Value::R5($t) => $body,
        }
    };
}

macro_rules! map_rank {
    ($value:expr, $t:ident => $body:expr) => {
        match $value {
            Value::R1($t) => Value::R1($body),
            Value::R2($t) => Value::R2($body),
            Value::R3($t) => Value::R3($body),
            Value::R4($t) => Value::R4($body),
            Value::R5($t) => Value::R5($body),
        }
    };
}

macro_rules! conversions {
    ($($rank:literal $variant:ident),*) => {$(
        impl From<Tensor<$rank>> for Value {
            fn from(tensor: Tensor<$rank>) -> Self {
                Value::$variant(tensor)
            }
        }
    )*};
}
conversions!(1 R1, 2 R2, 3 R3, 4 R4, 5 R5);

impl Value {
    /// Wraps a tensor whose rank is a constant parameter of the caller.
    ///
    /// # Panics
    /// For ranks above 5, which no parameter or state of this crate has.
    pub fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        // A cast, not a reshape: a reshape would make a leaf of the autodiff graph an inner node.
        let any: &dyn Any = &tensor;
        macro_rules! cast {
            ($($rank:literal $variant:ident),*) => {
                $(if let Some(tensor) = any.downcast_ref::<Tensor<$rank>>() {
                    return Value::$variant(tensor.clone());
                })*
            };
        }
        cast!(1 R1, 2 R2, 3 R3, 4 R4, 5 R5);
        panic!("a value has rank 1 to 5, not {D}")
    }

    /// The tensor, if its rank is `D`; a shape error naming `what` otherwise.
    pub fn tensor<const D: usize>(&self, what: &str) -> Result<Tensor<D>> {
        let found = with_rank!(self, t => (t as &dyn Any).downcast_ref::<Tensor<D>>().cloned());
        found.ok_or_else(|| Error::shape(what, format!("rank {D}"), &self.dims()))
    }

    /// From numbers in row-major order.
    pub fn from_data(data: TensorData, device: &Device) -> Result<Self> {
        let (dims, dtype) = (data.shape().to_vec(), data.dtype());
        let options = (device, dtype);
        Ok(match dims.len() {
            1 => Value::R1(Tensor::from_data(data, options)),
            2 => Value::R2(Tensor::from_data(data, options)),
            3 => Value::R3(Tensor::from_data(data, options)),
            4 => Value::R4(Tensor::from_data(data, options)),
            5 => Value::R5(Tensor::from_data(data, options)),
            _ => return Err(Error::shape("tensor", "rank 1 to 5", &dims)),
        })
    }

    /// Its shape.
    pub fn dims(&self) -> Vec<usize> {
        with_rank!(self, t => t.dims().to_vec())
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        with_rank!(self, t => t.dtype())
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        with_rank!(self, t => t.device())
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.dims().iter().product()
    }

    /// Reads the numbers back as `f64`, row-major. Blocks, so it is not for the browser's main thread.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        with_rank!(self, t => t.try_to_vec_as::<f64>()).map_err(unreadable)
    }

    /// [`Value::to_f64`] without blocking: in a browser, tensors on a graphics card can only be read so.
    pub async fn to_f64_async(&self) -> Result<Vec<f64>> {
        self.to_data_async().await?.convert_dtype(DType::F64).try_into_vec().map_err(unreadable)
    }

    /// [`Value::to_data`] without blocking.
    pub async fn to_data_async(&self) -> Result<TensorData> {
        with_rank!(self, t => t.to_data_async().await).map_err(unreadable)
    }

    /// Its numbers as data of its own element type.
    pub fn to_data(&self) -> Result<TensorData> {
        with_rank!(self, t => t.try_to_data()).map_err(unreadable)
    }

    /// Converts the element type.
    pub fn cast(self, dtype: DType) -> Self {
        map_rank!(self, t => t.cast(dtype))
    }

    /// Moves it to a device.
    pub fn to_device(self, device: &Device) -> Self {
        map_rank!(self, t => t.to_device(device))
    }

    /// Cuts the autodiff graph behind it.
    pub fn detach(self) -> Self {
        map_rank!(self, t => t.detach())
    }

    /// Marks it as a leaf whose gradient is wanted.
    pub fn require_grad(self) -> Self {
        map_rank!(self, t => t.require_grad())
    }

    /// Its gradient, if it is a leaf and took part in the loss.
    pub fn grad(&self, grads: &burn::tensor::Gradients) -> Option<Value> {
        with_rank!(self, t => t.grad(grads).map(Value::of))
    }

    /// The rows `indices` along `axis`.
    pub fn select(self, axis: usize, indices: &[usize]) -> Self {
        let device = self.device();
        let indices: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
        let length = indices.len();
        let index = Tensor::<1, burn::tensor::Int>::from_data(TensorData::new(indices, [length]), &device);
        map_rank!(self, t => t.select(axis, index))
    }

    /// `length` entries from `start` along `axis`.
    pub fn narrow(self, axis: usize, start: usize, length: usize) -> Self {
        map_rank!(self, t => t.narrow(axis, start, length))
    }

    /// The sum of `self * other`, for losses over tensors of any rank.
    pub fn dot(self, other: Value, what: &str) -> Result<Tensor<1>> {
        let dims = self.dims();
        if dims != other.dims() {
            return Err(Error::shape(what, format!("{dims:?}"), &other.dims()));
        }
        let length = self.numel();
        let flat = |v: Value| with_rank!(v, t => t.reshape([length]));
        Ok(flat(self).mul(flat(other)).sum())
    }
}

fn unreadable(error: impl std::fmt::Display) -> Error {
    Error::State(format!("reading a tensor back failed: {error}"))
}
