//! The allocator of the daemons: a master makes and frees many small objects per operation, which jemalloc
//! does in less time than the C library, and it gives what is not needed any more back to the kernel.

use std::ffi::c_char;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Two arenas, as a daemon has few busy threads. Unused pages are given back after some seconds, also by a
/// daemon that has nothing to do; what is longer than any usual append at once.
// SAFETY: jemalloc reads the symbol once, as a pointer to a C string; this is one, and it never changes.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static CONFIGURATION: Option<&c_char> = Some(unsafe {
    // SAFETY: not null, aligned, and lives for ever.
    &*c"narenas:2,background_thread:true,dirty_decay_ms:10000,muzzy_decay_ms:0,oversize_threshold:2097152".as_ptr()
});
