//! Translates kernel FUSE requests to the MooseNG client; decides nothing.
//!
//! What the client can answer without waiting is answered on the kernel's thread; everything else moves,
//! with its reply, to a task on the tokio runtime. Errors keep the errno that the client chose.
#![cfg(not(feature = "sim"))]
// The mount is made of the operating system: mount tables, sysfs, threads.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod convert;
mod counters;
mod directory;
mod filesystem;
mod kernel_view;
mod mount;
mod shared;
mod virtual_xattr;

pub mod mountinfo;

pub use mount::{
    MountConfig, MountError, Mounted, check_mount_point, check_options, mount, unmount,
};
pub use virtual_xattr::{DROP_CACHES, MOUNT, STATS};
