//! The network between machines: cuts in both directions or one, and latency.

use super::absence::Why;
use super::{Role, World};
use crate::trace::{self, Kind};
use madsim::net::NetSim;
use std::time::Duration;

impl World {
    /// Cuts every link from a machine of `from` to one of `to`; frames wait until it is mended.
    pub fn cut_one_way(&self, from: &[String], to: &[String]) {
        trace::say(Kind::Cut, "net", &format!("cut {} -> {}", from.join(","), to.join(",")));
        self.links(from, to, true);
        self.apart(from, to, Why::Cut, true);
    }

    /// Cuts every link between the two groups.
    pub fn cut(&self, a: &[String], b: &[String]) {
        trace::say(Kind::Cut, "net", &format!("cut {} <> {}", a.join(","), b.join(",")));
        self.links(a, b, true);
        self.links(b, a, true);
        self.apart(a, b, Why::Cut, true);
    }

    /// Mends every link between the two groups.
    pub fn join(&self, a: &[String], b: &[String]) {
        trace::say(Kind::Mended, "net", &format!("mended {} <> {}", a.join(","), b.join(",")));
        self.links(a, b, false);
        self.links(b, a, false);
        self.apart(a, b, Why::Cut, false);
    }

    /// Chunkservers of one group and masters of the other are cut off from each other, or no more.
    fn apart(&self, a: &[String], b: &[String], why: fn(String) -> Why, begins: bool) {
        let servers = self.names(Role::Chunkserver);
        let masters = self.names(Role::Master);
        for (here, there) in [(a, b), (b, a)] {
            for server in here.iter().filter(|name| servers.contains(name)) {
                for master in there.iter().filter(|name| masters.contains(name)) {
                    let why = why(master.clone());
                    match begins {
                        true => self.absences.begin(server, why),
                        false => self.absences.end(server, &why),
                    }
                }
            }
        }
    }

    /// Frames from machines of `from` to those of `to` vanish; nobody is told.
    pub fn hole(&self, from: &[String], to: &[String]) {
        self.apart(from, to, Why::Hole, true);
        let to: Vec<String> = to.iter().map(|name| self.node(name).ip().to_string()).collect();
        let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (a.clone(), b.clone())));
        self.frames.set_holes(|holes| holes.extend(pairs));
    }

    /// Frames between two machines are so much late, milliseconds, until further notice.
    pub fn slow_link(&self, a: &str, b: &str, late_ms: u64) {
        for (from, to) in [(a, b), (b, a)] {
            let link = (from.to_owned(), self.node(to).ip().to_string());
            self.frames.set_late(link, Duration::from_millis(late_ms));
        }
    }

    /// Frames arrive again.
    pub fn no_holes(&self) {
        let all = self.all_names();
        self.apart(&all, &all, Why::Hole, false);
        self.frames.set_holes(std::collections::BTreeSet::clear);
    }

    /// Mends every link.
    pub fn join_all(&self) {
        let all = self.all_names();
        self.links(&all, &all, false);
        self.apart(&all, &all, Why::Cut, false);
    }

    fn links(&self, from: &[String], to: &[String], is_cut: bool) {
        let net = NetSim::current();
        for a in from {
            for b in to.iter().filter(|b| *b != a) {
                let (one, other) = (self.node(a), self.node(b));
                match is_cut {
                    true => net.clog_link(one.id(), other.id()),
                    false => net.unclog_link(one.id(), other.id()),
                }
                // A handshake needs both directions, and they are only ever mended together.
                self.frames.set_cut((a.clone(), other.ip().to_string()), is_cut);
                self.frames.set_cut((b.clone(), one.ip().to_string()), is_cut);
            }
        }
    }

    /// Messages take between these times from now on.
    pub fn latency(&self, least: Duration, most: Duration) {
        NetSim::current().update_config(|config| config.send_latency = least..most);
    }

    /// Messages take what the options say.
    pub fn usual_latency(&self) {
        trace::say(Kind::Lag, "net", "messages take what is usual");
        let net = &self.options.net;
        let (least, most) = (net.latency_us_min, net.latency_us_max.max(net.latency_us_min + 1));
        self.latency(Duration::from_micros(least), Duration::from_micros(most));
    }
}
