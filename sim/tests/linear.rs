//! The checker of O1 against exhaustive search, on small histories of the model filesystem: half of them
//! good, half corrupted on purpose.
#![cfg(feature = "sim")]

use mooseng::errno::Errno;
use mooseng_proptests::{FsOp, FsOut, ModelFs};
use mooseng_sim::oracles::linear::{Call, Effect, Fate, History, check};
use mooseng_sim::rng::Rng;
use std::collections::BTreeMap;

type Out = Result<FsOut, Errno>;
type Small = History<u64, FsOp, Out>;
type Seen = Call<FsOp, Out>;

const ROOT: u64 = 1;
const CLIENTS: usize = 3;

// ---- histories ----

fn name(rng: &mut Rng) -> Vec<u8> {
    vec![*rng.pick(b"ab")]
}

fn draw_op(rng: &mut Rng, ino: u64) -> FsOp {
    let parent = ROOT;
    match rng.below(7) {
        0 | 1 => FsOp::Create {
            parent,
            name: name(rng),
            ino,
            kind: mooseng_proptests::Kind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            target: vec![],
        },
        2 => FsOp::Unlink { parent, name: name(rng) },
        3 => {
            let (name, new_name, flags) = (name(rng), name(rng), rng.below(3) as u32);
            FsOp::Rename { parent, name, new_parent: parent, new_name, flags }
        }
        4 => FsOp::Readdir { ino: ROOT },
        _ => FsOp::Lookup { parent, name: name(rng) },
    }
}

fn is_read(op: &FsOp) -> bool {
    matches!(op, FsOp::Readdir { .. } | FsOp::Lookup { .. })
}

struct Pending {
    key: u64,
    invoked: u64,
    op: FsOp,
    effect: Option<(u64, Out)>,
}

/// Runs clients against the real object with effects and answers at random moments.
struct Maker {
    rng: Rng,
    fs: ModelFs,
    moment: u64,
    history: Small,
    pending: Vec<Option<Pending>>,
    /// Changes whose caller gave up: they may still happen.
    loose: Vec<Pending>,
}

fn make(seed: u64) -> Small {
    let rng = Rng::new(seed).fork("history");
    let history = History { changes: BTreeMap::new(), reads: vec![], log: vec![], end: 0 };
    let pending = (0..CLIENTS).map(|_| None).collect();
    let mut maker =
        Maker { rng, fs: ModelFs::default(), moment: 0, history, pending, loose: vec![] };
    let calls = maker.rng.range(3, 8);
    let mut made = 0;
    while made < calls || maker.pending.iter().any(Option::is_some) {
        maker.moment += 1;
        let client = maker.rng.index(CLIENTS);
        match maker.pending[client].take() {
            None if made < calls => {
                made += 1;
                let op = draw_op(&mut maker.rng, 100 + made);
                let invoked = maker.moment;
                maker.pending[client] = Some(Pending { key: made, invoked, op, effect: None });
            }
            None => {}
            Some(pending) => maker.go_on(client, pending),
        }
    }
    maker.history
}

impl Maker {
    fn go_on(&mut self, client: usize, mut pending: Pending) {
        match (&pending.effect, self.rng.below(12)) {
            (None, 0) => self.finish(pending, Fate::Refused),
            (None, 1) => {
                let Pending { key, invoked, op, .. } = &pending;
                let copy = Pending { key: *key, invoked: *invoked, op: op.clone(), effect: None };
                if !is_read(&copy.op) {
                    self.loose.push(copy);
                }
                self.finish(pending, Fate::Unknown);
            }
            (None, _) => {
                self.effect(&mut pending);
                self.pending[client] = Some(pending);
            }
            (Some(_), 0) => self.finish(pending, Fate::Unknown),
            (Some((index, out)), _) => {
                let fate = Fate::Answered { at: self.moment, index: *index, out: out.clone() };
                self.finish(pending, fate);
            }
        }
    }

