//! The rows of the parity matrix.

mod attention;
mod delta;
mod linear;
mod miras;
mod recurrent;
mod rwkv;
mod solvers;
mod ttt;

use serde_json::Value;

use crate::registry::MixerConfig;

/// One row: an architecture in one configuration.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Architecture and variant, `attention/gqa`.
    pub name: String,
    /// The mixer.
    pub config: MixerConfig,
    /// Width of the layer under test.
    pub d_model: usize,
}

/// Every row, or the rows of one architecture.
pub fn subjects(architecture: Option<&str>) -> Vec<Subject> {
    let rows = table().into_iter().map(|(variant, config)| {
        let config: MixerConfig = match serde_json::from_value(config) {
            Ok(config) => config,
            Err(error) => panic!("row `{variant}` of the parity table does not parse: {error}"),
        };
        Subject { name: format!("{}/{variant}", config.name()), config, d_model: 16 }
    });
    rows.filter(|row| architecture.is_none_or(|name| row.config.name() == name)).collect()
}

/// A line per row, in one file per family; every architecture of the registry has at least one.
fn table() -> Vec<(&'static str, Value)> {
    [
        attention::rows(),
        linear::rows(),
        delta::rows(),
        recurrent::rows(),
        miras::rows(),
        rwkv::rows(),
        solvers::rows(),
        ttt::rows(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_a_row() {
        for name in MixerConfig::NAMES {
            assert!(!subjects(Some(name)).is_empty(), "{name} is not in the parity table");
        }
    }
}
