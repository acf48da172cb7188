//! Peers that go, stall, or are too many.

use super::*;

#[tokio::test]
async fn a_dead_address_fails_fast_and_certainly() {
    let (server, address, _) = serve().await;
    let pool = pool();
    ask(&pool, &address).await.unwrap();
    server.stop().await;
    tokio::time::sleep(ms(50)).await;
    let began = seam::now();
    for _ in 0..50 {
        let error = ask(&pool, &address).await.unwrap_err();
        assert!(!error.outcome_unknown(), "{error}");
    }
    assert!(seam::now().since(began) < ms(1000), "failures are remembered for a while");

    let echo = Arc::new(Echo::default());
    let server = Server::start(&address, who(Role::Master, 5), limits(), echo).await;
    let server = server.expect("the port is free again");
    tokio::time::sleep(limits().retry_pause_max).await;
    ask(&pool, &address).await.expect("and forgotten");
    server.stop().await;
}

#[tokio::test]
async fn calls_under_way_are_lost_with_their_connection() {
    let (address, accept) = raw_server().await;
    let pool = pool();
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (pool, address) = (pool.clone(), address.clone());
            seam::spawn(async move { ask(&pool, &address).await })
        })
        .collect();
    let mut raw = accept.await;
    for _ in 0..10 {
        assert_eq!(raw.receive().await.unwrap().kind, Kind::Request);
    }
    drop(raw);
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Lost(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up() {
    let (address, accept) = raw_server().await;
    let pool = pool();
    let call = {
        let (pool, address) = (pool.clone(), address.clone());
        seam::spawn(async move { ask(&pool, &address).await })
    };
    let mut raw = accept.await;
    assert_eq!(raw.receive().await.unwrap().kind, Kind::Request);
    let began = seam::now();
    assert_eq!(raw.receive().await.unwrap().kind, Kind::Ping, "it is asked before");
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Lost(why) if why.contains("silent")), "{error:?}");
    let took = seam::now().since(began);
    assert!(took < limits().silence_max + limits().ping_after * 4, "{took:?}");
    assert!(raw.closes().await);
}

#[tokio::test]
async fn pings_keep_a_slow_call_alive() {
    let (_server, address, _) = serve().await;
    let pool = pool();
    let time = limits().silence_max + ms(1500);
    assert_eq!(
        keepalive(&pool, &address, time.as_millis() as u64, LONG).await,
        Ok(time.as_millis() as u64)
    );
}

/// Its pings wait behind what the server does not read yet: for memory, or because handlers enough are under way.
#[tokio::test]
async fn who_is_held_back_does_not_take_the_server_for_dead() {
    let most = FrameLimits::REQUESTS;
    let mut few = Limits::production();
    (few.receive_bytes_max, few.requests_in_flight_max) = (most.body + most.payload, 8);
    let (_server, address, echo) = serve_with(Arc::new(few)).await;
    let time = limits().silence_max + ms(1500);
    let payload = Bytes::from(vec![3; most.payload]);
    let long = |session: u64| {
        let (pool, address, payload) = (pool(), address.clone(), vec![payload.clone()]);
        async move {
            let request = pb::KeepaliveRequest { session };
            pool.call::<calls::Keepalive>(&address, &request, payload, LONG).await.map(|_| ())
        }
    };
    let (first, second) = tokio::join!(long(time.as_millis() as u64), async {
        while echo.begun.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(ms(10)).await;
        }
        long(0).await
    });
    assert_eq!((first, second), (Ok(()), Ok(())));

    let pool = pool();
    let many: Vec<_> = (0..12)
        .map(|_| {
            let (pool, address) = (pool.clone(), address.clone());
            let time = time.as_millis() as u64;
            seam::spawn(async move { keepalive(&pool, &address, time, LONG).await })
        })
        .collect();
    for call in many {
        assert_eq!(call.await.unwrap(), Ok(time.as_millis() as u64));
    }
}

#[tokio::test]
async fn who_accepts_without_a_hello_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let began = seam::now();
    let error = ask(&pool(), &address).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(_)), "{error:?}");
    let took = seam::now().since(began);
    assert!(took < limits().connect_deadline + ms(1000), "{took:?}");

    let (_server, address, _) = serve().await;
    let mut raw = Raw::new(TcpStream::connect(&address).await.unwrap());
    assert!(raw.closes().await, "the server does not wait either");
    let mut raw = Raw::new(TcpStream::connect(&address).await.unwrap());
    raw.send(&hello_bytes()[..20]).await.unwrap();
    assert!(raw.closes().await, "nor for the rest of a hello");
    let mut raw = Raw::new(TcpStream::connect(&address).await.unwrap());
    raw.send(&request::<calls::Leader>(1, &pb::LeaderRequest {})).await.unwrap();
    assert_eq!(raw.receive().await.unwrap().kind, Kind::Refusal, "no calls without a hello");
    assert!(raw.closes().await);
}

