//! What clients do: append, sync, read; and the terms of those who command.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_in_and_come_back() {
    let (node, pool) = (Node::new(1).await, pool());
    let id = copy_id(5);
    let data = fill(1, 3 * BLOCK_BYTES + 100);
    let reply = append(&pool, &node.address, id, 0, &data, true).await.expect("appended");
    assert_eq!(reply.length, 4 * BLOCK);
    assert_eq!(reply.incarnation, node.server.incarnation().0);
    check(&pool, &node.address, id, &data).await;
    let again = append(&pool, &node.address, id, 0, &data, true).await;
    assert_eq!(again.map(|reply| reply.length), Ok(4 * BLOCK), "a duplicate is done");
    let other = append(&pool, &node.address, id, 0, b"other", false).await;
    assert_eq!(other, Err(RefusalCode::WrongOffset));
    let ahead = append(&pool, &node.address, id, 8 * BLOCK, b"ahead", false).await;
    assert_eq!(ahead, Err(RefusalCode::WrongOffset));
    let state = stat(&pool, &node.address, id, true).await;
    assert!(state.present && !state.corrupt && !state.sealed);
    assert_eq!((state.length, state.durable), (4 * BLOCK, 4 * BLOCK));
    let missing = read(&pool, &node.address, copy_id(6), 0, 1).await;
    assert_eq!(missing.err(), Some(RefusalCode::NoSuchReplica));
    assert!(!stat(&pool, &node.address, copy_id(6), false).await.present);
    node.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_damaged_on_its_way_is_not_taken() {
    let (node, pool) = (Node::new(1).await, pool());
    let id = copy_id(5);
    let request = pb::AppendRequest {
        replica: Some(id.to_pb()),
        crcs: block_crcs(id.chunk, 0, 0, b"what was meant"),
        create: true,
        ..Default::default()
    };
    let sent = Bytes::from_static(b"what was sent.");
    let answer = call::<calls::Append>(&pool, &node.address, request, sent).await;
    assert_eq!(answer.err(), Some(RefusalCode::Corrupt));
    let request = pb::AppendRequest {
        replica: Some(id.to_pb()),
        crcs: block_crcs(id.chunk, 0, 0, b"what was sent."),
        create: true,
        incarnation: node.server.incarnation().0 ^ 1,
        ..Default::default()
    };
    let answer =
        call::<calls::Append>(&pool, &node.address, request, "what was sent.".into()).await;
    assert_eq!(answer.err(), Some(RefusalCode::WrongNode), "meant for another start");
    let nobody = pb::ReadRequest { replica: None, offset: 0, len: 1 };
    let answer = call::<calls::Read>(&pool, &node.address, nobody, Bytes::new()).await;
    assert_eq!(answer.err(), Some(RefusalCode::BadRequest));
    let long = vec![0; config(&[]).limits.append_bytes_max + BLOCK_BYTES];
    let answer = append(&pool, &node.address, id, 0, &long, false).await;
    assert_eq!(answer, Err(RefusalCode::BadRequest));
    let answer = call::<calls::Heartbeat>(&pool, &node.address, Default::default(), Bytes::new());
    assert_eq!(answer.await.err(), Some(RefusalCode::BadRequest), "not a master");
    node.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_under_way_together_find_their_order() {
    let (node, pool) = (Node::new(3).await, pool());
    let id = copy_id(5);
    let data = fill(1, 24 * BLOCK_BYTES);
    let append_at = |block: usize| {
        let piece = data[block * BLOCK_BYTES..][..BLOCK_BYTES].to_vec();
        let (pool, address) = (pool.clone(), node.address.clone());
        async move { append(&pool, &address, id, block as u64 * BLOCK, &piece, true).await }
    };
    // All at once, latest first: each waits for its predecessor.
    let all = futures_util::future::join_all((1..24).rev().chain([0]).map(append_at)).await;
    let done = all.iter().filter(|answer| answer.is_ok()).count();
    assert!(done >= 1, "{all:?}");
    for block in 0..24 {
        append_at(block).await.expect("appended, or a duplicate");
    }
    check(&pool, &node.address, id, &data).await;
    assert_eq!(node.server.metrics().pending, 0);
    node.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_is_for_the_start_that_acknowledged() {
    let (node, pool) = (Node::new(1).await, pool());
    let id = copy_id(5);
    let data = fill(1, BLOCK_BYTES);
    let old = append(&pool, &node.address, id, 0, &data, false).await.expect("appended");
    let sync = |address: &str, up_to, incarnation| {
        let request = pb::SyncRequest { replica: Some(id.to_pb()), up_to, incarnation };
        let (pool, address) = (pool.clone(), address.to_owned());
        async move {
            let answer = call::<calls::Sync>(&pool, &address, request, Bytes::new()).await;
            answer.map(|(reply, _)| reply.durable)
        }
    };
    let (address, boot) = (node.address.clone(), old.incarnation);
    assert_eq!(sync(&address, BLOCK, boot).await, Ok(BLOCK));
    assert_eq!(sync(&address, 2 * BLOCK, boot).await, Err(RefusalCode::NotDurable));
    assert_eq!(sync(&address, BLOCK, 0).await, Err(RefusalCode::WrongIncarnation));
    let node = node.restarted().await;
    let address = node.address.clone();
    assert_eq!(sync(&address, BLOCK, boot).await, Err(RefusalCode::WrongIncarnation));
    check(&pool, &address, id, &data).await;
    let new = append(&pool, &address, id, 0, &data, true).await.expect("a duplicate");
    assert_ne!(new.incarnation, boot);
    assert_eq!(sync(&address, BLOCK, new.incarnation).await, Ok(BLOCK));
    node.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_terms_command_nothing() {
    let (node, pool) = (Node::new(1).await, pool());
    let (id, data) = (copy_id(5), fill(1, 2 * BLOCK_BYTES));
    append(&pool, &node.address, id, 0, &data, true).await.expect("appended");
    let delete = |address: &str, term| {
        let request = pb::DeleteRequest { replica: Some(id.to_pb()), term };
        let (pool, address) = (pool.clone(), address.to_owned());
        async move { call::<calls::Delete>(&pool, &address, request, Bytes::new()).await.err() }
    };
    assert_eq!(seal(&pool, &node.address, id, 3 * BLOCK, 7).await, Ok(2 * BLOCK), "too short");
    assert!(!stat(&pool, &node.address, id, false).await.sealed);
    assert_eq!(seal(&pool, &node.address, copy_id(6), BLOCK, 7).await, Ok(0), "not here");
    assert_eq!(seal(&pool, &node.address, id, BLOCK, 6).await, Err(RefusalCode::StaleTerm));
    assert_eq!(seal(&pool, &node.address, id, BLOCK, 7).await, Ok(BLOCK));
    assert_eq!(delete(&node.address, 6).await, Some(RefusalCode::StaleTerm));
    let rebuild = pb::RebuildRequest { target: Some(id.to_pb()), term: 6, ..Default::default() };
    let answer = call::<calls::Rebuild>(&pool, &node.address, rebuild, Bytes::new()).await;
    assert_eq!(answer.err(), Some(RefusalCode::StaleTerm));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let node = node.restarted().await;
    assert_eq!(delete(&node.address, 6).await, Some(RefusalCode::StaleTerm), "remembered");
    check(&pool, &node.address, id, &data[..BLOCK_BYTES]).await;
    assert_eq!(delete(&node.address, 8).await, None);
    assert_eq!(delete(&node.address, 8).await, None, "again");
    assert!(!stat(&pool, &node.address, id, false).await.present);
    node.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_spread_over_the_disks_and_are_found_again() {
    let (node, pool) = (Node::new(3).await, pool());
    let data = fill(1, 10_000);
    for chunk in 1..=30 {
        append(&pool, &node.address, copy_id(chunk), 0, &data, true).await.expect("appended");
    }
    let used = |node: &Node| -> usize {
        let has = |disk| node.dir.disk(disk).list("chunks").is_ok_and(|names| !names.is_empty());
        ["disk0", "disk1", "disk2"].into_iter().filter(|disk| has(disk)).count()
    };
    assert_eq!(used(&node), 3);
    let node = node.restarted().await;
    for chunk in 1..=30 {
        check(&pool, &node.address, copy_id(chunk), &data).await;
    }
    let Node { dir, server, .. } = node;
    server.stop().await;
    let two = vec![dir.disk("disk0"), dir.disk("disk2")];
    let error = Chunkserver::start(config(&[]), two).await.err().expect("refused").to_string();
    assert!(error.contains("is missing") && error.contains("disk0/superblock"), "{error}");
    let none = Chunkserver::start(config(&[]), vec![]).await.err().expect("refused");
    assert!(none.to_string().contains("data directory"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_and_a_port_in_use_are_refused() {
    let node = Node::new(1).await;
    let again = Chunkserver::start(config(&[]), vec![node.dir.disk("disk0")]).await;
    let error = again.err().expect("refused").to_string();
    assert!(error.contains("in use by a live process"), "{error}");
    let other = TempDir::new();
    let taken = ChunkserverConfig { listen: node.address.clone(), ..config(&[]) };
    let error = Chunkserver::start(taken, vec![other.disk("disk0")]).await.err().expect("refused");
    assert!(error.to_string().contains(&node.address), "{error}");
    node.server.stop().await;
}
