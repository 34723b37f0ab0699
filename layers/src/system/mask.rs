//! Padding: which tokens count.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::{Error, Result};

/// Which tokens of a batch are real: `[batch][time]`. A padded token is as good as absent: it changes
/// no state and no other token's output, wherever it stands, and its own output is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    rows: Vec<Vec<bool>>,
}

impl Mask {
    /// From one flag per token; all rows must have the same length.
    pub fn new(rows: Vec<Vec<bool>>) -> Result<Self> {
        let time = rows.first().map_or(0, Vec::len);
        match rows.iter().position(|row| row.len() != time) {
            Some(row) => Err(Error::shape(
                format!("row {row} of the padding mask"),
                format!("[{time}], as row 0"),
                &[rows[row].len()],
            )),
            None => Ok(Self { rows }),
        }
    }

    /// Right padding: the first `lengths[row]` of `time` tokens are real.
    pub fn from_lengths(lengths: &[usize], time: usize) -> Self {
        Self { rows: lengths.iter().map(|&n| (0..time).map(|t| t < n).collect()).collect() }
    }

    /// `[batch, time]`
    pub fn dims(&self) -> [usize; 2] {
        [self.rows.len(), self.rows.first().map_or(0, Vec::len)]
    }

    /// The flags.
    pub fn rows(&self) -> &[Vec<bool>] {
        &self.rows
    }

    /// Real tokens per row.
    pub fn lengths(&self) -> Lengths {
        Lengths(self.rows.iter().map(|row| row.iter().filter(|&&v| v).count()).collect())
    }

    /// Moves the real tokens of each row to its front, keeping their order: `[b, t, d] -> [b, t, d]`.
    pub fn compact(&self, x: Tensor<3>) -> Tensor<3> {
        let order = self.rows.iter().map(|row| {
            let (mut real, pads): (Vec<_>, Vec<_>) = (0..row.len()).partition(|&t| row[t]);
            real.extend(pads);
            real
        });
        gather(x, order)
    }

    /// Undoes [`Mask::compact`] and zeroes the padded tokens.
    pub fn spread(&self, y: Tensor<3>) -> Tensor<3> {
        let order = self.rows.iter().map(|row| {
            let mut seen = 0;
            let place = |&real: &bool| {
                seen += usize::from(real);
                seen.saturating_sub(1)
            };
            row.iter().map(place).collect()
        });
        let [b, t] = self.dims();
        let flags: Vec<f32> = self.rows.iter().flatten().map(|&v| f32::from(v)).collect();
        let options = (&y.device().inner(), y.dtype());
        let valid = Tensor::<3>::from_data(TensorData::new(flags, [b, t, 1]), options);
        gather(y, order) * valid
    }
}

/// `out[b, t] = x[b, order[b][t]]`
fn gather(x: Tensor<3>, order: impl Iterator<Item = Vec<usize>>) -> Tensor<3> {
    let [b, t, d] = x.dims();
    let flat: Vec<i64> =
        order.enumerate().flat_map(|(row, o)| o.into_iter().map(move |s| (row * t + s) as i64)).collect();
    let index = Tensor::<1, Int>::from_data(TensorData::new(flat, [b * t]), &x.device().inner());
    x.reshape([b * t, d]).select(0, index).reshape([b, t, d])
}

/// Real tokens per row of a right-padded batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths(pub Vec<usize>);

impl Lengths {
    /// 1 for real tokens, 0 for padding: `[batch, time]`.
    pub fn valid(&self, time: usize, device: &Device, dtype: DType) -> Tensor<2> {
        let flags: Vec<f32> = self.0.iter().flat_map(|&n| (0..time).map(move |t| f32::from(t < n))).collect();
        Tensor::from_data(TensorData::new(flags, [self.0.len(), time]), (&device.clone().inner(), dtype))
    }
}