#[tokio::test]
async fn calls_in_flight_are_bounded_by_back_pressure() {
    let few = Arc::new(Limits { requests_in_flight_max: 8, ..Limits::production() });
    let (_server, address, echo) = serve_with(few.clone()).await;
    let mut raw = Raw::greeted(&address).await;
    for id in 1..=100 {
        let message = pb::KeepaliveRequest { session: 20 };
        raw.send(&request::<calls::Keepalive>(id, &message)).await.unwrap();
    }
    for _ in 0..100 {
        assert_eq!(raw.receive().await.unwrap().kind, Kind::Reply);
    }
    assert_eq!(echo.running_max.load(Ordering::SeqCst), 8);

    // The pool holds back by itself, and says so when the time is over.
    let pool = Pool::new(who(Role::Client, 3), few);
    let stuck: Vec<_> = (0..8)
        .map(|_| {
            let (pool, address) = (pool.clone(), address.clone());
            seam::spawn(async move { keepalive(&pool, &address, 600, LONG).await })
        })
        .collect();
    tokio::time::sleep(ms(100)).await;
    let error = keepalive(&pool, &address, 0, ms(100)).await.unwrap_err();
    assert!(matches!(&error, CallError::NotSent(why) if why.contains("too many")), "{error:?}");
    for call in stuck {
        assert_eq!(call.await.unwrap(), Ok(600));
    }
}

#[tokio::test]
async fn connections_are_bounded() {
    let few = Arc::new(Limits { connections_max: 3, ..Limits::production() });
    let (server, address, _) = serve_with(few).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(Raw::greeted(&address).await);
    }
    let mut fourth = Raw::new(TcpStream::connect(&address).await.unwrap());
    assert!(fourth.closes().await);
    assert_eq!(server.connections(), 3);
    open.pop();
    tokio::time::sleep(ms(100)).await;
    Raw::greeted(&address).await;
}

#[tokio::test]
async fn a_stopping_server_lets_handlers_finish() {
    let (server, address, echo) = serve().await;
    let pool = pool();
    let calls = [100, 60_000].map(|sleep_ms| {
        let (pool, address) = (pool.clone(), address.clone());
        seam::spawn(async move { keepalive(&pool, &address, sleep_ms, LONG).await })
    });
    tokio::time::sleep(ms(50)).await;
    assert_eq!(echo.running.load(Ordering::SeqCst), 2);
    let began = seam::now();
    server.stop().await;
    assert!(seam::now().since(began) < limits().drain_max + ms(1000));
    let [short, long] = calls;
    assert_eq!(short.await.unwrap(), Ok(100));
    assert!(matches!(long.await.unwrap(), Err(CallError::Lost(_))));
    assert_eq!(echo.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn handlers_run_on_when_their_caller_has_gone() {
    let (_server, address, echo) = serve().await;
    let mut raw = Raw::greeted(&address).await;
    let message = pb::KeepaliveRequest { session: 300 };
    raw.send(&request::<calls::Keepalive>(1, &message)).await.unwrap();
    tokio::time::sleep(ms(50)).await;
    drop(raw);
    tokio::time::sleep(ms(600)).await;
    assert_eq!(echo.ended.load(Ordering::SeqCst), 1);
    assert_eq!(echo.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_handler_is_dropped_long_after_its_deadline() {
    let hasty = Limits { handler_grace: ms(100), ..Limits::production() };
    let (_server, address, echo) = serve_with(Arc::new(hasty)).await;
    let request = pb::StatRequest::default();
    let late = pool().call::<calls::Stat>(&address, &request, vec![], ms(100)).await;
    assert_eq!(late.unwrap_err(), CallError::Deadline);
    tokio::time::sleep(ms(400)).await;
    assert_eq!(echo.begun.load(Ordering::SeqCst), 1);
    assert_eq!(echo.running.load(Ordering::SeqCst), 0);
}

/// Madsim's sockets swallow any amount, so only real ones can be full.
#[cfg(not(feature = "sim"))]
#[tokio::test]
async fn a_peer_that_does_not_read_stops_being_served() {
    let hasty = Limits { write_stall_max: ms(1500), ..Limits::production() };
    let (server, address, echo) = serve_with(Arc::new(hasty)).await;
    let mut raw = Raw::greeted(&address).await;
    let message = pb::ReadRequest { len: 1 << 20, ..Default::default() };
    for id in 1..=200 {
        raw.send(&request::<calls::Read>(id, &message)).await.unwrap();
    }
    tokio::time::sleep(ms(500)).await;
    let begun = echo.begun.load(Ordering::SeqCst);
    assert!(begun < 40, "{begun} answers of 1 MiB wait for a peer that reads none");
    ask(&pool(), &address).await.unwrap();
    tokio::time::sleep(ms(4000)).await;
    assert_eq!(server.connections(), 0, "cut off in the end");
}

/// What had not begun to leave when its time was over is taken back, and certainly not executed.
#[cfg(not(feature = "sim"))]
#[tokio::test]
async fn calls_into_a_full_socket_are_not_sent() {
    let (address, accept) = raw_server().await;
    let pool = pool();
    // Together more than the sockets' buffers hold.
    let mut stalled = Vec::new();
    for _ in 0..5 {
        let (pool, address) = (pool.clone(), address.clone());
        stalled.push(seam::spawn(async move {
            let payload = vec![Bytes::from(vec![1; 4 << 20])];
            let request = pb::AppendRequest::default();
            pool.call::<calls::Append>(&address, &request, payload, ms(900)).await.map(|_| ())
        }));
    }
    let raw = accept.await;
    tokio::time::sleep(ms(200)).await;
    let request = pb::AppendRequest::default();
    let behind = pool.call::<calls::Append>(&address, &request, vec![], ms(200)).await;
    assert!(matches!(behind, Err(CallError::NotSent(_))), "{behind:?}");
    let mut ended = Vec::new();
    for call in stalled {
        ended.push(call.await.unwrap());
    }
    assert!(ended.contains(&Err(CallError::Deadline)), "part of one has left: {ended:?}");
    drop(raw);
}
