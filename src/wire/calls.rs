//! Every remote call: its number, name and message types. The numbers are part of the protocol.

use crate::pb;

/// One kind of remote call.
pub trait Call: Send + std::marker::Sync + 'static {
    /// Number on the wire.
    const METHOD: u16;
    /// Name for logs.
    const NAME: &'static str;
    /// Whether it carries file data: such calls have a connection of their own, so that short calls do not
    /// wait behind them.
    const BULK: bool;
    /// The question.
    type Request: prost::Message + Default;
    /// The answer.
    type Reply: prost::Message + Default;
}

struct Row {
    method: u16,
    name: &'static str,
    bulk: bool,
    payload_crc: bool,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $method:literal $name:ident($request:ident) -> $reply:ident
        $(, bulk: $bulk:literal)? $(, own_crcs: $own:literal)?;)*) => {
        $($(#[$doc])*
        pub struct $name;

        impl Call for $name {
            const METHOD: u16 = $method;
            const NAME: &'static str = stringify!($name);
            const BULK: bool = false $(|| $bulk)?;
            type Request = pb::$request;
            type Reply = pb::$reply;
        })*

        const ROWS: &[Row] = &[$(Row {
            method: $method,
            name: stringify!($name),
            bulk: false $(|| $bulk)?,
            payload_crc: !(false $(|| $own)?),
        }),*];
    };
}

calls! {
    /// Client to leader: a new session.
    1 OpenSession(OpenSessionRequest) -> OpenSessionReply;
    /// Client to leader: operations of a session, in order.
    2 SubmitBatch(Batch) -> BatchReply;
    /// Client to leader: linearizable reads.
    3 Query(QueryRequest) -> QueryReply;
    /// Client to leader: the session lives.
    4 Keepalive(KeepaliveRequest) -> KeepaliveReply;
    /// Client to leader: the session ends.
    5 CloseSession(CloseSessionRequest) -> CloseSessionReply;
    /// Client to leader: a chunk to write into.
    6 OpenChunk(OpenChunkRequest) -> OpenChunkReply;
    /// Client to leader: a server of this chunk failed.
    7 ReportChunk(ReportChunkRequest) -> ReportChunkReply;
    /// Master to master: a vote.
    32 RaftVote(RaftVoteRequest) -> RaftVoteReply;
    /// Master to master: log entries in the payload.
    33 RaftAppend(RaftAppendRequest) -> RaftAppendReply;
    /// Master to master: a piece of a snapshot in the payload.
    34 RaftSnapshot(RaftSnapshotRequest) -> RaftSnapshotReply, bulk: true;
    /// Anybody to any master: who leads?
    35 Leader(LeaderRequest) -> LeaderReply;
    /// New master to leader: a node id.
    36 Join(JoinRequest) -> JoinReply;
    /// Master to leader: an administrator's call that reached a follower.
    37 Admin(AdminCall) -> AdminAnswer;
    /// Leader to a follower: stand for election.
    38 StandForElection(StandRequest) -> StandReply;
    /// Chunkserver to leader: here I am, with these disks.
    64 Register(RegisterRequest) -> RegisterReply;
    /// Chunkserver to leader: still here.
    65 Heartbeat(HeartbeatRequest) -> HeartbeatReply;
    /// Chunkserver to leader: a page of the list of replicas.
    66 Report(ReportRequest) -> ReportReply;
    /// Client to chunkserver: bytes in the payload.
    80 Append(AppendRequest) -> AppendReply, bulk: true, own_crcs: true;
    /// Client to chunkserver: make durable.
    81 Sync(SyncRequest) -> SyncReply;
    /// Anybody to chunkserver: bytes in the reply's payload.
    82 Read(ReadRequest) -> ReadReply, bulk: true, own_crcs: true;
    /// Master to chunkserver: this is the final length.
    83 Seal(SealRequest) -> SealReply;
    /// Master to chunkserver: delete by id.
    84 Delete(DeleteRequest) -> DeleteReply;
    /// Master to chunkserver: build a replica from others.
    85 Rebuild(RebuildRequest) -> RebuildReply;
    /// Anybody to chunkserver: what do you have of these?
    86 Stat(StatRequest) -> StatReply;
    /// Master to chunkserver: nothing refers to these ranges.
    87 Punch(PunchRequest) -> PunchReply;
}

fn row(method: u16) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.method == method)
}

/// The call's name, `None` if this version does not know the method.
pub fn name(method: u16) -> Option<&'static str> {
    row(method).map(|row| row.name)
}

/// Whether the call travels on the connection for bulk data.
pub(super) fn is_bulk(method: u16) -> bool {
    row(method).is_some_and(|row| row.bulk)
}

/// Whether the frame carries a CRC of its payload. File data does not: it brings a CRC per block.
pub(super) fn payload_crc(method: u16) -> bool {
    row(method).is_none_or(|row| row.payload_crc)
}

/// Every call's number and name, for tests and logs.
pub fn all() -> impl Iterator<Item = (u16, &'static str)> {
    ROWS.iter().map(|row| (row.method, row.name))
}
