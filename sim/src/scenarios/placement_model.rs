//! Decisions about where shards go and what to repair, against plain restatements (O8): distinct servers that
//! are alive and have room, failure domains shared only by rare chance, health counted from good replicas
//! alone, rebuilds from good sources onto servers without a shard. Not checked: that a leader asks in time.

use crate::failure::violation;
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::stats;
use mooseng::ids::ServerId;
use mooseng::pb;
use mooseng::placement::{Candidate, Repair, ServerView, choose, health, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "placement_model",
    about: "placement and repair decisions against plain restatements",
    seeds: 5,
    limit: Duration::from_secs(60),
    must_count: &["choices", "rebuilds planned", "bad replicas"],
    run: |seed| Box::pin(run(seed)),
};

async fn run(seed: u64) {
    let mut rng = Rng::new(seed).fork("placement model");
    let or_fail = |done: Result<(), String>| done.unwrap_or_else(|error| violation("O8", error));
    or_fail(domains(&mut rng));
    or_fail(domains_of_repairs(&mut rng));
    for _ in 0..200 {
        or_fail(repair(&mut rng));
    }
}

/// Six domains of two servers each, three shards: a domain is shared in fewer than one chunk in fifty.
fn domains(rng: &mut Rng) -> Result<(), String> {
    let candidates: Vec<Candidate> = (0..12)
        .map(|id| Candidate {
            server: ServerId(id + 1),
            labels: vec![format!("rack={}", id / 2)],
            free_bytes: rng.range(1 << 34, 1 << 38),
            alive: true,
            draining: false,
        })
        .collect();
    let (mut shared, choices) = (0, 500);
    for _ in 0..choices {
        let chosen =
            choose(&candidates, 1, 2, &[], rng.u64()).map_err(|error| error.to_string())?;
        let servers: BTreeSet<ServerId> = chosen.iter().copied().collect();
        if servers.len() != 3 {
            return Err(format!("a server twice: {chosen:?}"));
        }
        let racks: BTreeSet<u64> = chosen.iter().map(|server| (server.0 - 1) / 2).collect();
        shared += u64::from(racks.len() < 3);
        stats::count("choices");
    }
    if shared * 50 > choices {
        return Err(format!("{shared} of {choices} chunks have two shards in one failure domain"));
    }
    Ok(())
}

