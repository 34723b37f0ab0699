//! RWKV (Peng et al.): recurrent layers that mix every token with the one before it.

mod channel_mix;
mod head_norm;
mod low_rank;
mod rwkv4;
mod rwkv6;
mod rwkv7;
mod shift;
mod wkv;

pub use channel_mix::{ChannelMix, ChannelMixConfig};
pub use head_norm::HeadLayerNorm;
pub use low_rank::LowRank;
pub use rwkv4::{Rwkv4, Rwkv4Config};
pub use rwkv6::{Rwkv6, Rwkv6Config};
pub use rwkv7::{Rwkv7, Rwkv7Config};
#[cfg(all(test, feature = "flex"))]
pub(crate) use wkv::{Averages, averages};
