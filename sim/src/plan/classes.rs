//! Classes of faults. A run may leave some of them out: everything is drawn as before, and what belongs to such
//! a class is dropped where it would strike. That shows what a class is good for: with a planted bug that
//! nobody sees without it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A class of faults that a run can leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FaultClass {
    /// kill -9 of a process.
    Kill,
    /// One machine loses power.
    PowerLoss,
    /// All machines lose power at once.
    Blackout,
    /// Kills and power losses inside a call of a disk; without it at once.
    InsideCall,
    /// Un-synced sectors that a power loss drops; without it all are kept.
    LostSectors,
    /// Un-synced sectors of which a power loss leaves a part; without it nothing of them is left.
    TornSectors,
    /// Un-synced names that a power loss drops; without it all are kept.
    LostNames,
    /// A process stops for a while.
    Pause,
    /// A client stops for longer than its session lives.
    ClientFrozen,
    /// Two groups cannot reach each other.
    Partition,
    /// One direction between two groups is cut.
    OneWayCut,
    /// One machine reaches nobody.
    Isolation,
    /// Frames between two groups vanish, both ways; connections stay.
    BlackHole,
    /// Frames in one direction vanish.
    HalfOpen,
    /// Messages take up to half a second.
    Lag,
    /// Frames of one link come late.
    SlowLink,
    /// Single requests are lost.
    RequestLost,
    /// Single replies are lost.
    ReplyLost,
    /// Single frames arrive twice.
    FrameDoubled,
    /// Single frames come late.
    FrameDelayed,
    /// Connections break at single frames.
    ConnectionCut,
    /// Handlers are dropped at one of their awaits.
    HandlerDropped,
    /// A wall clock jumps.
    ClockStep,
    /// Wall clocks are wrong from the beginning.
    ClockOffset,
    /// Clocks are too fast or too slow.
    ClockDrift,
    /// Calls of a disk are slow.
    SlowDisk,
    /// Reads of a disk fail.
    EioOnRead,
    /// Writes of a disk fail.
    EioOnWrite,
    /// fsyncs of a disk fail.
    EioOnFsync,
    /// A master's write or fsync fails once.
    MasterEio,
    /// A disk is full.
    FullDisk,
    /// A process has no descriptor left for an open.
    OutOfFiles,
    /// Bytes flip.
    Rot,
    /// Writes go elsewhere in their file.
    MisdirectedWrite,
    /// Reads give what is elsewhere in their file.
    MisdirectedRead,
    /// A chunkserver comes back with an empty disk.
    DiskLost,
    /// A chunkserver comes back with a disk it had before.
    OldDisk,
    /// A chunkserver is drained.
    Drain,
    /// A chunkserver is away until it counts as dead.
    LongAway,
    /// A chunkserver joins.
    ServerAdded,
    /// A master joins.
    MasterAdded,
    /// A master loses its disk and joins anew.
    MasterWiped,
    /// A master comes back with nothing but its superblock.
    MasterBare,
    /// Something rare and legal happens at a fault point of the library.
    FaultPoint,
}

use FaultClass::*;

impl FaultClass {
    /// All of them, in this order.
    pub fn all() -> impl Iterator<Item = FaultClass> {
        FaultClass::value_variants().iter().copied()
    }

    /// Classes without which this one can not strike at all.
    fn carriers(self) -> &'static [FaultClass] {
        match self {
            InsideCall => &[Kill, PowerLoss],
            LostSectors | TornSectors | LostNames => &[PowerLoss, Blackout],
            OldDisk => &[DiskLost],
            _ => &[],
        }
    }

    /// Whether it is only a manner in which others strike.
    fn manner(self) -> bool {
        matches!(self, InsideCall | LostSectors | TornSectors | LostNames)
    }

    /// What is off when this class alone is on. What it needs is on too; and if it is a class that strikes in
    /// several manners, all of them are, as a power loss that loses nothing is none.
    pub fn alone(self) -> BTreeSet<FaultClass> {
        let on = |class: &FaultClass| {
            let manner_of_it = class.manner() && class.carriers().contains(&self);
            *class == self || self.carriers().contains(class) || (!self.manner() && manner_of_it)
        };
        FaultClass::all().filter(|class| !on(class)).collect()
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl FromStr for FaultClass {
    type Err = String;

    fn from_str(text: &str) -> Result<FaultClass, String> {
        let found = FaultClass::all().find(|class| class.to_string() == text);
        found.ok_or_else(|| {
            let known: Vec<String> = FaultClass::all().map(|class| class.to_string()).collect();
            format!("{text:?} is none of {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_stands_once_under_a_name_that_finds_it() {
        let all: BTreeSet<FaultClass> = FaultClass::all().collect();
        assert_eq!(all.len(), FaultClass::all().count());
        for class in all {
            assert_eq!(class.to_string().parse(), Ok(class));
        }
        assert_eq!(LostSectors.to_string(), "lost-sectors");
        assert!("thunder".parse::<FaultClass>().is_err());
    }

    #[test]
    fn alone_is_a_class_with_what_makes_it_strike() {
        let on = |class: FaultClass| -> Vec<FaultClass> {
            let off = class.alone();
            FaultClass::all().filter(|class| !off.contains(class)).collect()
        };
        assert_eq!(on(Rot), [Rot]);
        assert_eq!(on(Blackout), [Blackout, LostSectors, TornSectors, LostNames]);
        assert_eq!(on(PowerLoss), [PowerLoss, InsideCall, LostSectors, TornSectors, LostNames]);
        assert_eq!(on(LostNames), [PowerLoss, Blackout, LostNames]);
        assert_eq!(on(InsideCall), [Kill, PowerLoss, InsideCall]);
        assert_eq!((on(OldDisk), on(DiskLost)), (vec![DiskLost, OldDisk], vec![DiskLost]));
    }
}
