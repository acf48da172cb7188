//! The bytes of a frame, and a decoder that does no I/O.
//!
//! A frame is a header of fixed size, a body (an encoded message), then a raw payload. All integers are
//! little-endian; docs/PROTOCOL.md draws the layout.

use super::calls;
use crate::checksum::{crc32c, crc32c_parts};
use crate::limits::{
    FRAME_BODY_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, REQUEST_BODY_BYTES_MAX,
    REQUEST_PAYLOAD_BYTES_MAX,
};
use crate::seam::DIRECT_ALIGN;
use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"MNGw";
/// Version of the protocol that this code speaks; peers with another are refused.
pub const VERSION: u16 = 1;
/// Size of a header, bytes.
pub const HEADER_BYTES: usize = 44;
/// Longest body of a hello, and so the most that an unknown peer can make us hold, bytes.
pub const HELLO_BODY_BYTES_MAX: usize = 4096;

/// A section longer than this is read from the socket straight into its own buffer, bytes.
const DIRECT_BYTES: usize = 8 << 10;
/// First reservation for a section; more only as bytes arrive, because the length is only a claim.
const FIRST_RESERVE_BYTES: usize = 1 << 20;
/// Sections from this length on are aligned in memory, bytes.
const ALIGNED_BYTES: usize = 64 << 10;
/// Size of the buffer for headers and short sections, bytes.
const READ_BYTES: usize = 32 << 10;
/// Flag: the header's payload CRC is set.
const FLAG_PAYLOAD_CRC: u8 = 1;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A call.
    Request = 1,
    /// Its answer.
    Reply = 2,
    /// Its refusal, or that of the connection (id 0).
    Refusal = 3,
    /// First frame in each direction.
    Hello = 4,
    /// The caller no longer wants the answer.
    Cancel = 5,
    /// Are you there?
    Ping = 6,
    /// Yes.
    Pong = 7,
}

impl Kind {
    fn from_wire(value: u8) -> Option<Kind> {
        use Kind::*;
        [Request, Reply, Refusal, Hello, Cancel, Ping, Pong]
            .into_iter()
            .find(|kind| *kind as u8 == value)
    }
}

/// Why bytes are not a frame. The connection is closed: after this its position is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol.
    #[error("not a MooseNG frame")]
    BadMagic,
    /// Another version.
    #[error("the peer speaks protocol version {0}, this is version {VERSION}")]
    Version(u16),
    /// Damaged header.
    #[error("frame header checksum mismatch")]
    HeaderCrc,
    /// A kind or flag of no version that we know.
    #[error("unknown frame kind {0} or flags {1}")]
    Kind(u8, u8),
    /// Longer than allowed.
    #[error("frame {0} of {1} bytes, at most {2} allowed")]
    TooLong(&'static str, usize, usize),
    /// Damaged body.
    #[error("frame body checksum mismatch")]
    BodyCrc,
    /// Damaged or unprotected payload.
    #[error("frame payload checksum mismatch or missing")]
    PayloadCrc,
}

/// A received frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The call's number.
    pub method: u16,
    /// Refusals: the code.
    pub code: u16,
    /// Requests: milliseconds until the caller gives up.
    pub deadline_ms: u32,
    /// Ties request and reply together.
    pub id: u64,
    /// Encoded message, or the text of a refusal.
    pub body: Bytes,
    /// Raw bytes.
    pub payload: Bytes,
}

#[derive(Clone, Copy)]
struct Header {
    kind: Kind,
    flags: u8,
    method: u16,
    code: u16,
    deadline_ms: u32,
    id: u64,
    body_len: usize,
    payload_len: usize,
    body_crc: u32,
    payload_crc: u32,
}

impl Header {
    fn parse(mut raw: &[u8]) -> Result<Header, FrameError> {
        debug_assert_eq!(raw.len(), HEADER_BYTES);
        let crc = crc32c(&raw[..HEADER_BYTES - 4]);
        if raw[..4] != MAGIC {
            return Err(FrameError::BadMagic);
        }
        raw.advance(4);
        let version = raw.get_u16_le();
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let (kind, flags) = (raw.get_u8(), raw.get_u8());
        let header = Header {
            kind: Kind::Request,
            flags,
            method: raw.get_u16_le(),
            code: raw.get_u16_le(),
            deadline_ms: raw.get_u32_le(),
            id: raw.get_u64_le(),
            body_len: raw.get_u32_le() as usize,
            payload_len: raw.get_u32_le() as usize,
            body_crc: raw.get_u32_le(),
            payload_crc: raw.get_u32_le(),
        };
        if raw.get_u32_le() != crc {
            return Err(FrameError::HeaderCrc);
        }
        match Kind::from_wire(kind) {
            Some(kind) if flags & !FLAG_PAYLOAD_CRC == 0 => Ok(Header { kind, ..header }),
            _ => Err(FrameError::Kind(kind, flags)),
        }
    }

