//! What a page shows of a layer: a text goes in, the layer's views come out as plain data for JSON.
//!
//! The layers here have drawn, untrained parameters: what is seen is the shape of each architecture's
//! memory, not what a trained model attends to. Nothing here knows about a browser, so it is tested
//! natively; reading a tensor blocks, which a browser's main thread does not allow.

mod session;
mod snapshot;

pub use session::{MAX_TOKENS, Session};
pub use snapshot::{Grid, NamedRows, Snapshot};
