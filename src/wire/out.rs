//! Frames on their way into a socket, written with as few vectored writes as possible and without copying.

use bytes::{Buf, Bytes};
use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Pieces in one vectored write.
const SLICES: usize = 64;

/// An encoded frame.
#[derive(Clone, Debug)]
pub struct OutFrame {
    /// The call it belongs to.
    pub id: u64,
    /// Header and body.
    pub head: Bytes,
    /// Payload.
    pub payload: Vec<Bytes>,
}

struct Piece {
    id: u64,
    bytes: Bytes,
    /// Nothing of its frame has been written yet.
    untouched_first: bool,
}

/// Frames in the order in which they go out.
#[derive(Default)]
pub struct OutQueue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    unflushed: bool,
}

impl OutQueue {
    /// Appends a frame.
    pub fn push(&mut self, frame: OutFrame) {
        let OutFrame { id, head, payload } = frame;
        self.bytes += head.len();
        self.pieces.push_back(Piece { id, bytes: head, untouched_first: true });
        for bytes in payload.into_iter().filter(|bytes| !bytes.is_empty()) {
            self.bytes += bytes.len();
            self.pieces.push_back(Piece { id, bytes, untouched_first: false });
        }
    }

    /// Bytes waiting.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything has been handed to the socket.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && !self.unflushed
    }

    /// Puts the frames of `later` behind these.
    pub fn append(&mut self, later: &mut OutQueue) {
        self.pieces.append(&mut later.pieces);
        self.bytes += std::mem::take(&mut later.bytes);
        self.unflushed |= std::mem::take(&mut later.unflushed);
    }

    /// Puts the frames of `earlier` in front of these.
    pub fn prepend(&mut self, mut earlier: OutQueue) {
        earlier.append(self);
        *self = earlier;
    }

    /// Takes a frame back; false if it is not here or partly written.
    pub fn remove(&mut self, id: u64) -> bool {
        let begun = !self.pieces.iter().any(|piece| piece.id == id && piece.untouched_first);
        if begun {
            return false;
        }
        self.pieces.retain(|piece| piece.id != id);
        self.bytes = self.pieces.iter().map(|piece| piece.bytes.len()).sum();
        true
    }

    /// The calls whose frames have not been written whole.
    pub fn unwritten(&self) -> BTreeSet<u64> {
        self.pieces.iter().map(|piece| piece.id).collect()
    }

    /// Writes until everything is out (`Ready`) or the socket is full.
    pub fn poll_write<W>(&mut self, io: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(&piece.bytes);
                count += 1;
            }
            match Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.unflushed {
            match Pin::new(io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.unflushed = true;
        self.bytes -= written;
        while let Some(front) = self.pieces.front_mut() {
            if written < front.bytes.len() {
                if written > 0 {
                    front.bytes.advance(written);
                    front.untouched_first = false;
                }
                return;
            }
            written -= front.bytes.len();
            self.pieces.pop_front();
        }
    }
}
