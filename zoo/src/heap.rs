//! What the process does with memory that tensors give back.

/// Keeps freed memory for the next tensors instead of giving it back to the system, where the allocator is glibc's.
///
/// Otherwise every tensor of more than 128 kB to 32 MB is mapped anew and faults in page by page, which costs a
/// linear-time layer up to a fifth of its time on long sequences. The price: the process stays as large as it ever
/// was. Call it first in `main`; the programs here do. Elsewhere it does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    keep();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "two settings of the C library's allocator")]
fn keep() {
    // SAFETY: both parameters exist in every glibc, and any value is allowed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
