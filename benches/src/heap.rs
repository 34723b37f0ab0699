//! The allocator of every program that links this crate: it counts bytes, and refuses those above a limit.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Largest number of bytes that were in use at once, so far.
pub fn peak() -> u64 {
    HEAP.max_allocated() as u64
}

/// Bytes handed out so far, those given back included.
pub fn allocated() -> u64 {
    HEAP.total_allocated() as u64
}

/// From now on an allocation above `bytes` in use ends the process; `false` where more is in use already.
pub fn limit(bytes: u64) -> bool {
    HEAP.set_limit(usize::try_from(bytes).unwrap_or(usize::MAX)).is_ok()
}
