//! Writes the seeds of the fuzzer's corpora, beside whatever else is in them:
//! `cargo run --example fuzz_corpus`.
#![expect(clippy::disallowed_methods, reason = "it writes files of the repository")]

use mooseng_proptests::decoders::ALL;
use std::path::Path;

fn main() {
    for decoder in ALL {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(decoder.name);
        std::fs::create_dir_all(&dir).expect("a directory");
        for (number, seed) in (decoder.seeds)().into_iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number}")), &seed).expect("a file");
            println!("{} seed-{number}: {} bytes", decoder.name, seed.len());
        }
    }
}
