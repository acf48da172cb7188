//! Bytes that a peer should not have sent.

use super::*;
use crate::wire::frame::{FrameError, HEADER_BYTES, body_buffer, finish};
use bytes::BufMut;

/// A frame with lengths that the sender chooses and everything else in order.
fn lying(kind: Kind, method: u16, body_len: u32, payload_len: u32) -> Vec<u8> {
    let head = Head { method, deadline_ms: 1000, ..Head::bare(kind, 77) };
    let mut bytes = encode(head, &[]).to_vec();
    bytes[24..28].copy_from_slice(&body_len.to_le_bytes());
    bytes[28..32].copy_from_slice(&payload_len.to_le_bytes());
    let crc = crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode_all(
    decoder: &mut Decoder,
    mut input: &[u8],
    step: usize,
) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    while !input.is_empty() {
        let mut target = decoder.target();
        let take = step.min(input.len()).min(target.remaining_mut());
        assert!(take > 0, "the decoder always has room");
        target.put_slice(&input[..take]);
        input = &input[take..];
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[test]
fn any_cut_of_the_stream_gives_the_same_frames() {
    let sizes = [(0, 0), (1, 0), (0, 1), (300, 5000), (20_000, 0), (10, 100_000), (9000, 3 << 20)];
    let mut stream = Vec::new();
    for (id, (body, payload)) in sizes.iter().enumerate() {
        let mut buffer = body_buffer(*body);
        buffer.put_bytes(id as u8, *body);
        let payload = Bytes::from((0..*payload).map(|i| ((i * 7) >> 2) as u8).collect::<Vec<_>>());
        let method = if id % 2 == 0 { calls::Append::METHOD } else { calls::RaftAppend::METHOD };
        let head = Head { method, ..Head::bare(Kind::Request, id as u64) };
        stream.extend_from_slice(&finish(buffer, head, std::slice::from_ref(&payload)));
        stream.extend_from_slice(&payload);
    }
    for step in [1, 43, 44, 45, 1000, 32 << 10, 1 << 20, usize::MAX] {
        let mut decoder = Decoder::new(FrameLimits::FULL);
        let frames = decode_all(&mut decoder, &stream, step).unwrap();
        assert!(!decoder.mid_frame());
        let lengths: Vec<_> = frames.iter().map(|f| (f.body.len(), f.payload.len())).collect();
        assert_eq!(lengths, sizes, "step {step}");
        for frame in &frames {
            assert!(frame.body.iter().all(|byte| u64::from(*byte) == frame.id));
            assert!(
                frame.payload.iter().enumerate().all(|(i, byte)| *byte == ((i * 7) >> 2) as u8)
            );
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let payload = Bytes::from_static(b"entries of the log");
    let mut buffer = body_buffer(0);
    buffer.put_slice(b"vote and positions");
    let head = Head { method: calls::RaftAppend::METHOD, ..Head::bare(Kind::Request, 1) };
    let mut bytes = finish(buffer, head, std::slice::from_ref(&payload)).to_vec();
    bytes.extend_from_slice(&payload);
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = Decoder::new(FrameLimits::FULL);
        assert!(decode_all(&mut decoder, &bytes, usize::MAX).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(decode_all(&mut Decoder::new(FrameLimits::FULL), &bytes, 9).unwrap().len(), 1);
}

#[test]
fn claimed_lengths_reserve_little() {
    let full = FrameLimits::FULL;
    let raft = calls::RaftAppend::METHOD;
    let most = lying(Kind::Request, calls::Append::METHOD, full.body as u32, full.payload as u32);
    let mut decoder = Decoder::new(full);
    assert!(decode_all(&mut decoder, &most, usize::MAX).unwrap().is_empty());
    assert!(decoder.target().remaining_mut() <= 1 << 20);
    for (body, payload) in [(u32::MAX, 0), (0, u32::MAX), (full.body as u32 + 1, 0)] {
        let lie = lying(Kind::Request, raft, body, payload);
        let refused = decode_all(&mut Decoder::new(full), &lie, usize::MAX);
        assert!(matches!(refused, Err(FrameError::TooLong(..))), "{refused:?}");
    }
    let bare = decode_all(&mut Decoder::new(full), &lying(Kind::Request, raft, 0, 5), usize::MAX);
    assert_eq!(bare.unwrap_err(), FrameError::PayloadCrc, "log entries travel with a CRC");
}

#[tokio::test]
async fn another_version_is_refused_on_both_sides() {
    let (_server, address, _) = serve().await;
    let mut hello = hello_bytes();
    hello[4] = 9;
    let mut raw = Raw::new(TcpStream::connect(&address).await.unwrap());
    raw.send(&hello).await.unwrap();
    let refusal = raw.receive().await.unwrap();
    assert_eq!((refusal.kind, refusal.code), (Kind::Refusal, RefusalCode::WrongVersion as u16));
    let text = String::from_utf8_lossy(&refusal.body).into_owned();
    assert!(text.contains("version 9") && text.contains("version 1"), "{text}");
    assert!(raw.closes().await);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other = seam::spawn(async move {
        let mut raw = Raw::new(listener.accept().await.unwrap().0);
        raw.receive().await.unwrap();
        raw.send(&hello).await.unwrap();
        raw.receive().await.unwrap()
    });
    let refused = ask(&pool(), &address).await.unwrap_err().to_string();
    assert!(refused.contains("version 9"), "{refused}");
    assert_eq!(other.await.unwrap().code, RefusalCode::WrongVersion as u16);
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_their_connection_only() {
    let (server, address, _) = serve().await;
    let pool = pool();
    ask(&pool, &address).await.unwrap();
    let full = FrameLimits::REQUESTS;
    let bad = [
        lying(Kind::Request, calls::Query::METHOD, u32::MAX, 0),
        lying(Kind::Request, calls::Append::METHOD, 0, u32::MAX),
        lying(Kind::Request, calls::Query::METHOD, full.body as u32 + 1, 0),
        lying(Kind::Hello, 0, 0, 0),
        lying(Kind::Reply, calls::Query::METHOD, 0, 0),
        encode(Head { method: 3, ..Head::bare(Kind::Request, 0) }, &[]).to_vec(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".to_vec(),
        vec![0; 100],
    ];
    for bytes in bad {
        let mut raw = Raw::greeted(&address).await;
        raw.send(&bytes).await.unwrap();
        assert!(raw.closes().await, "{bytes:?}");
        ask(&pool, &address).await.unwrap();
    }
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::greeted(&address).await;
        let claims = (full.body as u32, full.payload as u32);
        raw.send(&lying(Kind::Request, calls::Append::METHOD, claims.0, claims.1)).await.unwrap();
        silent.push(raw);
    }
    ask(&pool, &address).await.unwrap();
    assert_eq!(server.connections(), 21);
}

/// Three peers stop in the middle of the longest request there is: the server holds one of them at a time,
/// and none for long; whoever is honest is served, with short requests at once.
#[tokio::test]
async fn long_requests_are_received_in_turn() {
    let most = FrameLimits::REQUESTS;
    let mut few = Limits::production();
    (few.receive_bytes_max, few.silence_max) = (most.body + most.payload, ms(200));
    let (server, address, _) = serve_with(Arc::new(few)).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::greeted(&address).await;
        let mut bytes = lying(Kind::Request, calls::Append::METHOD, most.body as u32, 2);
        bytes.resize(bytes.len() + 200_000, 7);
        raw.send(&bytes).await.unwrap();
        held.push(raw);
    }
    let pool = pool();
    ask(&pool, &address).await.unwrap();
    let payload = Bytes::from(vec![3; most.payload]);
    let request = pb::AppendRequest { crcs: vec![crc32c(&payload)], ..Default::default() };
    let call = pool.call::<calls::Append>(&address, &request, vec![payload.clone()], LONG);
    assert_eq!(call.await.unwrap().0.length, payload.len() as u64);
    for mut raw in held {
        assert!(raw.closes().await);
    }
    let too_long = vec![payload, Bytes::from_static(b"x")];
    let refused = pool.call::<calls::Append>(&address, &request, too_long, LONG).await;
    assert!(matches!(refused, Err(CallError::NotSent(_))), "{refused:?}");
    assert_eq!(server.connections(), 2);
}

/// A peer of whose long request a byte arrives now and then is not silent, and yet holds the memory only for as long
/// as its caller would wait for the answer.
#[tokio::test]
async fn who_trickles_a_long_request_is_cut_off() {
    let most = FrameLimits::REQUESTS;
    let mut few = Limits::production();
    (few.receive_bytes_max, few.silence_max) = (most.body + most.payload, ms(500));
    let (_server, address, _) = serve_with(Arc::new(few)).await;
    let mut raw = Raw::greeted(&address).await;
    // It says that it waits for 1 s.
    let (body, payload) = (most.body as u32, most.payload as u32);
    raw.send(&lying(Kind::Request, calls::Append::METHOD, body, payload)).await.unwrap();
    let began = seam::now();
    let trickle = async {
        while raw.send(&[7]).await.is_ok() && seam::now().since(began) < ms(6000) {
            tokio::time::sleep(ms(100)).await;
        }
    };
    let payload = Bytes::from(vec![3; most.payload]);
    let request = pb::AppendRequest { crcs: vec![crc32c(&payload)], ..Default::default() };
    let (pool, pieces) = (pool(), vec![payload]);
    let honest = async {
        tokio::time::sleep(ms(200)).await;
        let answer = pool.call::<calls::Append>(&address, &request, pieces, LONG).await;
        (answer.is_ok(), seam::now().since(began))
    };
    let (_, (answered, took)) = tokio::join!(trickle, honest);
    assert!(answered && took >= ms(1000) && took < ms(4000), "{answered} after {took:?}");
    assert!(raw.closes().await);
}

/// What a handler still holds counts too: with memory for one long request there is one at a time, answers
/// included, while short ones pass.
#[tokio::test]
async fn long_requests_hold_their_memory_until_they_are_answered() {
    let most = FrameLimits::REQUESTS;
    let mut few = Limits::production();
    few.receive_bytes_max = most.body + most.payload;
    let (_server, address, echo) = serve_with(Arc::new(few)).await;
    let payload = Bytes::from(vec![3; most.payload]);
    let request = pb::KeepaliveRequest { session: 200 };
    let pools = [pool(), pool(), pool()];
    let long = |of: &Arc<Pool>| {
        let (of, address, payload) = (of.clone(), address.clone(), payload.clone());
        async move { of.call::<calls::Keepalive>(&address, &request, vec![payload], LONG).await }
    };
    let (one, other) = tokio::join!(long(&pools[0]), long(&pools[1]));
    assert!(one.is_ok() && other.is_ok());
    assert_eq!(echo.begun.load(Ordering::SeqCst), 2);
    assert_eq!(echo.running_max.load(Ordering::SeqCst), 1);
    let (_, asked) = tokio::join!(long(&pools[0]), ask(&pools[2], &address));
    asked.unwrap();
}

/// A handler that gives the bytes to somebody with a bound of his own frees their memory, however long it takes.
#[tokio::test]
async fn memory_that_is_passed_on_is_free_for_others() {
    let most = FrameLimits::REQUESTS;
    let mut few = Limits::production();
    few.receive_bytes_max = most.body + most.payload;
    let (_server, address, echo) = serve_with(Arc::new(few)).await;
    let (one, other, payload) = (pool(), pool(), Bytes::from(vec![3; most.payload]));
    let request = pb::StatRequest::default();
    let stuck = one.call::<calls::Stat>(&address, &request, vec![payload.clone()], ms(5000));
    let request = pb::AppendRequest { crcs: vec![crc32c(&payload)], ..Default::default() };
    let (stuck, ()) = tokio::join!(stuck, async {
        while echo.begun.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(ms(10)).await;
        }
        let call = other.call::<calls::Append>(&address, &request, vec![payload], ms(2000));
        assert!(call.await.is_ok());
    });
    assert_eq!(stuck.unwrap_err(), CallError::Deadline);
}

#[tokio::test]
async fn requests_that_are_not_served_are_refused() {
    let (_server, address, _) = serve().await;
    let mut raw = Raw::greeted(&address).await;
    for (id, method) in [(1, 9999), (2, calls::Seal::METHOD)] {
        let head = Head { method, deadline_ms: 1000, ..Head::bare(Kind::Request, id) };
        raw.send(&encode(head, b"?")).await.unwrap();
        let refusal = raw.receive().await.unwrap();
        assert_eq!((refusal.kind, refusal.id), (Kind::Refusal, id));
        assert_eq!(refusal.code, RefusalCode::BadRequest as u16);
    }
    let head = Head {
        method: calls::Keepalive::METHOD,
        deadline_ms: 1000,
        ..Head::bare(Kind::Request, 3)
    };
    raw.send(&encode(head, &[0xff; 30])).await.unwrap();
    assert_eq!(raw.receive().await.unwrap().code, RefusalCode::BadRequest as u16);
}

/// 10 MB of random bytes, at once before the handshake and in small frames' clothing after it.
#[tokio::test]
async fn random_bytes_do_no_harm() {
    let (server, address, _) = serve().await;
    let pool = pool();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = vec![0u8; 10_000_000];
    for byte in &mut noise {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    let mut raw = Raw::new(TcpStream::connect(&address).await.unwrap());
    let _ = raw.send(&noise).await;
    ask(&pool, &address).await.unwrap();
    for round in 0..200 {
        let mut raw = Raw::greeted(&address).await;
        let mut bytes = lying(Kind::Request, 3, 50_000, 0);
        bytes.extend_from_slice(&noise[round * 50_000..][..50_000]);
        if round % 2 == 0 {
            bytes[round % HEADER_BYTES] ^= 1;
        }
        let _ = raw.send(&bytes).await;
        ask(&pool, &address).await.unwrap();
        assert!(raw.closes().await, "round {round}");
    }
    tokio::time::sleep(ms(100)).await;
    assert_eq!(server.connections(), 1);
}
