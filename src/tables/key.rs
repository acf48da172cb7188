//! Keys: tuples whose bytes sort as they do.

use crate::ids::{ChunkId, Generation, InodeId, LogIndex, NodeId, Seq, ServerId, SessionId, Uuid};
use bytes::Bytes;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A table's key. The order of the encoded bytes is the order of the table.
pub trait Key: Sized {
    /// Appends the encoded key.
    fn encode(&self, out: &mut Vec<u8>);
    /// The key of these bytes; `None` if they are no such key.
    fn decode(raw: &[u8]) -> Option<Self>;
}

/// A part of a key.
pub trait Part: Sized {
    /// Appends the part.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes the part off the front.
    fn take(raw: &mut &[u8]) -> Option<Self>;
}

/// A part of one width, which other parts may follow.
pub trait FixedPart: Part {}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Part for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn take(raw: &mut &[u8]) -> Option<Self> {
                let (head, rest) = raw.split_first_chunk()?;
                *raw = rest;
                Some(<$number>::from_be_bytes(*head))
            }
        }
        impl FixedPart for $number {}
    )*};
}
numbers!(u8, u16, u32, u64);

macro_rules! ids {
    ($($id:ident),*) => {$(
        impl Part for $id {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }

            fn take(raw: &mut &[u8]) -> Option<Self> {
                u64::take(raw).map($id)
            }
        }
        impl FixedPart for $id {}
    )*};
}
ids!(ChunkId, Generation, InodeId, LogIndex, NodeId, Seq, ServerId, SessionId);

impl Part for Uuid {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn take(raw: &mut &[u8]) -> Option<Self> {
        let (head, rest) = raw.split_first_chunk()?;
        *raw = rest;
        Some(Uuid(*head))
    }
}
impl FixedPart for Uuid {}

/// Any bytes, to the end of the key: only as the last part.
impl Part for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(raw: &mut &[u8]) -> Option<Self> {
        Some(Bytes::copy_from_slice(std::mem::take(raw)))
    }
}

/// Any bytes, to the end of the key: only as the last part.
impl Part for Vec<u8> {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(raw: &mut &[u8]) -> Option<Self> {
        Some(std::mem::take(raw).to_vec())
    }
}

/// The key of a table with one row.
impl Key for () {
    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(raw: &[u8]) -> Option<Self> {
        raw.is_empty().then_some(())
    }
}

impl<A: Part> Key for A {
    fn encode(&self, out: &mut Vec<u8>) {
        self.put(out);
    }

    fn decode(mut raw: &[u8]) -> Option<Self> {
        let key = A::take(&mut raw)?;
        raw.is_empty().then_some(key)
    }
}

macro_rules! tuples {
    ($(($($part:ident $at:tt),*; $last:ident $last_at:tt);)*) => {$(
        impl<$($part: FixedPart,)* $last: Part> Key for ($($part,)* $last,) {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$at.put(out);)*
                self.$last_at.put(out);
            }

            fn decode(mut raw: &[u8]) -> Option<Self> {
                let key = ($($part::take(&mut raw)?,)* $last::take(&mut raw)?,);
                raw.is_empty().then_some(key)
            }
        }
    )*};
}
tuples! {
    (A 0; B 1);
    (A 0, B 1; C 2);
    (A 0, B 1, C 2; D 3);
    (A 0, B 1, C 2, D 3; E 4);
}

const INLINE_BYTES: usize = 30;

/// Table id and encoded key as the overlay holds them: 32 bytes, on the heap only beyond 30.
#[derive(Clone)]
pub(super) enum KeyBytes {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Heap(Arc<[u8]>),
}

const _: () = assert!(size_of::<KeyBytes>() == 32);

impl KeyBytes {
    pub(super) fn new(raw: &[u8]) -> KeyBytes {
        if raw.len() > INLINE_BYTES {
            return KeyBytes::Heap(raw.into());
        }
        let mut bytes = [0; INLINE_BYTES];
        bytes[..raw.len()].copy_from_slice(raw);
        KeyBytes::Inline { len: raw.len() as u8, bytes }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            KeyBytes::Inline { len, bytes } => &bytes[..usize::from(*len)],
            KeyBytes::Heap(bytes) => bytes,
        }
    }

    /// Bytes a key of this length takes on the heap.
    pub(super) fn heap_bytes(len: usize) -> usize {
        if len > INLINE_BYTES { len + 2 * size_of::<usize>() } else { 0 }
    }
}

impl Borrow<[u8]> for KeyBytes {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for KeyBytes {
    fn eq(&self, other: &KeyBytes) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for KeyBytes {}

impl PartialOrd for KeyBytes {
    fn partial_cmp(&self, other: &KeyBytes) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyBytes {
    fn cmp(&self, other: &KeyBytes) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
