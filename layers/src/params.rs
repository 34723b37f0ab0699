//! Parameters by name: listing, loading, and reading gradients of any [`Module`].

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Gradients, Tensor};

use crate::{Error, Result, Value};

/// Tensors by dotted parameter path, as in `blocks.0.mixer.q_proj.weight`.
pub type Named = BTreeMap<String, Value>;

/// Path segments that name enum variants rather than fields are left out of parameter names.
#[derive(Default)]
struct Path(Vec<(String, bool)>);

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        // Burn enters an enum's variant under the variant's own name: it is no part of the path.
        self.0.push((name.to_string(), container.starts_with("Enum:")));
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn name(&self) -> String {
        let parts: Vec<&str> =
            self.0.iter().filter(|(_, hidden)| !hidden).map(|(name, _)| name.as_str()).collect();
        parts.join(".")
    }
}

/// All float parameters of a module by name.
pub fn parameters<M: Module>(module: &M) -> Named {
    struct Collect(Path, Named);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.name(), Value::of(param.val()));
        }
    }
    let mut collect = Collect(Path::default(), Named::new());
    module.visit(&mut collect);
    collect.1
}

/// Gradients of all parameters that took part in the loss, by name.
pub fn gradients<M: Module>(module: &M, grads: &Gradients) -> Named {
    struct Collect<'a>(Path, Named, &'a Gradients);
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = param.val().grad(self.2) {
                self.1.insert(self.0.name(), Value::of(grad));
            }
        }
    }
    let mut collect = Collect(Path::default(), Named::new(), grads);
    module.visit(&mut collect);
    collect.1
}

/// Replaces every parameter by the tensor of the same name.
///
/// The tensors keep their autodiff graph, so a parameter may be an expression of other leaves.
///
/// # Errors
/// When a parameter has no tensor, a tensor has no parameter, or shapes differ: the message lists the names.
pub fn assign<M: Module>(module: M, values: Named) -> Result<M> {
    struct Assign {
        path: Path,
        values: Named,
        problems: Vec<String>,
    }
    impl ModuleMapper for Assign {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = self.path.name();
            let expected = param.lazy_shape().to_vec();
            let Some(value) = self.values.remove(&name) else {
                self.problems.push(format!("`{name}` {expected:?} is missing"));
                return param;
            };
            if value.dims() != expected {
                self.problems.push(format!("`{name}` has shape {:?}, expected {expected:?}", value.dims()));
                return param;
            }
            match value.tensor::<D>(&name) {
                Ok(tensor) => Param::initialized(param.id, tensor),
                Err(error) => {
                    self.problems.push(error.to_string());
                    param
                }
            }
        }
    }
    let mut assign = Assign { path: Path::default(), values, problems: Vec::new() };
    let module = module.map(&mut assign);
    let unused = assign.values.keys().map(|name| format!("`{name}` is not a parameter"));
    assign.problems.extend(unused);
    if assign.problems.is_empty() {
        return Ok(module);
    }
    let more = assign.problems.len().saturating_sub(8);
    assign.problems.truncate(8);
    let tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(Error::Weights(format!("{}{tail}", assign.problems.join("; "))))
}

/// Converts every parameter to another element type (for example `F64` for gradient checks).
/// The result's parameters are fresh leaves.
pub fn cast<M: Module>(module: M, dtype: DType) -> M {
    struct Cast(DType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, _) = param.consume();
            let leaf = value.detach().cast(self.0).detach();
            let leaf = if leaf.is_autodiff() { leaf.require_grad() } else { leaf };
            Param::initialized(id, leaf)
        }
    }
    module.map(&mut Cast(dtype))
}
