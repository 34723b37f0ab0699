//! Named members of the family: the builder's configuration with other defaults.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value};

use super::MirasConfig;

/// Declares the configuration of a preset: the fields of [`MirasConfig`], with defaults of its own.
macro_rules! preset {
    ($(#[$doc:meta])* $config:ident, $name:literal, $defaults:expr) => {
        $(#[$doc])*
        ///
        /// In files it has the fields of [`MirasConfig`](super::MirasConfig); those left out have the preset's
        /// values.
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        #[serde(transparent)]
        pub struct $config(pub super::MirasConfig);

        impl Default for $config {
            fn default() -> Self {
                Self($defaults)
            }
        }

        impl<'de> serde::Deserialize<'de> for $config {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                super::preset::overridden(&Self::default().0, deserializer).map(Self)
            }
        }

        impl $config {
            /// Name in the registry and in errors.
            pub const NAME: &'static str = $name;

            /// Checks the values and draws the parameters for width `d_model`.
            ///
            /// # Errors
            /// For impossible sizes, and for choices that do not go together.
            pub fn init(&self, d_model: usize, init: &mut crate::Init) -> crate::Result<super::Miras> {
                self.0.build(Self::NAME, d_model, init)
            }
        }
    };
}
pub(super) use preset;

/// `defaults` with the fields that are given in their place.
pub(super) fn overridden<'de, D: Deserializer<'de>>(
    defaults: &MirasConfig,
    deserializer: D,
) -> Result<MirasConfig, D::Error> {
    let given = Map::<String, Value>::deserialize(deserializer)?;
    let mut all = match serde_json::to_value(defaults).map_err(D::Error::custom)? {
        Value::Object(all) => all,
        _ => Map::new(),
    };
    all.extend(given);
    // Unknown names are refused here.
    serde_json::from_value(Value::Object(all)).map_err(D::Error::custom)
}
