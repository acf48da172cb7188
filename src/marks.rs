//! Marks tie rare branches to the tests that must reach them, and switch planted bugs.
//!
//! `mark!("torn tail cut")` counts that a branch was reached; `maybe!(cond, "name")` that a condition was
//! true at least once; `bug!(M01)` is false unless a test switched that planted mistake on; `fault!("queue full")` is true now and
//! then in a simulation that asked for it, where something rare may happen that everybody must bear. All four are
//! compiled to nothing (false) without the feature `sim`, except in this crate's own unit tests.
//! `invariant!(cond, "why")` panics in every build; only simulations can switch it off.

#[cfg(any(feature = "sim", test))]
mod active {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

    #[derive(Default)]
    struct State {
        hits: BTreeMap<&'static str, u64>,
        bug: Option<String>,
        bug_reached: u64,
    }

    static STATE: Mutex<State> =
        Mutex::new(State { hits: BTreeMap::new(), bug: None, bug_reached: 0 });
    static ASSERTING: AtomicBool = AtomicBool::new(true);
    static POINTS: OnceLock<fn(&'static str) -> bool> = OnceLock::new();

    fn state() -> MutexGuard<'static, State> {
        STATE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one passage.
    pub fn hit(name: &'static str) {
        *state().hits.entry(name).or_default() += 1;
    }

    /// How often each mark was passed in this process.
    pub fn hits() -> BTreeMap<&'static str, u64> {
        state().hits.clone()
    }

    /// Switches one planted bug on (`Some("M01")`) or all off.
    pub fn plant(bug: Option<&str>) {
        state().bug = bug.map(str::to_owned);
    }

    /// Whether the planted bug is the one asked for; counts that its site was reached.
    pub fn bug(name: &str) -> bool {
        let mut state = state();
        let on = state.bug.as_deref() == Some(name);
        state.bug_reached += u64::from(on);
        on
    }

    /// How often the planted bug's site was reached.
    pub fn bug_reached() -> u64 {
        state().bug_reached
    }

    /// Asks `fires` from now on whether a fault point fires; the first call counts.
    pub fn watch_faults(fires: fn(&'static str) -> bool) {
        let _ = POINTS.set(fires);
    }

    /// Whether the fault point of this name fires; never where nobody watches.
    pub fn fault(name: &'static str) -> bool {
        POINTS.get().is_some_and(|fires| fires(name))
    }

    /// Whether `invariant!` panics. Switched off, it shows what the oracles see without it.
    pub fn assert_invariants(on: bool) {
        ASSERTING.store(on, Ordering::Relaxed);
    }

    /// Whether `invariant!` panics.
    pub fn asserting() -> bool {
        ASSERTING.load(Ordering::Relaxed)
    }
}

/// Whether `invariant!` panics: always, outside of simulations.
#[cfg(not(any(feature = "sim", test)))]
pub const fn asserting() -> bool {
    true
}

#[cfg(any(feature = "sim", test))]
pub use active::*;

/// Counts that this branch was reached (simulations and unit tests only).
#[macro_export]
macro_rules! mark {
    ($name:literal) => {
        #[cfg(any(feature = "sim", test))]
        $crate::marks::hit($name)
    };
}

/// Counts that the condition was true.
#[macro_export]
macro_rules! maybe {
    ($cond:expr, $name:literal) => {
        #[cfg(any(feature = "sim", test))]
        if $cond {
            $crate::marks::hit($name)
        }
    };
}

/// Panics if the condition does not hold: what this library promises itself. Simulations can switch it off, to
/// show that their oracles see the same from the outside.
#[macro_export]
macro_rules! invariant {
    ($cond:expr, $($why:tt)+) => {
        if !$cond && $crate::marks::asserting() {
            panic!("invariant: {}", format_args!($($why)+))
        }
    };
}

/// True where a planted bug is switched on; constant false without the feature `sim`.
#[macro_export]
macro_rules! bug {
    ($name:ident) => {{
        #[cfg(any(feature = "sim", test))]
        {
            $crate::marks::bug(stringify!($name))
        }
        #[cfg(not(any(feature = "sim", test)))]
        {
            false
        }
    }};
}

/// True now and then in simulations that switched fault points on: something rare and legal happens here. Constant
/// false without the feature `sim`.
#[macro_export]
macro_rules! fault {
    ($name:literal) => {{
        #[cfg(any(feature = "sim", test))]
        {
            $crate::marks::fault($name)
        }
        #[cfg(not(any(feature = "sim", test)))]
        {
            false
        }
    }};
}