    fn check(&self, limits: FrameLimits) -> Result<(), FrameError> {
        if self.body_len > limits.body {
            return Err(FrameError::TooLong("body", self.body_len, limits.body));
        }
        if self.payload_len > limits.payload {
            return Err(FrameError::TooLong("payload", self.payload_len, limits.payload));
        }
        let unprotected = self.flags & FLAG_PAYLOAD_CRC == 0;
        if unprotected && self.payload_len > 0 && calls::payload_crc(self.method) {
            return Err(FrameError::PayloadCrc);
        }
        Ok(())
    }
}

/// Longest sections that the decoder accepts, bytes.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// Body.
    pub body: usize,
    /// Payload.
    pub payload: usize,
}

impl FrameLimits {
    /// Before the handshake is over.
    pub const HELLO: FrameLimits = FrameLimits { body: HELLO_BODY_BYTES_MAX, payload: 0 };
    /// After it.
    pub const FULL: FrameLimits =
        FrameLimits { body: FRAME_BODY_BYTES_MAX, payload: FRAME_PAYLOAD_BYTES_MAX };
    /// After it, for who answers requests.
    pub const REQUESTS: FrameLimits =
        FrameLimits { body: REQUEST_BODY_BYTES_MAX, payload: REQUEST_PAYLOAD_BYTES_MAX };
}

/// Everything of a header that the sender chooses.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// What the frame is.
    pub kind: Kind,
    /// The call's number.
    pub method: u16,
    /// Refusals: the code.
    pub code: u16,
    /// Requests: milliseconds until the caller gives up.
    pub deadline_ms: u32,
    /// Ties request and reply together.
    pub id: u64,
}

impl Head {
    /// A head without method, code and deadline.
    pub fn bare(kind: Kind, id: u64) -> Head {
        Head { kind, method: 0, code: 0, deadline_ms: 0, id }
    }
}

/// An empty buffer with room for the header, to encode a body behind.
pub fn body_buffer(body_len: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(HEADER_BYTES + body_len);
    buffer.put_bytes(0, HEADER_BYTES);
    buffer
}

