//! Pure decisions about where shards live and what to repair next. The leader asks with what it knows of the
//! servers; the answer reaches the namespace inside a command, so every master applies the same choice.

mod choose;
mod repair;

pub use choose::{Candidate, NoRoom, choose, choose_one};
pub use repair::{Health, Repair, ServerView, health, plan};
