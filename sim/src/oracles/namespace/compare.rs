//! Answers of the state machine beside those of the model.

use mooseng::pb;
use mooseng_proptests::Stat;

/// Attributes that must be answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expect {
    /// These.
    Is(Stat),
    /// Those of an inode that lost its last name just now, and that nobody holds.
    Gone(u64),
}

/// What must be answered to an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Expected {
    /// Errno.
    pub errno: i32,
    /// The inode.
    pub attr: Option<Expect>,
    /// Its directory.
    pub parent: Option<Expect>,
    /// Renames: the target directory.
    pub new_parent: Option<Expect>,
    /// What lost a name, or gave its name away.
    pub victim: Option<Expect>,
}

/// Whether the answer is what must be answered.
pub fn agree(expected: &Expected, result: &pb::OpResult) -> Result<(), String> {
    if result.errno != expected.errno {
        return Err(format!("answered errno {}, must be {expected:?}", result.errno));
    }
    let pairs = [
        ("inode", &expected.attr, &result.attr),
        ("directory", &expected.parent, &result.parent),
        ("target directory", &expected.new_parent, &result.new_parent),
        ("victim", &expected.victim, &result.victim),
    ];
    for (what, expected, attr) in pairs {
        let right = match (expected, attr) {
            (None, None) => true,
            (Some(Expect::Is(stat)), Some(attr)) => Stat::of(attr.inode, attr) == *stat,
            (Some(Expect::Gone(ino)), Some(attr)) => attr.inode == *ino && attr.nlink == 0,
            _ => false,
        };
        if !right {
            return Err(format!("{what}: answered {attr:?}, must be {expected:?}"));
        }
    }
    Ok(())
}
