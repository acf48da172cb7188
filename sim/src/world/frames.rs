//! Every frame that leaves or reaches a process: it goes into the trace, before the oracles, and may be lost,
//! doubled, delayed, or break its connection; a handler may be dropped at one of its awaits. Dials of machines that
//! are off or cut off get no answer, not even a refusal.

use super::node;
use super::options::NetOptions;
use crate::plan::{Fate, FrameKey};
use crate::rng::Rng;
use crate::{plan, stats, trace};
use mooseng::checksum::crc32c;
use mooseng::limits::Limits;
use mooseng::wire::Identity;
use mooseng::wire::calls;
use mooseng::wire::frame::Kind;
use mooseng::wire::hook::{self, FrameInfo, Hook, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// An oracle that sees frames. The names are those of the machine that sends or receives.
pub trait Watcher: Send + Sync + 'static {
    /// A frame is about to leave; it may be lost afterwards.
    fn sent(&self, node: &str, frame: &FrameInfo<'_>);
    /// A frame has arrived.
    fn received(&self, _node: &str, _frame: &FrameInfo<'_>) {}
}

/// What happens to frames.
pub struct Frames {
    rng: Mutex<Rng>,
    options: NetOptions,
    quiet: AtomicBool,
    watchers: RwLock<Vec<Box<dyn Watcher>>>,
    /// Sending machine and receiving address between which every frame vanishes.
    holes: Mutex<BTreeSet<(String, String)>>,
    /// The same, and by how much every frame is late.
    late: Mutex<BTreeMap<(String, String), Duration>>,
    /// Dialling machine and address between which something is cut, in whichever direction: no handshake ends.
    cut: Mutex<BTreeSet<(String, String)>>,
    /// Addresses of machines without power.
    dark: Mutex<BTreeSet<String>>,
    /// How long a dial waits that nobody answers.
    patience: Duration,
    /// By sending machine.
    runs: Mutex<BTreeMap<String, Run>>,
}

/// What is left of several requests of one machine that are lost one after another.
#[derive(Default)]
struct Run {
    lost: u32,
    spared: u32,
}

/// Counts dials of machines that are off or cut off.
pub const UNANSWERED: &str = "dial that nobody answered";

/// Requests that arrive after a run of lost ones: enough to be pointed to somebody else and asking that one.
const SPARED: u32 = 3;

struct Hooked(Arc<Frames>);

impl Frames {
    pub(super) fn install(rng: Rng, options: NetOptions, limits: &Limits) -> Arc<Frames> {
        let frames = Arc::new(Frames {
            rng: Mutex::new(rng),
            options,
            quiet: AtomicBool::new(false),
            watchers: RwLock::new(Vec::new()),
            holes: Mutex::default(),
            late: Mutex::default(),
            cut: Mutex::default(),
            dark: Mutex::default(),
            patience: limits.connect_deadline,
            runs: Mutex::default(),
        });
        hook::install(Box::new(Hooked(frames.clone())));
        frames
    }

    /// From now on nothing happens to frames.
    pub fn quiet(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    /// Whether that is so.
    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Frames from these machines to these addresses vanish until further notice; connections stay.
    pub(super) fn set_holes(&self, change: impl FnOnce(&mut BTreeSet<(String, String)>)) {
        change(&mut self.holes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Frames of this link are so much late from now on.
    pub(super) fn set_late(&self, link: (String, String), late: Duration) {
        let mut links = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        match late.is_zero() {
            true => _ = links.remove(&link),
            false => _ = links.insert(link, late),
        }
    }

    /// Dials from this machine to this address are answered, or not.
    pub(super) fn set_cut(&self, link: (String, String), is_cut: bool) {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        _ = if is_cut { cut.insert(link) } else { cut.remove(&link) };
    }

    /// Whether a machine at this address has power.
    pub(super) fn set_dark(&self, address: String, is_dark: bool) {
        let mut dark = self.dark.lock().unwrap_or_else(PoisonError::into_inner);
        _ = if is_dark { dark.insert(address) } else { dark.remove(&address) };
    }

    /// Whether nobody refuses a dial either: the machine has no power, or something is cut on the way.
    fn is_silent(&self, node: &str, remote: &str) -> bool {
        let link = link(node, remote);
        let dark = self.dark.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        dark.contains(&link.1) || cut.contains(&link)
    }

    /// By how much a frame is late because its link is slow.
    fn lateness(&self, node: &str, remote: &str) -> Option<Duration> {
        let links = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let fast = links.is_empty() || self.is_quiet();
        if fast { None } else { links.get(&link(node, remote)).copied() }
    }

    fn vanishes(&self, node: &str, remote: &str) -> bool {
        let holes = self.holes.lock().unwrap_or_else(PoisonError::into_inner);
        !holes.is_empty() && holes.contains(&link(node, remote))
    }

    /// Shows every frame to an oracle.
    pub fn watch(&self, watcher: impl Watcher) {
        self.watchers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(watcher));
    }

    fn show(&self, look: impl Fn(&dyn Watcher)) {
        let watchers = self.watchers.read().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().for_each(|watcher| look(watcher.as_ref()));
    }

    fn rng<T>(&self, work: impl FnOnce(&mut Rng) -> T) -> T {
        work(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn verdict(&self, node: &str, frame: &FrameInfo<'_>) -> Verdict {
        if self.is_quiet() || !matters(frame) || !self.is_struck(frame) {
            return Verdict::Deliver;
        }
        match plan::frame_fate(key(node, frame, false), || self.draw_of(node, frame)) {
            None | Some(Fate::DroppedAfter(_)) => Verdict::Deliver,
            Some(Fate::Lost) => strikes(lost(frame), Verdict::Drop),
            Some(Fate::Doubled) => strikes("fault: frame doubled", Verdict::Duplicate),
            Some(Fate::LateMs(ms)) => {
                strikes("fault: frame delayed", Verdict::Delay(Duration::from_millis(ms)))
            }
            Some(Fate::Cut) => strikes("fault: connection cut", Verdict::Cut),
        }
    }

    /// Whether this is one of the calls that faults are for.
    fn is_struck(&self, frame: &FrameInfo<'_>) -> bool {
        let (only, name) = (&self.options.only, calls::name(frame.method));
        only.is_empty() || name.is_some_and(|name| only.iter().any(|one| one == name))
    }

    fn draw_of(&self, node: &str, frame: &FrameInfo<'_>) -> Option<Fate> {
        let most = self.options.lost_in_a_row;
        if most == 0 {
            return self.draw();
        }
        if !frame.is_request {
            return None;
        }
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run = runs.entry(node.to_owned()).or_default();
        if run.lost == 0 && run.spared == 0 {
            let drawn = self.draw();
            if drawn == Some(Fate::Lost) {
                *run = Run { lost: most - 1, spared: SPARED };
            }
            return drawn;
        }
        if run.lost > 0 {
            run.lost -= 1;
            return Some(Fate::Lost);
        }
        run.spared -= 1;
        None
    }

    fn draw(&self) -> Option<Fate> {
        let options = &self.options;
        self.rng(|rng| {
            if rng.hit(options.lose) {
                return Some(Fate::Lost);
            }
            if rng.hit(options.duplicate) {
                return Some(Fate::Doubled);
            }
            if rng.hit(options.delay) {
                let ms = rng.range(1, options.delay_ms_max.max(2));
                // A heavy tail: one in sixteen comes when most callers have given up.
                return Some(Fate::LateMs(if rng.chance(1, 16) { 10 * ms } else { ms }));
            }
            rng.hit(options.cut).then_some(Fate::Cut)
        })
    }

    fn draw_cancel(&self) -> Option<Fate> {
        let cancel = self.options.cancel;
        self.rng(|rng| rng.hit(cancel).then(|| Fate::DroppedAfter(rng.below(6) as u32)))
    }
}

/// The sending machine and the receiving address.
fn link(node: &str, remote: &str) -> (String, String) {
    (node.to_owned(), remote.split(':').next().unwrap_or_default().to_owned())
}

fn strikes(counter: &str, verdict: Verdict) -> Verdict {
    stats::count(counter);
    verdict
}

/// How the plan names a frame.
fn key(node: &str, frame: &FrameInfo<'_>, handler: bool) -> FrameKey {
    let peer = frame.remote.rsplit_once(':').map_or(frame.remote, |(host, _)| host);
    let method = calls::name(frame.method).map_or(frame.method.to_string(), str::to_owned);
    let request = frame.is_request;
    FrameKey { node: node.to_owned(), peer: peer.to_owned(), method, request, handler }
}

fn lost(frame: &FrameInfo<'_>) -> &'static str {
    if frame.is_request { "fault: request lost" } else { "fault: reply lost" }
}

/// Calls and their answers; handshakes and upkeep are left alone.
fn matters(frame: &FrameInfo<'_>) -> bool {
    matches!(frame.kind, Kind::Request | Kind::Reply | Kind::Refusal)
}

fn record(event: &str, node: &str, frame: &FrameInfo<'_>) {
    let mut payload = Vec::with_capacity(64);
    payload.extend_from_slice(&frame.method.to_le_bytes());
    payload.push(u8::from(frame.is_request));
    payload.extend_from_slice(&frame.request_id.to_le_bytes());
    payload.extend_from_slice(frame.remote.as_bytes());
    payload.extend_from_slice(&crc32c(frame.body).to_le_bytes());
    for piece in frame.payload {
        payload.extend_from_slice(&crc32c(piece).to_le_bytes());
    }
    trace::event(event, node, &payload);
}

impl Hook for Hooked {
    fn on_send(&self, frame: &FrameInfo<'_>) -> Verdict {
        let node = node::here();
        record("send", &node, frame);
        self.0.show(|watcher| watcher.sent(&node, frame));
        if self.0.vanishes(&node, frame.remote) {
            stats::count("fault: frame vanished");
            return Verdict::Drop;
        }
        match (self.0.verdict(&node, frame), self.0.lateness(&node, frame.remote)) {
            (Verdict::Deliver, Some(late)) if matters(frame) => Verdict::Delay(late),
            (Verdict::Delay(more), Some(late)) => Verdict::Delay(more + late),
            (verdict, _) => verdict,
        }
    }

    fn on_recv(&self, frame: &FrameInfo<'_>) -> Verdict {
        let node = node::here();
        record("receive", &node, frame);
        self.0.show(|watcher| watcher.received(&node, frame));
        Verdict::Deliver
    }

    fn on_dial_error(&self, _local: &Identity, address: &str) -> Option<Duration> {
        if !self.0.is_silent(&node::here(), address) {
            return None;
        }
        stats::count(UNANSWERED);
        Some(self.0.patience)
    }

    fn polls_allowed(&self, request: &FrameInfo<'_>) -> Option<u32> {
        if self.0.is_quiet() || !self.0.is_struck(request) {
            return None;
        }
        let key = key(&node::here(), request, true);
        match plan::frame_fate(key, || self.0.draw_cancel())? {
            Fate::DroppedAfter(polls) => {
                stats::count("fault: handler dropped");
                Some(polls)
            }
            _ => None,
        }
    }
}
