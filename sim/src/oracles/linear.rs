//! Linearizability of calls on one sequential object, given a witness: the order in which the changes took
//! effect (a log), and for each answered call the index in it at which it took effect.
//!
//! With a witness no search is needed. One pass over the log replays the object: each change must come out as
//! its caller was told, and each read as the object was at its index. One pass over time keeps the highest
//! index that any answer has carried: a call that begins later has at least that index, a change a higher one.
//! A change occurs in the log at most once, after it was asked for, and never if its caller was told that it
//! did not happen. O(n log n).
//!
//! Not checked: whether the object is the right one (that is the model's business); liveness. `sim/tests/linear.rs`
//! compares this checker with exhaustive search on small histories, good and corrupted.

use mooseng::errno::Errno;
use mooseng_proptests::{FsOp, FsOut, ModelFs};
use std::collections::{BTreeMap, BTreeSet};

/// The object, one call at a time.
pub trait Model {
    /// A call.
    type Op;
    /// Its answer.
    type Out;
    /// Runs the call; every answer that somebody saw must be the right one.
    fn step(&mut self, op: &Self::Op, seen: &[&Self::Out]) -> Result<(), String>;
}

/// A filesystem whose whole answers were seen.
impl Model for ModelFs {
    type Op = FsOp;
    type Out = Result<FsOut, Errno>;

    fn step(&mut self, op: &Self::Op, seen: &[&Self::Out]) -> Result<(), String> {
        let right = self.apply(op);
        let wrong = seen.iter().find(|out| ***out != right);
        wrong.map_or(Ok(()), |out| Err(format!("answered {out:?}, must be {right:?}")))
    }
}

/// How a call ended, for its caller. Moments are numbers that rise with time, no two the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<Out> {
    /// With an answer.
    Answered {
        /// When.
        at: u64,
        /// The index at which it took effect.
        index: u64,
        /// What was answered.
        out: Out,
    },
    /// It certainly did not happen.
    Refused,
    /// Nobody knows, for ever.
    Unknown,
}

/// A call as its caller saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<Op, Out> {
    /// When it was made.
    pub invoked: u64,
    /// What was asked.
    pub op: Op,
    /// How it ended.
    pub fate: Fate<Out>,
}

/// Something the log did to the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect<Key, Op, Out> {
    /// Where.
    pub index: u64,
    /// Whose call it was; `None` for what no client asked for.
    pub key: Option<Key>,
    /// What was done.
    pub op: Op,
    /// How the log's own machine says it came out.
    pub out: Option<Out>,
}

/// Everything that happened.
#[derive(Clone, Debug)]
pub struct History<Key, Op, Out> {
    /// Calls that change the object, by the name the log knows them by.
    pub changes: BTreeMap<Key, Call<Op, Out>>,
    /// Calls that only look.
    pub reads: Vec<Call<Op, Out>>,
    /// What took effect, in order; indexes do not fall.
    pub log: Vec<Effect<Key, Op, Out>>,
    /// The last index of the log, which may be one that does nothing.
    pub end: u64,
}

/// What a good history proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Changes answered and found in the log.
    pub changes: u64,
    /// Changes found in the log whose caller never heard of it.
    pub unheard: u64,
    /// Reads compared.
    pub reads: u64,
}

/// The least index that each call may have, by when it was made.
struct Floors(Vec<(u64, u64)>);

impl Floors {
    fn of<K, Op, Out>(history: &History<K, Op, Out>) -> Floors {
        let calls = history.changes.values().chain(&history.reads);
        let mut answers: Vec<(u64, u64)> = calls
            .filter_map(|call| match call.fate {
                Fate::Answered { at, index, .. } => Some((at, index)),
                _ => None,
            })
            .collect();
        answers.sort_unstable();
        let mut highest = 0;
        for (_, index) in &mut answers {
            highest = highest.max(*index);
            *index = highest;
        }
        Floors(answers)
    }

