//! The error a filesystem call ends with.

use std::fmt;

/// A Linux errno, never 0. Chosen where the fault is known, carried unchanged to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident),* $(,)?) => {
        #[allow(missing_docs)]
        impl Errno {
            $(pub const $name: Errno = Errno(libc::$name);)*
        }

        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $(libc::$name => f.write_str(stringify!($name)),)*
                    other => write!(f, "errno {other}"),
                }
            }
        }
    };
}

errnos!(
    EPERM,
    ENOENT,
    E2BIG,
    EINTR,
    EIO,
    ENXIO,
    EBADF,
    EAGAIN,
    ENOMEM,
    EACCES,
    EBUSY,
    EEXIST,
    EXDEV,
    ENOTDIR,
    EISDIR,
    EINVAL,
    EFBIG,
    ENOSPC,
    EROFS,
    EMLINK,
    ERANGE,
    ENAMETOOLONG,
    ENOSYS,
    ENOTEMPTY,
    ELOOP,
    ENODATA,
    EPROTO,
    EOVERFLOW,
    EOPNOTSUPP,
    ETIMEDOUT,
    ESTALE,
    EDQUOT,
    ECANCELED,
);

impl Errno {
    /// From a wire or kernel value; 0 (no error) becomes EIO, because an error was promised.
    pub fn new(value: i32) -> Errno {
        if value > 0 { Errno(value) } else { Errno::EIO }
    }

    /// The positive Linux number.
    pub fn get(self) -> i32 {
        self.0
    }

    /// What a wire `errno` field says: 0 is success.
    pub fn check(value: i32) -> Result<(), Errno> {
        if value == 0 { Ok(()) } else { Err(Errno::new(value)) }
    }

    /// The wire value of an outcome.
    pub fn code<T>(outcome: &Result<T, Errno>) -> i32 {
        outcome.as_ref().err().map_or(0, |e| e.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for Errno {}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Errno {
        Errno::new(error.raw_os_error().unwrap_or(libc::EIO))
    }
}