/// A chunk of two copies that lost one: the new one stays apart from the other's domain.
fn domains_of_repairs(rng: &mut Rng) -> Result<(), String> {
    let mut servers: BTreeMap<ServerId, ServerView> = (0..6)
        .map(|id| {
            let view = ServerView {
                state: pb::ServerState::Active,
                alive: true,
                labels: vec![format!("rack={}", id / 3)],
                free_bytes: rng.range(1 << 34, 1 << 36),
            };
            (ServerId(id + 1), view)
        })
        .collect();
    let replica = |shard, server| pb::Replica { r#gen: 100 + u64::from(shard), shard, server };
    let mut chunk = pb::Chunk {
        id: 9,
        layout: Some(pb::Layout { data: 1, parity: 1 }),
        replicas: vec![replica(0, 1), replica(1, 4)],
        epoch: 1,
        committed_len: 4096,
        ..pb::Chunk::default()
    };
    chunk.set_state(pb::ChunkState::Sealed);
    servers.get_mut(&ServerId(4)).expect("one of six").state = pb::ServerState::Dead;
    let (mut shared, repairs) = (0, 500);
    for _ in 0..repairs {
        match plan(&chunk, &servers, &BTreeSet::new(), rng.u64()) {
            Repair::Rebuild { target, .. } => shared += u64::from(target.0 <= 3),
            other => return Err(format!("{other:?} with a copy lost and five servers")),
        }
    }
    if shared * 50 > repairs {
        return Err(format!("{shared} of {repairs} repairs end in the other copy's domain"));
    }
    Ok(())
}

fn servers(rng: &mut Rng) -> BTreeMap<ServerId, ServerView> {
    use pb::ServerState::{Active, Dead, Draining};
    let mut view = || ServerView {
        state: *rng.pick(&[Active, Active, Active, Draining, Dead]),
        alive: rng.chance(4, 5),
        labels: vec![],
        free_bytes: 1 << 40,
    };
    (1..=8).map(|id| (ServerId(id), view())).collect()
}

fn repair(rng: &mut Rng) -> Result<(), String> {
    let servers = servers(rng);
    let (data, parity) = *rng.pick(&[(1, 1), (1, 2), (2, 1), (4, 2)]);
    let mut homes: Vec<u64> = (1..=8).collect();
    rng.shuffle(&mut homes);
    let replicas = (0..data + parity).map(|shard| {
        let server = homes[shard as usize];
        pb::Replica { r#gen: 100 + u64::from(shard), shard, server }
    });
    let mut chunk = pb::Chunk {
        id: 9,
        layout: Some(pb::Layout { data, parity }),
        replicas: replicas.collect(),
        epoch: 1,
        committed_len: 4096,
        ..pb::Chunk::default()
    };
    chunk.set_state(pb::ChunkState::Sealed);
    let bad: BTreeSet<(u64, u32)> = chunk
        .replicas
        .iter()
        .filter(|_| rng.chance(1, 6))
        .map(|replica| (replica.r#gen, replica.shard))
        .collect();
    stats::add("bad replicas", bad.len() as u64);
    check(&chunk, &servers, &bad, rng.u64())
}

/// A shard without a good copy that some server could take, if enough others can be read.
fn could_be_placed(
    chunk: &pb::Chunk,
    servers: &BTreeMap<ServerId, ServerView>,
    bad: &BTreeSet<(u64, u32)>,
) -> Option<u32> {
    use pb::ServerState::{Active, Dead};
    let view = |replica: &pb::Replica| &servers[&ServerId(replica.server)];
    let good = |replica: &&pb::Replica| {
        view(replica).state != Dead && !bad.contains(&(replica.r#gen, replica.shard))
    };
    let layout = chunk.layout.unwrap_or_default();
    let sources = chunk.replicas.iter().filter(good).filter(|replica| view(replica).alive);
    if sources.count() < layout.data as usize {
        return None;
    }
    (0..layout.data + layout.parity).find(|shard| {
        let here = |replica: &&pb::Replica| replica.shard == *shard && good(replica);
        let lost = chunk.replicas.iter().find(here).is_none();
        let free = |server: &ServerId| {
            chunk.replicas.iter().all(|r| r.server != server.0 || r.shard == *shard)
        };
        let able = |server: &ServerId, view: &ServerView| {
            view.alive && view.state == Active && free(server)
        };
        lost && servers.iter().any(|(server, view)| able(server, view))
    })
}

fn check(
    chunk: &pb::Chunk,
    servers: &BTreeMap<ServerId, ServerView>,
    bad: &BTreeSet<(u64, u32)>,
    seed: u64,
) -> Result<(), String> {
    use pb::ServerState::{Active, Dead};
    let say = |what: &str| Err(format!("{what}: {chunk:?} on {servers:?}, bad {bad:?}"));
    let layout = chunk.layout.unwrap_or_default();
    let state = |replica: &pb::Replica| servers[&ServerId(replica.server)].state;
    let good = |replica: &pb::Replica| {
        state(replica) != Dead && !bad.contains(&(replica.r#gen, replica.shard))
    };
    let count = chunk.replicas.iter().filter(|replica| good(replica)).count() as i32;
    let settled = chunk.replicas.iter().filter(|r| good(r) && state(r) == Active).count() as u32;
    let found = health(chunk, servers, bad);
    if found.spare != count - layout.data as i32
        || found.missing != layout.data + layout.parity - settled
    {
        return say(&format!("{found:?} with {count} good shards, {settled} on active servers"));
    }
    let Repair::Rebuild { shard, target, sources, .. } = plan(chunk, servers, bad, seed) else {
        return match could_be_placed(chunk, servers, bad) {
            Some(shard) => say(&format!("shard {shard} could be built, and nothing is")),
            None => Ok(()),
        };
    };
    stats::count("rebuilds planned");
    if sources.iter().any(|source| !good(source)) || sources.len() < layout.data as usize {
        return say(&format!("shard {shard} from {sources:?}"));
    }
    // The namespace takes no second shard on a server, be the first good or bad.
    let holds = |replica: &pb::Replica| {
        replica.server == target.0 && (good(replica) || replica.shard != shard)
    };
    let to = &servers[&target];
    if chunk.replicas.iter().any(holds) || to.state != Active || !to.alive {
        return say(&format!("shard {shard} to {target}"));
    }
    let settled = |replica: &&pb::Replica| {
        replica.shard == shard && good(replica) && state(replica) == Active
    };
    match chunk.replicas.iter().find(settled) {
        Some(replica) => say(&format!("rebuilds the good {replica:?}")),
        None => Ok(()),
    }
}
