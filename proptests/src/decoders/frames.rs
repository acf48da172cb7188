//! The wire: a stream cut into frames, with the limits that apply before and after a handshake, and the request or
//! reply in each.

use super::bytes::{set_u32, u32_at};
use super::{messages, split, with_first};
use bytes::{BufMut, Bytes};
use mooseng::checksum::crc32c;
use mooseng::wire::frame::{
    Decoder, FrameLimits, HEADER_BYTES, Head, Kind, MAGIC, body_buffer, encode, finish,
};
use prost::Message;

const LIMITS: [FrameLimits; 3] = [FrameLimits::HELLO, FrameLimits::REQUESTS, FrameLimits::FULL];

pub(super) fn run(input: &[u8]) {
    let (mends, number, rest) = split(input);
    let limits = LIMITS[usize::from(number) % LIMITS.len()];
    match mends {
        true => {
            let mut bytes = rest.to_vec();
            mend(&mut bytes);
            decode(&bytes, limits);
        }
        false => _ = decode(rest, limits),
    }
}

/// Frames at the beginning of a stream, within the limits of who answers requests.
pub fn frame_count(stream: &[u8]) -> usize {
    decode(stream, FrameLimits::REQUESTS)
}

fn decode(mut input: &[u8], limits: FrameLimits) -> usize {
    let (mut decoder, mut found) = (Decoder::new(limits), 0);
    while !input.is_empty() {
        let mut target = decoder.target();
        let len = target.remaining_mut().min(input.len());
        target.put_slice(&input[..len]);
        input = &input[len..];
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    found += 1;
                    messages::of_frame(frame.kind, frame.method, &frame.body);
                }
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

/// Sets the checksums of all frames that follow one another.
fn mend(bytes: &mut [u8]) {
    let mut at = 0;
    while bytes[at..].starts_with(&MAGIC) && bytes.len() - at >= HEADER_BYTES {
        let length = |place| u32_at(bytes, at + place).unwrap_or(0);
        let (body, payload) = (length(24), length(28));
        let begins = at + HEADER_BYTES;
        let part = |from: usize, len: usize| bytes.get(from..from.checked_add(len)?).map(crc32c);
        let crcs = [part(begins, body), part(begins.saturating_add(body), payload)];
        for (place, crc) in [32, 36].into_iter().zip(crcs) {
            set_u32(bytes, at + place, crc.unwrap_or(0));
        }
        let crc = crc32c(&bytes[at..at + HEADER_BYTES - 4]);
        set_u32(bytes, at + HEADER_BYTES - 4, crc);
        let end = begins.saturating_add(body).saturating_add(payload);
        at = end.min(bytes.len());
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let hello = mooseng::pb::Hello {
        cluster: vec![7; 16].into(),
        role: 3,
        node: 4,
        incarnation: 5,
        expect_role: 1,
        expect_node: 2,
    };
    let hello = encode(Head::bare(Kind::Hello, 0), &hello.encode_to_vec());
    let refusal = encode(Head { code: 3, ..Head::bare(Kind::Refusal, 9) }, b"not the leader");
    let bare = [Kind::Cancel, Kind::Ping, Kind::Pong].map(|kind| encode(Head::bare(kind, 8), &[]));
    let mut stream = Vec::new();
    for (method, message) in messages::requests() {
        let mut buffer = body_buffer(message.len());
        buffer.put_slice(&message);
        let head = Head { method, deadline_ms: 900, ..Head::bare(Kind::Request, method.into()) };
        let payload = Bytes::from(vec![method as u8; usize::from(method) % 50]);
        stream.extend_from_slice(&finish(buffer, head, std::slice::from_ref(&payload)));
        stream.extend_from_slice(&payload);
    }
    vec![
        with_first(true, 0, &hello),
        with_first(false, 1, &[&hello[..], &refusal].concat()),
        with_first(true, 2, &bare.concat()),
        with_first(true, 1, &stream),
        with_first(false, 2, &stream),
    ]
}
