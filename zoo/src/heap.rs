//! What the process does with memory that tensors give back.

/// Keeps freed memory for the next tensors instead of giving it back to the system, and asks for large pages, where
/// the allocator is glibc's.
///
/// Otherwise every tensor of more than 128 kB to 32 MB is mapped anew and faults in page by page, which costs a
/// linear-time layer up to a fifth of its time on long sequences; and small pages cost it a twentieth more. The price:
/// the process stays as large as it ever was. Call it first in `main`; the programs here do. Elsewhere it does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    keep();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "settings of the C library's allocator")]
fn keep() {
    /// Of address space, not of memory: only what is used takes any.
    const RESERVED: usize = 1 << 30;
    const PAGE: usize = 4096;

    // SAFETY: both parameters exist in every glibc, and any value is allowed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
    // SAFETY: the advice is for whole pages inside the block, and changes no number in them.
    unsafe {
        let blocks = [(); 4].map(|()| libc::malloc(RESERVED));
        for block in blocks.into_iter().filter(|block| !block.is_null()) {
            let first = block.cast::<u8>().add(block.cast::<u8>().align_offset(PAGE));
            libc::madvise(first.cast(), RESERVED - PAGE, libc::MADV_HUGEPAGE);
        }
        blocks.into_iter().for_each(|block| libc::free(block));
    }
}