    fn effect(&mut self, pending: &mut Pending) {
        if is_read(&pending.op) {
            let out = self.fs.apply(&pending.op);
            pending.effect = Some((self.history.end, out));
            return;
        }
        // Some indexes hold nothing of ours, some hold two changes.
        self.history.end += self.rng.range(1, 3);
        self.log(pending);
        if self.rng.chance(1, 2)
            && let Some(mut late) = self.loose.pop()
        {
            self.log(&mut late);
        }
    }

    fn log(&mut self, change: &mut Pending) {
        let (index, key, op) = (self.history.end, Some(change.key), change.op.clone());
        let out = self.fs.apply(&op);
        change.effect = Some((index, out.clone()));
        self.history.log.push(Effect { index, key, op, out: Some(out) });
    }

    fn finish(&mut self, pending: Pending, fate: Fate<Out>) {
        let Pending { key, invoked, op, .. } = pending;
        let call = Call { invoked, op, fate };
        match is_read(&call.op) {
            true => self.history.reads.push(call),
            false => _ = self.history.changes.insert(key, call),
        }
    }
}

// ---- corruption ----

fn calls(history: &mut Small) -> Vec<&mut Seen> {
    history.changes.values_mut().chain(&mut history.reads).collect()
}

/// Damages the history in one way; it may still be a good one afterwards.
fn corrupt(history: &mut Small, rng: &mut Rng) {
    // Our own copy of the results would give damage away that a caller can not see.
    let keep_outs = rng.chance(1, 2);
    match rng.below(8) {
        0 => swap_outs(history, rng),
        1 | 2 => shift_index(history, rng),
        3 if history.log.len() > 1 => {
            let at = rng.index(history.log.len() - 1);
            let (a, b) = (history.log[at].index, history.log[at + 1].index);
            history.log.swap(at, at + 1);
            (history.log[at].index, history.log[at + 1].index) = (a, b);
        }
        4 if !history.log.is_empty() => {
            let at = rng.index(history.log.len());
            history.log.remove(at);
        }
        5 if !history.log.is_empty() => {
            let again = rng.pick(&history.log).clone();
            history.end += 1;
            history.log.push(Effect { index: history.end, ..again });
        }
        6 => begin_later(history, rng),
        _ => refuse(history, rng),
    }
    if !keep_outs {
        history.log.iter_mut().for_each(|effect| effect.out = None);
    }
}

fn swap_outs(history: &mut Small, rng: &mut Rng) {
    let mut all = calls(history);
    let other = match &rng.pick(&all).fate {
        Fate::Answered { out, .. } => out.clone(),
        _ => Err(Errno::ENOENT),
    };
    let at = rng.index(all.len());
    if let Fate::Answered { out, .. } = &mut all[at].fate {
        *out = other;
    }
}

fn shift_index(history: &mut Small, rng: &mut Rng) {
    let mut all = calls(history);
    let at = rng.index(all.len());
    if let Fate::Answered { index, .. } = &mut all[at].fate {
        *index = if rng.chance(1, 2) { *index + 1 } else { index.saturating_sub(1) };
    }
}

fn begin_later(history: &mut Small, rng: &mut Rng) {
    let mut all = calls(history);
    let at = rng.index(all.len());
    let Fate::Answered { at: end, .. } = all[at].fate else { return };
    all[at].invoked = end - 1;
}

fn refuse(history: &mut Small, rng: &mut Rng) {
    let mut all = calls(history);
    let at = rng.index(all.len());
    all[at].fate = Fate::Refused;
}

// ---- exhaustive search ----

fn answered(call: &Seen) -> Option<u64> {
    match call.fate {
        Fate::Answered { at, .. } => Some(at),
        _ => None,
    }
}

fn out_of(call: &Seen) -> Option<&Out> {
    match &call.fate {
        Fate::Answered { out, .. } => Some(out),
        _ => None,
    }
}

/// Whether nobody who must come before this call is left.
fn may_come(call: &Seen, left: &[&Seen]) -> bool {
    left.iter().all(|other| answered(other).is_none_or(|at| at >= call.invoked))
}

