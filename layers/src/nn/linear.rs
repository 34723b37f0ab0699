//! Linear maps.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Activation;
#[cfg(feature = "cube")]
use super::formula::{Formula, Function};
use super::gates::log_gate;
#[cfg(any(feature = "flex", feature = "cube"))]
use crate::kernels;

/// `x W + b` over the last axis. Burn's own module of this name in all but how few tokens are multiplied, as when
/// decoding: by a kernel.
#[derive(Module, Debug)]
pub struct Linear {
    /// `W: [in, out]`
    pub weight: Param<Tensor<2>>,
    /// `b: [out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Maps the last axis, whose size must be `in`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        project(x, self.weight.val(), self.bias.as_ref().map(|bias| bias.val()))
    }

    /// Maps the last axis and adds a second bias, if there is one.
    pub(crate) fn forward_onto<const D: usize>(
        &self,
        x: Tensor<D>,
        second: Option<&Param<Tensor<1>>>,
    ) -> Tensor<D> {
        match self.forward_apart(x, second) {
            (y, Some(bias)) => y + bias.unsqueeze(),
            (y, None) => y,
        }
    }

    /// Maps the last axis; beside it what is still to be added, of its bias and a second one.
    pub(crate) fn forward_apart<const D: usize>(
        &self,
        x: Tensor<D>,
        second: Option<&Param<Tensor<1>>>,
    ) -> (Tensor<D>, Option<Tensor<1>>) {
        #[cfg(feature = "cube")]
        if let Some(y) = on_graphics(&x, || {
            let mut map = self.columns(0, self.weight.dims()[1]);
            map.biases.extend(second.map(|bias| bias.val()));
            vec![map]
        }) {
            return (only(y), None);
        }
        let biases = self.bias.iter().chain(second).map(|bias| bias.val());
        (project(x, self.weight.val(), None), biases.reduce(|a, b| a + b))
    }

    /// Maps the last axis; parts of the result, whose widths add up to `out`.
    pub(crate) fn forward_parts<const D: usize, const N: usize>(
        &self,
        x: Tensor<D>,
        widths: [usize; N],
    ) -> [Tensor<D>; N] {
        #[cfg(feature = "cube")]
        {
            let starts = starts(widths);
            let maps = || (0..N).map(|i| self.columns(starts[i], widths[i])).collect();
            if let Some(parts) = on_graphics(&x, maps) {
                return std::array::from_fn(|i| parts[i].clone());
            }
        }
        columns_of(&self.forward(x), widths)
    }

    /// The map and a function of every number that it makes.
    pub(crate) fn then(&self, ending: Ending) -> Ended<'_> {
        Ended { map: self, ending }
    }

    /// What the kernel for graphics devices makes some of the outputs of.
    #[cfg(feature = "cube")]
    fn columns(&self, first: usize, width: usize) -> kernels::linear::Map {
        let biases = self.bias.iter().map(|bias| bias.val()).collect();
        kernels::linear::Map { weight: self.weight.val(), biases, first, width, then: None }
    }
}

/// Where parts of `widths` begin.
fn starts<const N: usize>(widths: [usize; N]) -> [usize; N] {
    let mut end = 0;
    widths.map(|width| {
        end += width;
        end - width
    })
}

/// Parts of `widths` numbers of the last axis, which add up to all.
pub(crate) fn columns_of<const D: usize, const N: usize>(
    x: &Tensor<D>,
    widths: [usize; N],
) -> [Tensor<D>; N] {
    let starts = starts(widths);
    std::array::from_fn(|i| columns(x, starts[i], widths[i]))
}

/// `width` numbers of the last axis from `first` on: where they lie on a graphics device, if they may begin there.
fn columns<const D: usize>(x: &Tensor<D>, first: usize, width: usize) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if kernels::enabled()
        && let Some(found) = kernels::columns(x, first, width)
    {
        return found;
    }
    x.clone().narrow(D - 1, first, width)
}

/// What becomes of every number that a linear map makes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Activation(Activation),
    /// `scale log sigmoid(y)`
    LogSigmoid(f64),
}

/// A linear map and its ending, which few tokens on a graphics device meet in the same kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    map: &'a Linear,
    ending: Ending,
}

impl<'a> From<&'a Linear> for Ended<'a> {
    fn from(map: &'a Linear) -> Self {
        map.then(Ending::Activation(Activation::Identity))
    }
}

impl Ended<'_> {
    /// Maps the last axis.
    pub(crate) fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        #[cfg(feature = "cube")]
        if let Some(y) = on_graphics(&x, || vec![self.whole()]) {
            return self.rest(only(y));
        }
        self.plainly(x)
    }

    /// One after the other.
    fn plainly<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let Self { map, ending } = self;
        match ending {
            // The bias goes with the function.
            Ending::LogSigmoid(scale) => {
                let bias = map.bias.as_ref().map(|bias| bias.val());
                log_gate(project(x, map.weight.val(), None), bias, scale)
            }
            Ending::Activation(activation) => activation.apply(map.forward(x)),
        }
    }

    /// What the kernel for graphics devices makes, with the ending if it has that.
    #[cfg(feature = "cube")]
    fn whole(self) -> kernels::linear::Map {
        let then = match self.ending {
            Ending::Activation(activation) => activation.function().map(Formula::new),
            Ending::LogSigmoid(scale) => Some(Formula { scale, ..Formula::new(Function::LogSigmoid) }),
        };
        kernels::linear::Map { then, ..self.map.columns(0, self.map.weight.dims()[1]) }
    }

    /// What that kernel leaves to do.
    #[cfg(feature = "cube")]
    fn rest<const D: usize>(self, y: Tensor<D>) -> Tensor<D> {
        match self.ending {
            Ending::Activation(activation) if activation.function().is_none() => activation.apply(y),
            _ => y,
        }
    }
}

