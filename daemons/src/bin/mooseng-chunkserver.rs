#[cfg(not(feature = "sim"))]
fn main() -> std::process::ExitCode {
    mooseng_daemons::chunkserver::main()
}

#[cfg(feature = "sim")]
fn main() {
    mooseng_daemons::refuse_simulated_build();
}