/// Any order of all answered calls and some of the unknown changes that real time allows and in which every
/// call gets the answer that was seen.
fn some_order(fs: &ModelFs, left: &[&Seen]) -> bool {
    if left.iter().all(|call| answered(call).is_none()) {
        return true;
    }
    (0..left.len()).any(|at| {
        let call = left[at];
        if call.fate == Fate::Refused || !may_come(call, left) {
            return false;
        }
        let mut next = fs.clone();
        let out = next.apply(&call.op);
        let mut rest = left.to_vec();
        rest.remove(at);
        out_of(call).is_none_or(|seen| *seen == out) && some_order(&next, &rest)
    })
}

/// An order in which changes are those of the log, those at one index at once, reads come at their index, and
/// real time and answers agree. `at` is the index reached.
fn order_of_log(history: &Small, fs: &ModelFs, at: u64, left: &[&Seen]) -> bool {
    for (place, read) in left.iter().enumerate().filter(|(_, call)| is_read(&call.op)) {
        let Fate::Answered { index, out, .. } = &read.fate else { continue };
        if *index == at && may_come(read, left) && fs.clone().apply(&read.op) == *out {
            let mut rest = left.to_vec();
            rest.remove(place);
            if order_of_log(history, fs, at, &rest) {
                return true;
            }
        }
    }
    if at == history.end {
        return left.iter().all(|call| answered(call).is_none());
    }
    let Some((next, rest)) = group(history, fs, at + 1, left) else { return false };
    order_of_log(history, &next, at + 1, &rest)
}

/// What the log holds at one index, if it may come now.
fn group<'a>(
    history: &'a Small,
    fs: &ModelFs,
    at: u64,
    left: &[&'a Seen],
) -> Option<(ModelFs, Vec<&'a Seen>)> {
    let (mut next, mut rest) = (fs.clone(), left.to_vec());
    for effect in history.log.iter().filter(|effect| effect.index == at) {
        let call = effect.key.and_then(|key| history.changes.get(&key))?;
        let told = match call.fate {
            Fate::Answered { index, .. } => index == at,
            Fate::Refused => false,
            Fate::Unknown => true,
        };
        let place = rest.iter().position(|other| std::ptr::eq(*other, call))?;
        let out = next.apply(&call.op);
        let wrong = |seen: Option<&Out>| seen.is_some_and(|seen| *seen != out);
        let right = told && call.op == effect.op && may_come(call, left);
        if !right || wrong(out_of(call)) || wrong(effect.out.as_ref()) {
            return None;
        }
        rest.remove(place);
    }
    Some((next, rest))
}

fn all_calls(history: &Small) -> Vec<&Seen> {
    history.changes.values().chain(&history.reads).collect()
}

#[test]
fn the_checker_agrees_with_exhaustive_search_on_10_000_histories() {
    let (mut refused, mut wrong_without_log, mut reads, mut unheard) = (0, 0, 0, 0);
    for seed in 0..10_000 {
        let mut history = make(seed);
        let bad = seed % 2 == 1;
        if bad {
            corrupt(&mut history, &mut Rng::new(seed).fork("damage"));
        }
        let verdict = check(&mut ModelFs::default(), &history);
        let searched = order_of_log(&history, &ModelFs::default(), 0, &all_calls(&history));
        let explained = some_order(&ModelFs::default(), &all_calls(&history));
        assert_eq!(verdict.is_ok(), searched, "seed {seed}: {verdict:?} of {history:#?}");
        assert!(verdict.is_err() || explained, "seed {seed}: no order explains {history:#?}");
        match verdict {
            Err(why) if !bad => panic!("seed {seed}: {why} in {history:#?}"),
            Err(_) => refused += 1,
            Ok(checked) => (reads, unheard) = (reads + checked.reads, unheard + checked.unheard),
        }
        wrong_without_log += u64::from(!explained);
    }
    println!("{refused} refused, {wrong_without_log} of them wrong whatever the log says");
    println!("{reads} reads and {unheard} changes of unknown outcome in good histories");
    assert!(refused > 2500 && wrong_without_log > 300 && reads > 5000 && unheard > 300);
}
