//! Replicas made from others, good and bad.

use super::*;

async fn rebuild(
    pool: &Arc<Pool>,
    address: &str,
    target: ReplicaId,
    layout: Layout,
    sealed_len: u64,
    sources: &[(ReplicaId, &str)],
) -> Result<pb::RebuildReply, RefusalCode> {
    let source = |(id, address): &(ReplicaId, &str)| pb::RebuildSource {
        replica: Some(id.to_pb()),
        address: (*address).to_owned(),
    };
    let request = pb::RebuildRequest {
        target: Some(target.to_pb()),
        layout: Some(layout.into()),
        sealed_len,
        sources: sources.iter().map(source).collect(),
        term: 5,
    };
    call::<calls::Rebuild>(pool, address, request, Bytes::new()).await.map(|(reply, _)| reply)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_made_from_the_good_one() {
    let pool = pool();
    let (one, two, new) = (Node::new(1).await, Node::new(1).await, Node::new(2).await);
    let id = copy_id(5);
    let layout = Layout::copies(2).expect("a layout");
    let other = ReplicaId { shard: 1, ..id };
    let target = ReplicaId { generation: Generation(9), shard: 1, ..id };
    let data = fill(1, (5 << 20) + 12 * BLOCK_BYTES + 1);
    place(&pool, &one, id, &data).await;
    place(&pool, &two, other, &data).await;
    one.rot(id, 3 << 20);
    let sources = [(id, one.address.as_str()), (other, two.address.as_str())];
    let sealed_len = data.len() as u64;
    let length = layout.shard_len(sealed_len);
    let reply = rebuild(&pool, &new.address, target, layout, sealed_len, &sources).await;
    let reply = reply.expect("rebuilt");
    assert_eq!((reply.length, reply.corrupt), (length, vec![id.to_pb()]));
    check(&pool, &new.address, target, &data).await;
    let state = stat(&pool, &new.address, target, true).await;
    assert!(state.sealed && !state.corrupt && state.durable == length);
    let again = rebuild(&pool, &new.address, target, layout, sealed_len, &sources).await;
    assert_eq!(again.expect("done already").corrupt, [], "nobody was asked again");
    assert_eq!(new.server.metrics().rebuilds, 1);
    let bad = rebuild(&pool, &new.address, copy_id(5), layout, sealed_len, &sources[..1]).await;
    let bad = bad.expect("answered with who is to blame");
    assert_eq!((bad.length, bad.corrupt), (0, vec![id.to_pb()]));
    assert!(!stat(&pool, &new.address, copy_id(5), false).await.present, "nothing is left");
    let new = new.restarted().await;
    check(&pool, &new.address, target, &data).await;
    for node in [one, two, new] {
        node.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_shard_of_4_and_2_is_rebuilt_from_degraded_sources() {
    let pool = pool();
    let layout: Layout = "4+2".parse().expect("a layout");
    let mut nodes = Vec::new();
    for _ in 0..layout.shards() {
        nodes.push(Node::new(1).await);
    }
    let spare = Node::new(1).await;
    let logical = fill(2, 9 * 4 * CELL_BYTES);
    let shards = shards_of(layout, &logical);
    let id_of = |shard: usize| ReplicaId { shard: shard as u8, data_shards: 4, ..copy_id(77) };
    for (shard, data) in shards.iter().enumerate() {
        place(&pool, &nodes[shard], id_of(shard), data).await;
    }
    for (lost, expected) in shards.iter().enumerate() {
        let target = ReplicaId { generation: Generation(20 + lost as u64), ..id_of(lost) };
        // One further shard is on a server that is not there.
        let silent = (lost + 1) % layout.shards();
        let address = |shard: usize| match shard == silent {
            true => "127.0.0.1:1",
            false => nodes[shard].address.as_str(),
        };
        let sources: Vec<_> = (0..layout.shards())
            .filter(|shard| *shard != lost)
            .map(|shard| (id_of(shard), address(shard)))
            .collect();
        let len = logical.len() as u64;
        let reply = rebuild(&pool, &spare.address, target, layout, len, &sources).await;
        let reply = reply.expect("rebuilt");
        assert_eq!((reply.length, reply.corrupt), (layout.shard_len(len), vec![]), "{lost}");
        check(&pool, &spare.address, target, expected).await;
    }
    // Two shards rotten in the middle: found on the way, replaced, and named; three are one too many.
    let sources: Vec<_> =
        (0..6).map(|shard| (id_of(shard), nodes[shard].address.as_str())).collect();
    let len = logical.len() as u64;
    let fresh = |generation| ReplicaId { generation: Generation(generation), ..id_of(5) };
    nodes[0].rot(id_of(0), 5 * CELL_BYTES as u64);
    nodes[3].rot(id_of(3), 7 * CELL_BYTES as u64 + 9);
    let reply = rebuild(&pool, &spare.address, fresh(40), layout, len, &sources).await;
    assert_eq!(reply.expect("rebuilt").corrupt, [id_of(0).to_pb(), id_of(3).to_pb()]);
    check(&pool, &spare.address, fresh(40), &shards[5]).await;
    nodes[4].rot(id_of(4), 0);
    let reply = rebuild(&pool, &spare.address, fresh(41), layout, len, &sources).await;
    let reply = reply.expect("answered");
    assert_eq!((reply.length, reply.corrupt.len()), (0, 3), "never wrong bytes");
    let refused = rebuild(&pool, &spare.address, fresh(42), layout, len, &sources[1..3]).await;
    assert_eq!(refused, Err(RefusalCode::Corrupt), "two sources are no four");
    for node in nodes {
        node.server.stop().await;
    }
    spare.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_make_no_sense_are_refused() {
    let (node, pool) = (Node::new(1).await, pool());
    let layout: Layout = "4+2".parse().expect("a layout");
    let id = ReplicaId { shard: 1, data_shards: 4, ..copy_id(5) };
    let here = node.address.as_str();
    let bad = Err(RefusalCode::BadRequest);
    let other_chunk = ReplicaId { chunk: ChunkId(6), shard: 2, ..id };
    let other_layout = ReplicaId { data_shards: 3, ..id };
    let beyond = ReplicaId { shard: 6, ..id };
    for (target, source) in
        [(id, other_chunk), (id, other_layout), (other_layout, id), (beyond, id)]
    {
        let answer = rebuild(&pool, here, target, layout, 1, &[(source, here)]).await;
        assert_eq!(answer, bad, "{target:?} {source:?}");
    }
    let empty = rebuild(&pool, here, id, layout, 0, &[]).await;
    assert_eq!(empty, Err(RefusalCode::Corrupt), "no sources");
    node.server.stop().await;
}
