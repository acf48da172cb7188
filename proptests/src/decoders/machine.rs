//! The state machine, given commands and queries that nobody vetted: what a client sends goes into the log of all
//! masters, and a panic there would end every one of them.

use super::Reader;
use super::bytes::put_number;
use crate::machine::run_seed;
use mooseng::ids::{LogIndex, Term};
use mooseng::limits::Limits;
use mooseng::namespace::{self, Namespace};
use mooseng::pb::{self, query::Query};
use mooseng::tables::Db;
use prost::Message;
use std::sync::{Arc, OnceLock};

/// Operations of the program that has been applied before.
const STEPS: u32 = 40;
/// Commands of one input.
const COMMANDS_MAX: usize = 32;

/// Commands of a program of clients and masters.
pub(super) fn commands() -> Vec<pb::Command> {
    static COMMANDS: OnceLock<Vec<pb::Command>> = OnceLock::new();
    let run = || run_seed(5, STEPS, Limits::tiny()).log.into_iter().map(|(_, c, ..)| c).collect();
    COMMANDS.get_or_init(run).clone()
}

/// The state machine after them.
pub(super) fn base() -> Namespace {
    let mut namespace = Namespace::new(Db::memory(), Arc::new(Limits::tiny()));
    for (index, command) in (1..).zip(commands()) {
        namespace.apply(Term(1), LogIndex(index), &command).expect("tables in memory");
    }
    namespace
}

/// Each command with its length before it.
pub(super) fn run_commands(input: &[u8]) {
    let (mut rest, mut decoded) = (Reader(input), Vec::new());
    while !rest.is_empty() && decoded.len() < COMMANDS_MAX {
        let len = rest.number(2);
        match pb::Command::decode(rest.take(len)) {
            Ok(command) => decoded.push(command),
            Err(_) => break,
        }
    }
    if decoded.is_empty() {
        return;
    }
    let (mut namespace, mut index) = (base(), 1_000);
    for command in decoded {
        index += 1;
        let outcomes = namespace.apply(Term(2), LogIndex(index), &command);
        let outcomes = outcomes.expect("tables in memory");
        assert_eq!(outcomes.len(), command.proposals.len(), "each proposal is answered");
        if let Err(broken) = namespace::check(namespace.db()) {
            panic!("{broken} after {command:?}");
        }
    }
}

/// The program's own commands, each behind the state that it led to, and some together.
pub(super) fn command_seeds() -> Vec<Vec<u8>> {
    let packed = |commands: &[pb::Command]| {
        let mut seed = Vec::new();
        for command in commands {
            let bytes = command.encode_to_vec();
            put_number(&mut seed, bytes.len(), 2);
            seed.extend_from_slice(&bytes);
        }
        seed
    };
    let all = commands();
    all.chunks(8).map(packed).collect()
}

/// One of each kind.
pub(super) fn queries() -> pb::QueryRequest {
    let all = [
        Query::Lookup(pb::LookupQuery { parent: 1, name: "a".into() }),
        Query::Getattr(pb::GetattrQuery { inode: 1 }),
        Query::Readdir(pb::ReaddirQuery { inode: 1, cookie: 3, limit: 9, with_attrs: true }),
        Query::Readlink(pb::ReadlinkQuery { inode: 2 }),
        Query::Extents(pb::ExtentsQuery { inode: 2, from: 0, to: 9_000, limit: 5 }),
        Query::Getxattr(pb::GetxattrQuery { inode: 2, name: "user.a".into() }),
        Query::Listxattr(pb::ListxattrQuery { inode: 2 }),
        Query::Statfs(pb::StatfsQuery {}),
        Query::Chunks(pb::ChunksQuery { chunks: vec![1, 2, 3] }),
        Query::Classes(pb::ClassesQuery {}),
    ];
    let queries = all.into_iter().map(|query| pb::Query { query: Some(query) }).collect();
    pb::QueryRequest { queries, ..Default::default() }
}

pub(super) fn run_queries(input: &[u8]) {
    static BASE: OnceLock<Namespace> = OnceLock::new();
    let Ok(request) = pb::QueryRequest::decode(input) else { return };
    let base = BASE.get_or_init(base);
    for query in &request.queries {
        let result = namespace::query(base.db(), &Limits::tiny(), query);
        drop(result.expect("tables in memory"));
    }
}

pub(super) fn query_seeds() -> Vec<Vec<u8>> {
    let all = queries();
    let one = |query: &pb::Query| {
        pb::QueryRequest { queries: vec![query.clone()], ..all.clone() }.encode_to_vec()
    };
    all.queries.iter().map(one).chain([all.encode_to_vec()]).collect()
}
