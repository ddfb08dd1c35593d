//! Compiles `api.proto` with protox, so that no `protoc` is needed, and writes two files to `OUT_DIR`:
//! the generated module `runtime.v1.rs`, and `descriptor.bin`, the descriptor set it was made from. Our own protocols,
//! `archives.proto` and `admin.proto`, become the modules `coracle.archives.v1.rs` and `coracle.admin.v1.rs`; the messages
//! of plugins, `nri.proto`, become `coracle.nri.v1.rs`.

use std::error::Error;
use std::path::PathBuf;

/// Messages that carry secrets: their `Debug` is written by hand in `src/redact.rs`.
const SECRET_MESSAGES: [&str; 2] = [".runtime.v1.AuthConfig", ".runtime.v1.KeyValue"];
/// The same for `nri.proto`: a container's environment, a plugin's configuration.
const PLUGIN_SECRETS: [&str; 3] = [
    ".coracle.nri.v1.KeyValue",
    ".coracle.nri.v1.Container",
    ".coracle.nri.v1.ConfigureRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=api.proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).open_file("api.proto")?;
    let descriptors = compiler.file_descriptor_set();
    compiler.include_source_info(false);
    std::fs::write(
        out.join("descriptor.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(SECRET_MESSAGES)
        .compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=archives.proto");
    let own = protox::compile(["archives.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(own)?;
    println!("cargo::rerun-if-changed=admin.proto");
    let admin = protox::compile(["admin.proto"], ["."])?;
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_fds(admin)?;
    println!("cargo::rerun-if-changed=nri.proto");
    let nri = protox::compile(["nri.proto"], ["."])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(PLUGIN_SECRETS)
        .compile_fds(nri)?;
    Ok(())
}
