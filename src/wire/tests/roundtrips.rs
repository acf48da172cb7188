//! What works, works: calls, payloads, many at once, deadlines, identities.

use super::*;
use crate::limits::FRAME_PAYLOAD_BYTES_MAX;

#[tokio::test]
async fn a_call_and_its_payload_come_back() {
    let (server, address, _) = serve().await;
    let pool = pool();
    let payload = vec![Bytes::from_static(b"one "), Bytes::new(), Bytes::from_static(b"two")];
    let (reply, back) = pool
        .call::<calls::Leader>(&address, &pb::LeaderRequest {}, payload, ms(1500))
        .await
        .unwrap();
    assert_eq!(&back[..], b"one two");
    assert_eq!(reply.leader, 3, "the handler knows who calls");
    assert!((1..=1500).contains(&reply.term), "the deadline travelled: {} ms", reply.term);
    assert_eq!(pool.identify(&address, LONG).await.unwrap().identity, who(Role::Master, 5));
    server.stop().await;
}

#[tokio::test]
async fn many_calls_share_one_connection_and_finish_in_any_order() {
    let (server, address, echo) = serve().await;
    let pool = pool();
    let calls = (0..300u64).map(|i| {
        let (pool, address) = (pool.clone(), address.clone());
        seam::spawn(async move {
            let sleep_ms = i * 7919 % 61;
            assert_eq!(keepalive(&pool, &address, sleep_ms, LONG).await, Ok(sleep_ms));
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert_eq!(server.connections(), 1);
    assert_eq!(echo.ended.load(Ordering::SeqCst), 300);
    assert!(echo.running_max.load(Ordering::SeqCst) > 10, "calls run side by side");
}

#[tokio::test]
async fn payloads_up_to_the_limit_arrive_whole() {
    let (_server, address, _) = serve().await;
    let pool = pool();
    let max = crate::limits::REQUEST_PAYLOAD_BYTES_MAX;
    for len in [0, 1, 4096, 40_000, 1 << 20, (3 << 20) + 5, max, FRAME_PAYLOAD_BYTES_MAX] {
        let data: Vec<u8> = (0..len.min(max)).map(|i| ((i * 31) >> 3) as u8).collect();
        let request = pb::AppendRequest { crcs: vec![crc32c(&data)], ..Default::default() };
        let pieces: Vec<Bytes> = data.chunks(300_001).map(Bytes::copy_from_slice).collect();
        let (reply, _) =
            pool.call::<calls::Append>(&address, &request, pieces, LONG).await.unwrap();
        assert_eq!(reply.length, data.len() as u64);
        let request = pb::ReadRequest { len: len as u64, ..Default::default() };
        let (_, back) = pool.call::<calls::Read>(&address, &request, vec![], LONG).await.unwrap();
        assert!(back.len() == len && back.iter().all(|byte| *byte == 0x5a));
    }
    let request = pb::AppendRequest::default();
    let huge = vec![Bytes::from(vec![0; max]), Bytes::from_static(b"!")];
    let refused = pool.call::<calls::Append>(&address, &request, huge, LONG).await;
    assert!(matches!(refused, Err(CallError::NotSent(_))), "{refused:?}");
}

#[tokio::test]
async fn a_reply_that_is_too_long_becomes_a_refusal() {
    let (_server, address, _) = serve().await;
    let request = pb::ReadRequest { len: 17 << 20, ..Default::default() };
    let refused = pool().call::<calls::Read>(&address, &request, vec![], LONG).await;
    let Err(CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, RefusalCode::Internal);
}

#[tokio::test]
async fn every_refusal_code_travels() {
    let (_server, address, _) = serve().await;
    let pool = pool();
    for code in RefusalCode::ALL {
        let request = pb::CloseSessionRequest { session: *code as u64 };
        let refused = pool.call::<calls::CloseSession>(&address, &request, vec![], LONG).await;
        let expected = Refusal::new(*code, format!("code {}", *code as u16));
        assert_eq!(refused.unwrap_err(), CallError::Refused(expected));
    }
    let request = pb::SealRequest::default();
    let refused = pool.call::<calls::Seal>(&address, &request, vec![], LONG).await;
    assert!(refused.unwrap_err().to_string().contains("Seal (83) is not served here"));
}

#[tokio::test]
async fn a_deadline_ends_a_call_and_spares_the_connection() {
    let (server, address, echo) = serve().await;
    let pool = pool();
    ask(&pool, &address).await.unwrap();
    let began = seam::now();
    let request = pb::StatRequest::default();
    let late = pool.call::<calls::Stat>(&address, &request, vec![], ms(200)).await;
    assert_eq!(late.unwrap_err(), CallError::Deadline);
    let took = seam::now().since(began);
    assert!(took >= ms(199) && took < ms(2000), "{took:?}");
    ask(&pool, &address).await.unwrap();
    assert_eq!(server.connections(), 1);
    assert_eq!(echo.running.load(Ordering::SeqCst), 1, "the handler was not dropped");
}

#[tokio::test]
async fn a_dropped_call_is_cancelled() {
    let (_server, address, echo) = serve().await;
    let pool = pool();
    let before = crate::marks::hits().get("call cancelled").copied().unwrap_or(0);
    let call = keepalive(&pool, &address, 300, LONG);
    assert!(tokio::time::timeout(ms(100), call).await.is_err());
    ask(&pool, &address).await.unwrap();
    assert!(crate::marks::hits()["call cancelled"] > before);
    tokio::time::sleep(ms(500)).await;
    assert_eq!(echo.running.load(Ordering::SeqCst), 0, "it ran to its end");
    ask(&pool, &address).await.unwrap();
}

#[tokio::test]
async fn clusters_and_nodes_are_told_apart() {
    let (server, address, _) = serve().await;
    let stranger = Identity { cluster: Some(Uuid([8; 16])), ..who(Role::Client, 3) };
    let refused = ask(&Pool::new(stranger, limits()), &address).await.unwrap_err();
    assert!(matches!(&refused, CallError::NotSent(why) if why.contains("cluster")), "{refused}");

    let newcomer = Identity { cluster: None, ..who(Role::Chunkserver, 0) };
    let newcomer = Pool::new(newcomer, limits());
    let peer = newcomer.identify(&address, LONG).await.unwrap();
    assert_eq!(peer.identity.cluster, Some(CLUSTER), "who knows no cluster learns it");
    ask(&newcomer, &address).await.unwrap();

    let thirteen = Identity { incarnation: 13, ..who(Role::Client, 3) };
    let refused = ask(&Pool::new(thirteen, limits()), &address).await.unwrap_err();
    assert!(refused.to_string().contains("thirteen is not welcome"), "{refused}");

    let pool = pool();
    pool.expect(&address, Role::Master, 5);
    ask(&pool, &address).await.unwrap();
    for (role, node) in [(Role::Master, 6), (Role::Chunkserver, 5)] {
        pool.expect(&address, role, node);
        let refused = ask(&pool, &address).await.unwrap_err();
        assert!(matches!(&refused, CallError::NotSent(why) if why.contains("wrong node")));
    }
    server.set_identity(who(Role::Chunkserver, 5));
    tokio::time::sleep(limits().retry_pause_max).await;
    ask(&pool, &address).await.unwrap();
}

#[tokio::test]
async fn a_new_identity_is_told_on_new_connections() {
    let (_server, address, _) = serve().await;
    let pool = pool();
    assert_eq!(ask(&pool, &address).await.unwrap().leader, 3);
    let slow = {
        let (pool, address) = (pool.clone(), address.clone());
        seam::spawn(async move { keepalive(&pool, &address, 1200, LONG).await })
    };
    tokio::time::sleep(ms(50)).await;
    pool.set_identity(who(Role::Client, 4));
    assert_eq!(ask(&pool, &address).await.unwrap().leader, 4);
    assert_eq!(slow.await.unwrap(), Ok(1200), "calls under way end in peace");
}

/// docs/PROTOCOL.md lists every call and refusal by the number that is on the wire.
#[test]
fn the_protocol_is_documented() {
    let page = include_str!("../../../docs/PROTOCOL.md");
    for (method, name) in calls::all() {
        assert!(page.contains(&format!("| {method} | {name} |")), "{name}");
    }
    for code in RefusalCode::ALL {
        assert!(page.contains(&format!("| {} | {code:?} |", *code as u16)), "{code:?}");
    }
    let (version, header) = (frame::VERSION, frame::HEADER_BYTES);
    assert!(page.contains(&format!("The version is {version}.")));
    assert!(page.contains(&format!("a header of {header} bytes")));
}