    /// The highest index answered before `moment`.
    fn at(&self, moment: u64) -> u64 {
        let before = self.0.partition_point(|(at, _)| *at < moment);
        before.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

/// Checks the history against the object, from its first state on.
pub fn check<K, M>(model: &mut M, history: &History<K, M::Op, M::Out>) -> Result<Checked, String>
where
    K: Ord + Clone + std::fmt::Debug,
    M: Model,
    M::Op: std::fmt::Debug + PartialEq,
    M::Out: std::fmt::Debug,
{
    let floors = Floors::of(history);
    let mut checked = Checked::default();
    let mut found = BTreeSet::new();
    let mut reads = in_order(history, &floors)?.into_iter().peekable();
    for effect in &history.log {
        while let Some((_, read)) = reads.next_if(|(index, _)| *index < effect.index) {
            look(model, read, &mut checked)?;
        }
        let mut seen: Vec<&M::Out> = effect.out.iter().collect();
        if let Some(key) = &effect.key {
            if !found.insert(key.clone()) {
                return Err(format!("{key:?} took effect twice, again at {}", effect.index));
            }
            seen.extend(vet(effect, history.changes.get(key), &floors, &mut checked)?);
        }
        let right = model.step(&effect.op, &seen);
        right.map_err(|why| format!("at index {}, {:?}: {why}", effect.index, effect.op))?;
    }
    for (_, read) in reads {
        look(model, read, &mut checked)?;
    }
    let lost = |key: &&K| !found.contains(key);
    let answered = history.changes.iter().filter(|(_, c)| matches!(c.fate, Fate::Answered { .. }));
    match answered.map(|(key, _)| key).find(lost) {
        Some(key) => Err(format!("{key:?} was answered and is not in the log")),
        None => Ok(checked),
    }
}

/// The reads by index; none before its floor or behind the end.
#[expect(clippy::type_complexity, reason = "a list of pairs")]
fn in_order<'a, K, Op: std::fmt::Debug, Out>(
    history: &'a History<K, Op, Out>,
    floors: &Floors,
) -> Result<Vec<(u64, &'a Call<Op, Out>)>, String> {
    let mut reads = Vec::new();
    for read in &history.reads {
        let Fate::Answered { index, .. } = read.fate else { continue };
        let floor = floors.at(read.invoked);
        if index < floor {
            return Err(format!(
                "{:?} was answered as of index {index}, but {floor} had been answered before it was asked",
                read.op
            ));
        }
        if index > history.end {
            return Err(format!("{:?}: index {index} is behind the log's end", read.op));
        }
        reads.push((index, read));
    }
    reads.sort_by_key(|(index, _)| *index);
    Ok(reads)
}

/// Whether a change may stand where the log has it; what its caller was told.
fn vet<'a, K, Op, Out>(
    effect: &Effect<K, Op, Out>,
    call: Option<&'a Call<Op, Out>>,
    floors: &Floors,
    checked: &mut Checked,
) -> Result<Option<&'a Out>, String>
where
    K: std::fmt::Debug,
    Op: std::fmt::Debug + PartialEq,
{
    let (index, key) = (effect.index, effect.key.as_ref());
    let Some(call) = call else {
        return Err(format!("{key:?} took effect at {index} and nobody asked for it"));
    };
    if call.op != effect.op {
        return Err(format!("{key:?} at {index}: {:?} was asked, not {:?}", call.op, effect.op));
    }
    let floor = floors.at(call.invoked);
    if index <= floor {
        return Err(format!(
            "{key:?} took effect at {index}, but {floor} had been answered before it was asked"
        ));
    }
    match &call.fate {
        Fate::Answered { index: told, .. } if *told != index => {
            Err(format!("{key:?} took effect at {index}, its caller was told {told}"))
        }
        Fate::Answered { out, .. } => {
            checked.changes += 1;
            Ok(Some(out))
        }
        Fate::Refused => Err(format!("{key:?} took effect at {index}, its caller was told never")),
        Fate::Unknown => {
            checked.unheard += 1;
            Ok(None)
        }
    }
}

fn look<M: Model>(
    model: &mut M,
    read: &Call<M::Op, M::Out>,
    checked: &mut Checked,
) -> Result<(), String>
where
    M::Op: std::fmt::Debug,
{
    let Fate::Answered { index, out, .. } = &read.fate else { return Ok(()) };
    checked.reads += 1;
    let right = model.step(&read.op, &[out]);
    right.map_err(|why| format!("a read as of index {index}, {:?}: {why}", read.op))
}
