//! Messages: of every call, of the log, and in the records on disks. What is decoded and encoded again is the same
//! message.

use super::bytes::{set_u32, u32_at};
use super::{split, with_first};
use mooseng::checksum::crc32c_parts;
use mooseng::codec::{HEADER_BYTES, decode_record, encode_record, kind};
use mooseng::pb;
use mooseng::wire::calls::{self, Call};
use mooseng::wire::frame::Kind;
use prost::Message;

/// Decodes; checks that nothing is lost on the way back.
fn look<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    let again = message.encode_to_vec();
    assert_eq!(again.len(), message.encoded_len());
    assert!(M::decode(&again[..]).is_ok_and(|decoded| decoded == message), "{message:?}");
}

type Look = fn(&[u8]);

macro_rules! of_calls {
    ($($call:ident),* $(,)?) => {
        /// Request and reply of each call.
        const CALLS: &[(u16, Look, Look)] = &[$((
            calls::$call::METHOD,
            look::<<calls::$call as Call>::Request>,
            look::<<calls::$call as Call>::Reply>,
        )),*];
    };
}

of_calls!(
    OpenSession,
    SubmitBatch,
    Query,
    Keepalive,
    CloseSession,
    OpenChunk,
    ReportChunk,
    RaftVote,
    RaftAppend,
    RaftSnapshot,
    Leader,
    Join,
    Admin,
    StandForElection,
    Register,
    Heartbeat,
    Report,
    Append,
    Sync,
    Read,
    Seal,
    Delete,
    Rebuild,
    Stat,
    Punch,
);

/// Messages that stand alone: a hello, what entries of the log hold, and what is on disks.
const OTHERS: &[Look] = &[
    look::<pb::Hello>,
    look::<pb::Command>,
    look::<pb::RaftMembership>,
    look::<pb::CheckpointMeta>,
    look::<pb::MasterSuperblock>,
    look::<pb::ChunkDiskSuperblock>,
    look::<pb::ReplicaHeader>,
    look::<pb::TableFileHead>,
    look::<pb::HighestTerm>,
];

/// Message number, then its bytes.
pub(super) fn run(input: &[u8]) {
    let [which, message @ ..] = input else { return };
    let which = usize::from(*which) % (2 * CALLS.len() + OTHERS.len());
    let look = match CALLS.get(which / 2) {
        Some((_, request, _)) if which.is_multiple_of(2) => request,
        Some((_, _, reply)) => reply,
        None => &OTHERS[which - 2 * CALLS.len()],
    };
    look(message);
}

/// The message that a frame of this kind and method carries.
pub(super) fn of_frame(kind: Kind, method: u16, body: &[u8]) {
    let call = CALLS.iter().find(|(number, ..)| *number == method);
    match (kind, call) {
        (Kind::Request, Some((_, request, _))) => request(body),
        (Kind::Reply, Some((_, _, reply))) => reply(body),
        (Kind::Hello, _) => look::<pb::Hello>(body),
        _ => {}
    }
}

