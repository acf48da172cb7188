//! Calls between processes: frames on persistent, multiplexed TCP streams.
//!
//! A [`Pool`] dials and calls; a [`Server`] accepts and lets a [`Handler`] answer. Both sides introduce
//! themselves first, and refuse each other if cluster, protocol version or node are not the expected ones.
//! Every call has a deadline, travels with what is left of it, and ends in a reply or a [`CallError`] that
//! says whether it may have been executed. Nothing is ever sent again by this layer.

pub mod calls;
mod conn;
mod error;
pub mod frame;
mod hello;
pub mod hook;
mod memory;
mod out;
mod pool;
mod serve;
mod server;
#[cfg(test)]
mod tests;

pub use calls::Call;
pub use error::{CallError, Refusal, RefusalCode};
pub use memory::Memory;
pub use pool::Pool;
pub use server::{Handler, Server};

use crate::ids::Uuid;
use crate::seam::Mono;
use bytes::{Bytes, BytesMut};
use prost::Message;

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Role {
    /// Keeps the namespace.
    Master = 1,
    /// Keeps bytes.
    Chunkserver = 2,
    /// A mount.
    Client = 3,
    /// A command-line tool.
    Tool = 4,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; `None` while not known yet, which agrees with any.
    pub cluster: Option<Uuid>,
    /// What it is.
    pub role: Role,
    /// Its number among its kind; 0 while it has none.
    pub node: u64,
    /// Random number of this start of the process.
    pub incarnation: u64,
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it said it is.
    pub identity: Identity,
    /// Where it is: the address dialled, or the socket address it came from.
    pub address: String,
}

/// A request as it reaches a [`Handler`].
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Which call; [`Call::METHOD`].
    pub method: u16,
    /// The encoded request.
    pub body: Bytes,
    /// Raw bytes beside it.
    pub payload: Bytes,
    /// When the caller gives up.
    pub deadline: Mono,
    /// Its share of the memory for long requests.
    pub memory: Memory,
}

impl Incoming {
    /// The request message. Its byte fields are copies that do not pin the frame's memory.
    pub fn decode<C: Call>(&self) -> Result<C::Request, Refusal> {
        crate::invariant!(self.method == C::METHOD, "a request is decoded as what it is");
        C::Request::decode(&self.body[..]).map_err(|error| {
            Refusal::new(RefusalCode::BadRequest, format!("{} request: {error}", C::NAME))
        })
    }
}

/// A reply as it leaves a [`Handler`].
#[derive(Debug)]
pub struct Outgoing {
    /// Room for the header, then the encoded reply.
    buffer: BytesMut,
    payload: Vec<Bytes>,
}

impl Outgoing {
    /// A reply without payload.
    pub fn new<C: Call>(reply: &C::Reply) -> Outgoing {
        let mut buffer = frame::body_buffer(reply.encoded_len());
        reply.encode(&mut buffer).expect("BytesMut grows");
        Outgoing { buffer, payload: Vec::new() }
    }

    /// Adds raw bytes, sent without copying.
    pub fn with_payload(mut self, payload: Vec<Bytes>) -> Outgoing {
        self.payload = payload;
        self
    }

    /// The encoded reply.
    pub fn body(&self) -> &[u8] {
        &self.buffer[frame::HEADER_BYTES..]
    }

    /// The raw bytes.
    pub fn payload(&self) -> &[Bytes] {
        &self.payload
    }

    fn check(&self) -> Result<(), String> {
        check_lengths(frame::FrameLimits::FULL, self.body().len(), &self.payload)
    }
}

fn check_lengths(most: frame::FrameLimits, body: usize, payload: &[Bytes]) -> Result<(), String> {
    let payload: usize = payload.iter().map(Bytes::len).sum();
    if body > most.body {
        return Err(format!("a body of {body} bytes, at most {} allowed", most.body));
    }
    if payload > most.payload {
        return Err(format!("a payload of {payload} bytes, at most {} allowed", most.payload));
    }
    Ok(())
}
