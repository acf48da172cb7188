//! How the C library's allocator treats long buffers.

/// Shorter buffers are kept for reuse when freed; longer ones, which few appends are and only the longest
/// requests, go back to the kernel at once. By itself the library would keep whatever it has seen freed once, in
/// the heap of each thread: a few of the longest requests would stay for ever.
pub fn settle() {
    #[cfg(target_env = "gnu")]
    for (option, bytes) in [(libc::M_MMAP_THRESHOLD, 2 << 20), (libc::M_TRIM_THRESHOLD, 8 << 20)] {
        // SAFETY: changes two numbers of the allocator, under its own lock.
        let set = unsafe { libc::mallopt(option, bytes) };
        debug_assert_eq!(set, 1);
    }
}
