//! Compiles the .proto files without protoc: protox parses them, the tonic build (whose output serves both
//! worlds, the simulated one in `OUT_DIR/sim`) writes the types and the gRPC services.

use prost::Message;
use std::path::PathBuf;

const FILES: [&str; 6] = [
    "proto/fs.proto",
    "proto/raft.proto",
    "proto/chunk.proto",
    "proto/disk.proto",
    "proto/admin.proto",
    "proto/wire.proto",
];

#[expect(clippy::disallowed_methods, reason = "a build script writes into OUT_DIR")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES.iter().chain(&["proto/build.rs"]) {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["proto"])?;
    let path = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(&path, descriptors.encode_to_vec())?;
    tonic_build::configure()
        .bytes(["."])
        .btree_map(["."])
        .file_descriptor_set_path(&path)
        .skip_protoc_run()
        .emit_rerun_if_changed(false)
        .compile_protos(&FILES, &["proto"])?;
    Ok(())
}
