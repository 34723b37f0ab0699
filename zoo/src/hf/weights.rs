//! Tensors of a checkpoint, seen from a module.

use std::cell::RefCell;
use std::collections::BTreeSet;

use burn::tensor::Tensor;
use seqzoo_layers::Error;
use seqzoo_layers::params::Named;

use crate::Result;

/// The tensors below a module path. Remembers which were read.
#[derive(Clone)]
pub(super) struct Weights<'a> {
    tensors: &'a Named,
    read: std::rc::Rc<RefCell<BTreeSet<String>>>,
    prefix: String,
}

impl<'a> Weights<'a> {
    pub(super) fn new(tensors: &'a Named) -> Self {
        Self { tensors, read: Default::default(), prefix: String::new() }
    }

    /// Those of a module inside.
    pub(super) fn at(&self, module: &str) -> Self {
        Self { prefix: format!("{}{module}.", self.prefix), ..self.clone() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("{}{name}", self.prefix))
    }

    /// Whether any tensor is inside this module.
    pub(super) fn has_module(&self, module: &str) -> bool {
        let prefix = format!("{}{module}.", self.prefix);
        self.tensors.range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&prefix))
    }

    /// A tensor of rank `D`.
    pub(super) fn get<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        let name = format!("{}{name}", self.prefix);
        let value = self.tensors.get(&name);
        let value = value.ok_or_else(|| Error::Weights(format!("the checkpoint has no tensor `{name}`")))?;
        let tensor = value.tensor(&name)?;
        self.read.borrow_mut().insert(name);
        Ok(tensor)
    }

    /// Names of tensors that were not read.
    pub(super) fn unused(&self) -> impl Iterator<Item = &'a str> {
        let read = self.read.borrow().clone();
        self.tensors.keys().map(String::as_str).filter(move |name| !read.contains(*name))
    }
}