/// What every one of `maps`, and of `others` beside them, makes of `x`: in one kernel for few tokens on a graphics device.
pub(crate) fn project_with<'a, const D: usize, const N: usize>(
    x: Tensor<D>,
    maps: [impl Into<Ended<'a>>; N],
    others: &[Ended<'a>],
) -> ([Tensor<D>; N], Vec<Tensor<D>>) {
    let maps = maps.map(Into::into);
    #[cfg(feature = "cube")]
    if let Some(all) = on_graphics(&x, || maps.iter().chain(others).map(|map| map.whole()).collect()) {
        let mut all: Vec<_> = maps.iter().chain(others).zip(all).map(|(map, y)| map.rest(y)).collect();
        let rest = all.split_off(N);
        return (all.try_into().expect("as many as there are maps"), rest);
    }
    let plainly = |map: Ended<'_>| map.plainly(x.clone());
    (maps.map(plainly), others.iter().copied().map(plainly).collect())
}

/// `x W + b` over the last axis, of size `in`: `W: [in, out]`, `b: [out]`.
pub fn project<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if let Some((x, mut dims)) = few(&x)
        && let Some(y) = kernels::linear::run(&x, &weight, bias.as_ref())
    {
        dims[D - 1] = weight.dims()[1];
        return y.reshape(dims);
    }
    #[cfg(feature = "cube")]
    if let Some(y) = on_graphics(&x, || {
        let (weight, biases, width) = (weight.clone(), bias.iter().cloned().collect(), weight.dims()[1]);
        vec![kernels::linear::Map { weight, biases, first: 0, width, then: None }]
    }) {
        return only(y);
    }
    burn::tensor::module::linear(x, weight, bias)
}

/// Few tokens as rows, `[rows, in]`, and the sizes they had.
#[cfg(any(feature = "flex", feature = "cube"))]
fn few<const D: usize>(x: &Tensor<D>) -> Option<(Tensor<2>, [usize; D])> {
    let dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    let few = kernels::enabled() && kernels::linear::are_few(x);
    few.then(|| (x.clone().reshape([rows, dims[D - 1]]), dims))
}

/// The products of few tokens on a graphics device.
#[cfg(feature = "cube")]
fn on_graphics<const D: usize>(
    x: &Tensor<D>,
    maps: impl FnOnce() -> Vec<kernels::linear::Map>,
) -> Option<Vec<Tensor<D>>> {
    if !kernels::linear::on_graphics(x) {
        return None;
    }
    let (x, mut dims) = few(x)?;
    let all = kernels::linear::project(&x, &maps())?;
    let whole = |y: Tensor<2>| {
        dims[D - 1] = y.dims()[1];
        y.reshape(dims)
    };
    Some(all.into_iter().map(whole).collect())
}

/// The only one of them.
#[cfg(feature = "cube")]
fn only<const D: usize>(mut all: Vec<Tensor<D>>) -> Tensor<D> {
    all.remove(0)
}

#[cfg(all(test, feature = "cube", feature = "flex"))]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::Init;
    use crate::testing::{Draw, gap, graphics};

    /// Few tokens or many, whether the kernel has the function or not.
    #[test]
    fn endings_follow_their_maps() {
        use Activation::{EluPlusOne, Gelu, GeluTanh, Identity, Relu, Sigmoid, Silu};
        let activations = [Identity, Relu, Silu, Gelu, GeluTanh, Sigmoid, EluPlusOne];
        let endings = activations.map(Ending::Activation).into_iter().chain([Ending::LogSigmoid(0.3)]);
        let mut init = Init::new(1, &Device::flex());
        let map = Linear { bias: Some(init.uniform([70], -1.0, 1.0)), ..init.linear(9, 70) };
        let endings: Vec<Ending> = endings.collect();
        for (device, t) in graphics().into_iter().flat_map(|device| [1, 3, 20].map(|t| (device.clone(), t))) {
            let x = Draw::new(t as u64).tensor::<3>([1, t, 9], -1.0, 1.0);
            let there = map.clone().to_device(&device);
            let others: Vec<Ended<'_>> = endings.iter().map(|&ending| there.then(ending)).collect();
            let ([y], rest) = project_with(x.clone().to_device(&device), [&there], &others);
            let on_cpu = |y: Tensor<3>| y.to_device(&Device::flex());
            assert!(gap(on_cpu(y), map.forward(x.clone())) <= 1e-5);
            for (&ending, found) in endings.iter().zip(rest) {
                let expected = map.then(ending).forward(x.clone());
                assert!(gap(on_cpu(found), expected.clone()) <= 1e-5, "{ending:?}, {t} tokens");
                let alone = there.then(ending).forward(x.clone().to_device(&device));
                assert!(gap(on_cpu(alone), expected) <= 1e-5, "{ending:?} alone, {t} tokens");
            }
        }
    }
}
