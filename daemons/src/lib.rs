//! What the binaries share: configuration, logging, signals.

/// Says that this binary belongs to the simulated world, and exits with 2.
pub fn refuse_simulated_build() -> ! {
    eprintln!("built with feature sim; build without");
    std::process::exit(2);
}