/// Some requests with their methods.
pub(super) fn requests() -> Vec<(u16, Vec<u8>)> {
    let replica = pb::ReplicaId { chunk: 3, r#gen: 7, shard: 1, data_shards: 4 };
    let some = Some(replica);
    let append = pb::AppendRequest { replica: some, crcs: vec![1, 2], ..Default::default() };
    let (vote, id) = (
        pb::RaftVote { term: 3, node: 2, committed: true },
        pb::RaftLogId { term: 2, node: 1, index: 9 },
    );
    let raft = pb::RaftAppendRequest {
        vote: Some(vote),
        prev: Some(id),
        heads: vec![pb::RaftEntryHead { log_id: Some(id), len: 20 }],
        from_incarnation: vec![1; 16].into(),
        ..Default::default()
    };
    let register = pb::RegisterRequest { labels: vec!["rack=r1".to_owned()], ..Default::default() };
    let states = vec![pb::ReplicaState { replica: some, length: 4096, ..Default::default() }; 2];
    vec![
        (calls::SubmitBatch::METHOD, batch().encode_to_vec()),
        (calls::Query::METHOD, super::machine::queries().encode_to_vec()),
        (calls::RaftAppend::METHOD, raft.encode_to_vec()),
        (calls::Register::METHOD, register.encode_to_vec()),
        (
            calls::Report::METHOD,
            pb::ReportRequest { server: 2, replicas: states, last: true, ..Default::default() }
                .encode_to_vec(),
        ),
        (calls::Append::METHOD, append.encode_to_vec()),
        (
            calls::Punch::METHOD,
            pb::PunchRequest {
                replica: some,
                term: 4,
                holes: vec![pb::Hole { from: 0, end: 4096 }],
            }
            .encode_to_vec(),
        ),
    ]
}

fn batch() -> pb::Batch {
    let create = pb::CreateOp { parent: 1, name: "a".into(), inode: 7, ..Default::default() };
    let extent = pb::Extent { file_off: 4096, ..Default::default() };
    let commit = pb::CommitOp { inode: 7, extents: vec![extent], ..Default::default() };
    let ops = [pb::op::Op::Create(create), pb::op::Op::Commit(commit)];
    let ops = ops.into_iter().map(|op| pb::Op { op: Some(op) }).collect();
    pb::Batch { session: 4, first_seq: 9, acked_seq: 8, ops }
}

fn membership() -> pb::RaftMembership {
    let node = |id| pb::RaftNode {
        id,
        address: format!("master{id}:9420"),
        incarnation: vec![id as u8; 16].into(),
    };
    pb::RaftMembership {
        configs: vec![pb::RaftConfig { voters: vec![1, 2] }],
        nodes: vec![node(1), node(2), node(3)],
        log_id: Some(pb::RaftLogId { term: 1, node: 1, index: 5 }),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let requests = requests().into_iter().map(|(method, message)| {
        let at = CALLS.iter().position(|(number, ..)| *number == method).expect("a call");
        [&[2 * at as u8], &message[..]].concat()
    });
    let meta = pb::CheckpointMeta {
        last_applied: Some(pb::RaftLogId { term: 1, node: 1, index: 9 }),
        membership: Some(membership()),
        state_hash: 77,
        ..Default::default()
    };
    let command = super::machine::commands().into_iter().last().unwrap_or_default();
    let others = [
        (1, command.encode_to_vec()),
        (2, membership().encode_to_vec()),
        (3, meta.encode_to_vec()),
        (5, disk_superblock().encode_to_vec()),
    ];
    let others = others
        .into_iter()
        .map(|(at, message)| [&[(2 * CALLS.len() + at) as u8], &message[..]].concat());
    requests.chain(others).collect()
}

/// Of a chunkserver's only disk.
pub(super) fn disk_superblock() -> pb::ChunkDiskSuperblock {
    let disk = bytes::Bytes::from(vec![2; 16]);
    pb::ChunkDiskSuperblock {
        uuid: vec![1; 16].into(),
        disks: vec![disk.clone()],
        disk,
        ..Default::default()
    }
}

/// What each kind of record holds.
const RECORDS: &[(u16, Look)] = &[
    (kind::MASTER_SUPERBLOCK, look::<pb::MasterSuperblock>),
    (kind::CHUNK_DISK_SUPERBLOCK, look::<pb::ChunkDiskSuperblock>),
    (kind::REPLICA_HEADER, look::<pb::ReplicaHeader>),
    (kind::TABLE_FILE, look::<pb::TableFileHead>),
    (kind::HIGHEST_TERM, look::<pb::HighestTerm>),
];

/// Records one after another, of the kind that the first byte says.
pub(super) fn run_records(input: &[u8]) {
    let (mends, number, rest) = split(input);
    let (kind, look) = RECORDS[usize::from(number) % RECORDS.len()];
    let mut bytes = rest.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        if mends {
            mend_record(&mut bytes[at..]);
        }
        let Ok((body, used)) = decode_record(kind, &bytes[at..]) else { return };
        look(body);
        assert!(used >= HEADER_BYTES && at + used <= bytes.len());
        at += used;
    }
}

/// Sets the checksum of the record that these bytes begin with.
pub(super) fn mend_record(bytes: &mut [u8]) {
    let Some(len) = u32_at(bytes, 8) else { return };
    let end = HEADER_BYTES.saturating_add(len);
    if bytes.starts_with(b"MNGr") && end <= bytes.len() {
        let crc = crc32c_parts(&[&bytes[..12], &bytes[HEADER_BYTES..end]]);
        set_u32(bytes, 12, crc);
    }
}

pub(super) fn record_seeds() -> Vec<Vec<u8>> {
    let master =
        pb::MasterSuperblock { cluster: vec![9; 16].into(), node: 2, ..Default::default() };
    let header = pb::ReplicaHeader { chunk: 1, r#gen: 7, data_shards: 1, ..Default::default() };
    let head = pb::TableFileHead { file_id: 5, block_bytes: 4096, group_blocks: 1020 };
    let bodies = [
        master.encode_to_vec(),
        disk_superblock().encode_to_vec(),
        header.encode_to_vec(),
        head.encode_to_vec(),
        pb::HighestTerm { term: 6 }.encode_to_vec(),
    ];
    let seed = |(number, body): (usize, Vec<u8>)| {
        let mut record = Vec::new();
        encode_record(RECORDS[number].0, &body, &mut record);
        with_first(number.is_multiple_of(2), number as u8, &record)
    };
    bodies.into_iter().enumerate().map(seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_looked_at() {
        let known: Vec<u16> = CALLS.iter().map(|(method, ..)| *method).collect();
        assert_eq!(known, calls::all().map(|(method, _)| method).collect::<Vec<_>>());
    }
}