/// Writes the header into the room that [`body_buffer`] left. The lengths are within the limits.
pub fn finish(mut buffer: BytesMut, head: Head, payload: &[Bytes]) -> Bytes {
    let payload_len: usize = payload.iter().map(Bytes::len).sum();
    debug_assert!(payload_len <= FRAME_PAYLOAD_BYTES_MAX);
    let with_crc = payload_len > 0 && calls::payload_crc(head.method);
    let payload_crc = if with_crc {
        crc32c_parts(&payload.iter().map(Bytes::as_ref).collect::<Vec<_>>())
    } else {
        0
    };
    let (mut room, body) = buffer.split_at_mut(HEADER_BYTES);
    let body_crc = if body.is_empty() { 0 } else { crc32c(body) };
    let mut header = [0u8; HEADER_BYTES];
    let mut out = &mut header[..];
    out.put_slice(&MAGIC);
    out.put_u16_le(VERSION);
    out.put_u8(head.kind as u8);
    out.put_u8(if with_crc { FLAG_PAYLOAD_CRC } else { 0 });
    out.put_u16_le(head.method);
    out.put_u16_le(head.code);
    out.put_u32_le(head.deadline_ms);
    out.put_u64_le(head.id);
    out.put_u32_le(body.len() as u32);
    out.put_u32_le(payload_len as u32);
    out.put_u32_le(body_crc);
    out.put_u32_le(payload_crc);
    let crc = crc32c(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    room.put_slice(&header);
    buffer.freeze()
}

/// A frame without payload around a body that exists already.
pub fn encode(head: Head, body: &[u8]) -> Bytes {
    let mut buffer = body_buffer(body.len());
    buffer.put_slice(body);
    finish(buffer, head, &[])
}

struct Partial {
    header: Header,
    body: BytesMut,
    payload: BytesMut,
    /// Somebody answers for all that it claims.
    granted: bool,
}

/// Cuts a stream of bytes into frames. Feed it by reading into [`Decoder::target`], then take frames from
/// [`Decoder::next_frame`] until it returns `None`.
pub struct Decoder {
    buffer: BytesMut,
    partial: Option<Partial>,
    limits: FrameLimits,
}

impl Decoder {
    /// An empty decoder.
    pub fn new(limits: FrameLimits) -> Decoder {
        Decoder { buffer: BytesMut::new(), partial: None, limits }
    }

    /// Changes the limits for the frames from the next one on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Whether bytes of an unfinished frame are held.
    pub fn mid_frame(&self) -> bool {
        self.partial.is_some() || !self.buffer.is_empty()
    }

    /// Length of the unfinished frame, as it claims; 0 between frames and before the header is whole.
    pub fn unfinished(&self) -> usize {
        self.partial
            .as_ref()
            .map_or(0, |partial| partial.header.body_len + partial.header.payload_len)
    }

    /// What the caller of the unfinished frame gives its call, milliseconds; 0 where [`Decoder::unfinished`] is 0.
    pub fn deadline_ms(&self) -> u32 {
        self.partial.as_ref().map_or(0, |partial| partial.header.deadline_ms)
    }

    /// The caller has set the memory aside that the unfinished frame claims: it need not grow in steps, which
    /// copy what has come and take twice the room.
    pub fn grant(&mut self) {
        if let Some(partial) = &mut self.partial {
            partial.granted = true;
        }
    }

    /// Where the next bytes of the stream go: straight into a long section, else into the buffer.
    pub fn target(&mut self) -> Limit<&mut BytesMut> {
        if let Some(partial) = &mut self.partial {
            let Partial { header, body, payload, granted } = partial;
            let (section, len) = match body.len() < header.body_len {
                true => (body, header.body_len),
                false => (payload, header.payload_len),
            };
            if len - section.len() > DIRECT_BYTES {
                if section.len() == section.capacity() {
                    let mut longer = aligned(match *granted {
                        true => len,
                        false => section.len().saturating_mul(2).clamp(FIRST_RESERVE_BYTES, len),
                    });
                    longer.extend_from_slice(section);
                    *section = longer;
                }
                let room = (section.capacity() - section.len()).min(len - section.len());
                return section.limit(room);
            }
        }
        self.buffer.reserve(READ_BYTES);
        let room = self.buffer.capacity() - self.buffer.len();
        (&mut self.buffer).limit(room)
    }

    /// The next whole frame, `None` if bytes are missing.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.partial.is_none() {
            if self.buffer.len() < HEADER_BYTES {
                return Ok(None);
            }
            let header = Header::parse(&self.buffer[..HEADER_BYTES])?;
            header.check(self.limits)?;
            self.buffer.advance(HEADER_BYTES);
            let room = |len: usize| BytesMut::with_capacity(len.min(FIRST_RESERVE_BYTES));
            let (body, payload) = (room(header.body_len), BytesMut::new());
            self.partial = Some(Partial { header, body, payload, granted: false });
        }
        let Some(partial) = &mut self.partial else { return Ok(None) };
        if !fill(&mut self.buffer, &mut partial.body, partial.header.body_len) {
            return Ok(None);
        }
        if partial.payload.capacity() == 0 && partial.header.payload_len > 0 {
            partial.payload = aligned(partial.header.payload_len.min(FIRST_RESERVE_BYTES));
        }
        if !fill(&mut self.buffer, &mut partial.payload, partial.header.payload_len) {
            return Ok(None);
        }
        self.partial.take().map(Partial::finish).transpose()
    }
}

impl Partial {
    fn finish(self) -> Result<Frame, FrameError> {
        let Partial { header, body, payload, granted: _ } = self;
        if !body.is_empty() && crc32c(&body) != header.body_crc {
            return Err(FrameError::BodyCrc);
        }
        let with_crc = header.flags & FLAG_PAYLOAD_CRC != 0;
        if with_crc && crc32c(&payload) != header.payload_crc {
            return Err(FrameError::PayloadCrc);
        }
        Ok(Frame {
            kind: header.kind,
            method: header.method,
            code: header.code,
            deadline_ms: header.deadline_ms,
            id: header.id,
            body: body.freeze(),
            payload: payload.freeze(),
        })
    }
}

/// An empty buffer; a long one begins where a direct write may ([`DIRECT_ALIGN`]), so that payloads reach the
/// disk without another copy.
fn aligned(capacity: usize) -> BytesMut {
    if capacity < ALIGNED_BYTES {
        return BytesMut::with_capacity(capacity);
    }
    let mut buffer = BytesMut::with_capacity(capacity + DIRECT_ALIGN - 1);
    let skip = buffer.as_ptr().addr().next_multiple_of(DIRECT_ALIGN) - buffer.as_ptr().addr();
    buffer.put_bytes(0, skip);
    buffer.advance(skip);
    buffer
}

/// Moves what belongs to a section out of the buffer; whether the section is complete.
fn fill(buffer: &mut BytesMut, section: &mut BytesMut, len: usize) -> bool {
    let take = (len - section.len()).min(buffer.len());
    section.extend_from_slice(&buffer[..take]);
    buffer.advance(take);
    section.len() == len
}
