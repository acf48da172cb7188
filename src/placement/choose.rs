//! Where the shards of a new chunk go.

use crate::ids::ServerId;
use std::collections::BTreeSet;

/// A chunkserver as placement sees it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who.
    pub server: ServerId,
    /// Failure domains (`rack=a`, `room=2`): shards avoid sharing any of them while there is a choice.
    pub labels: Vec<String>,
    /// Free bytes on its working disks.
    pub free_bytes: u64,
    /// Heard from lately.
    pub alive: bool,
    /// Being emptied: takes nothing new.
    pub draining: bool,
}

/// Too few servers can take a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{usable} chunkservers can take a shard, {needed} are needed")]
pub struct NoRoom {
    /// Servers that are alive, not draining, not avoided and have space.
    pub usable: usize,
    /// Fewest that the layout accepts.
    pub needed: usize,
}

/// Below this much free space a server takes no new shards: the rest is for deletes, seals and repairs
/// that are under way.
const RESERVE_BYTES: u64 = 8 << 20;

/// How much less likely a server is chosen for each failure domain it shares with a chosen one.
const SHARED_LABEL_DIVISOR: u64 = 4096;

/// Picks distinct servers for a chunk of `data` + `parity` shards, at random weighted by free space, spread
/// over labels, none of `avoid`. The same arguments give the same answer.
///
/// Fewer than `data + parity` are returned only for replicated chunks (`data == 1`), and never fewer than two
/// where two copies were asked for: the chunk is repaired to full width later.
pub fn choose(
    candidates: &[Candidate],
    data: usize,
    parity: usize,
    avoid: &[ServerId],
    seed: u64,
) -> Result<Vec<ServerId>, NoRoom> {
    spread(candidates, (data, parity), avoid, BTreeSet::new(), seed)
}

/// One more server for a chunk that has shards on `beside`: none of these, and apart from their failure domains.
pub fn choose_one(
    candidates: &[Candidate],
    beside: &[ServerId],
    seed: u64,
) -> Result<ServerId, NoRoom> {
    let near = candidates.iter().filter(|c| beside.contains(&c.server));
    // ONERACK: the domains of the shards that are there do not count.
    let near = near.filter(|_| !crate::bug!(ONERACK));
    let used = near.flat_map(|c| c.labels.iter().map(String::as_str)).collect();
    spread(candidates, (1, 0), beside, used, seed).map(|chosen| chosen[0])
}

/// Distinct servers, with the failure domains that are taken already.
fn spread<'a>(
    candidates: &'a [Candidate],
    (data, parity): (usize, usize),
    avoid: &[ServerId],
    mut used: BTreeSet<&'a str>,
    seed: u64,
) -> Result<Vec<ServerId>, NoRoom> {
    let wanted = data + parity;
    let needed = if data == 1 { wanted.min(2) } else { wanted };
    let mut pool: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| c.alive && !c.draining && c.free_bytes > RESERVE_BYTES)
        .filter(|c| !avoid.contains(&c.server))
        .collect();
    if pool.len() < needed {
        return Err(NoRoom { usable: pool.len(), needed });
    }
    let mut random = seed;
    let mut chosen = Vec::with_capacity(wanted);
    while chosen.len() < wanted && !pool.is_empty() {
        let weights: Vec<u64> = pool.iter().map(|c| weight(c, &used)).collect();
        let at = pick(&weights, split_mix(&mut random));
        let candidate = pool.swap_remove(at);
        // swap_remove reorders; restore the order so that the choice depends on the arguments' order alone.
        pool.sort_by_key(|c| c.server);
        // M35: failure domains that are taken are not noted.
        if !crate::bug!(M35) {
            used.extend(candidate.labels.iter().map(String::as_str));
        }
        chosen.push(candidate.server);
    }
    Ok(chosen)
}

fn weight(candidate: &Candidate, used: &BTreeSet<&str>) -> u64 {
    let mut weight = (candidate.free_bytes >> 8).max(1);
    for label in &candidate.labels {
        if used.contains(label.as_str()) {
            weight = (weight / SHARED_LABEL_DIVISOR).max(1);
        }
    }
    weight
}

fn pick(weights: &[u64], random: u64) -> usize {
    let total: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let mut point = (u128::from(random) * total) >> 64;
    for (at, weight) in weights.iter().enumerate() {
        if point < u128::from(*weight) {
            return at;
        }
        point -= u128::from(*weight);
    }
    weights.len() - 1
}

/// SplitMix64: a fixed, seedable sequence, so that a choice can be replayed.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn server(id: u64, free: u64, label: &str) -> Candidate {
        Candidate {
            server: ServerId(id),
            labels: if label.is_empty() { vec![] } else { vec![label.to_owned()] },
            free_bytes: free,
            alive: true,
            draining: false,
        }
    }

    #[test]
    fn servers_are_distinct_alive_and_have_space() {
        let mut all: Vec<_> = (1..=6).map(|i| server(i, 1 << 30, "")).collect();
        all[0].alive = false;
        all[1].draining = true;
        all[2].free_bytes = RESERVE_BYTES;
        for seed in 0..100 {
            let mut got = choose(&all, 1, 1, &[ServerId(4)], seed).unwrap();
            got.sort();
            assert_eq!(got, [ServerId(5), ServerId(6)]);
        }
        assert_eq!(
            choose(&all, 1, 1, &[ServerId(4), ServerId(5)], 1),
            Err(NoRoom { usable: 1, needed: 2 })
        );
    }

    #[test]
    fn replication_accepts_two_copies_and_erasure_coding_insists() {
        let two: Vec<_> = (1..=2).map(|i| server(i, 1 << 30, "")).collect();
        assert_eq!(choose(&two, 1, 2, &[], 7).unwrap().len(), 2);
        assert_eq!(choose(&two[..1], 1, 0, &[], 7).unwrap().len(), 1);
        let five: Vec<_> = (1..=5).map(|i| server(i, 1 << 30, "")).collect();
        assert_eq!(choose(&five, 4, 2, &[], 7), Err(NoRoom { usable: 5, needed: 6 }));
    }

    #[test]
    fn labels_are_spread_and_free_space_weighs() {
        let all: Vec<_> = (1..=6)
            .map(|i| server(i, 64 << 30, if i <= 4 { "rack=a" } else { "rack=b" }))
            .collect();
        let shared = (0..1000)
            .filter(|seed| {
                let got = choose(&all, 1, 1, &[], *seed).unwrap();
                got.iter().all(|s| s.0 <= 4) || got.iter().all(|s| s.0 > 4)
            })
            .count();
        assert!(shared < 10, "{shared} of 1000 chunks lie in one rack");

        let uneven = [server(1, 90 << 30, ""), server(2, 10 << 30, "")];
        let mut counts: BTreeMap<ServerId, u32> = BTreeMap::new();
        for seed in 0..1000 {
            *counts.entry(choose(&uneven, 1, 0, &[], seed).unwrap()[0]).or_default() += 1;
        }
        assert!((850..950).contains(&counts[&ServerId(1)]), "{counts:?}");
    }
}
