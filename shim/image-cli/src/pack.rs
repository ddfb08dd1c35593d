//! `coracle image pack`: makes an image of a WebAssembly module or component, as an OCI layout or in a registry.
//!
//! Called by: the commands. Calls: `module` (what is in the file), `plug` (composes it with others), `layout` and `push` (where
//! the image goes). Invariants: the same files give the same image, byte for byte; no daemon is needed.
//! Must not know: how images are run.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::error::Error;
use crate::module::Module;
use crate::oci::{MANIFEST, Packed, descriptor, digest};
use crate::plug::{self, Part};
use crate::print::Output;
use crate::registry::{Registries, RegistryArgs};
use crate::{layout, push};

/// The largest module that is packed, and the largest that is plugged into it. Bytes.
const MAX_MODULE_BYTES: u64 = 1 << 30;
/// Media types of the config and the layer of an artifact.
const ARTIFACT_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const MODULE: &str = "application/wasm";
/// Media types of the config and the layer of an image.
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Arguments of `pack`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// The module or component
    pub file: PathBuf,
    /// A component that exports what the file imports: both become one; may be repeated, what only a dependency imports after it
    #[arg(long, value_name = "FILE")]
    pub plug: Vec<PathBuf>,
    /// The name of the image: REGISTRY/REPOSITORY:TAG
    #[arg(long = "ref", short = 't', value_name = "NAME")]
    pub reference: String,
    /// Write an OCI layout: a tar if the name ends in .tar or is -, else a directory
    #[arg(long, short, value_name = "PATH", required_unless_present = "push")]
    pub output: Option<PathBuf>,
    /// Push it to its registry
    #[arg(long)]
    pub push: bool,
    /// The form of the image
    #[arg(long, value_enum, default_value_t = Form::Artifact)]
    pub form: Form,
    /// The world that a component is for, as wasi:http/proxy@0.2.0
    #[arg(long, value_name = "WORLD")]
    pub target: Option<String>,
    /// How the registry is used
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The forms of an image for WebAssembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// The artifact that the CNCF specifies: the module is the layer
    Artifact,
    /// A wasi/wasm image with the module as /app.wasm, for runtimes that know no artifacts
    Image,
}

/// Packs a file and writes or pushes the image. Errors: it is no module, or cannot be read, written or pushed.
pub(crate) async fn run(registries: &Registries, args: PackArgs) -> Result<u8, Error> {
    let (bytes, created) = content(&args)?;
    let module = Module::read(&bytes)
        .map_err(|problem| Error::because(&args.file.display().to_string(), problem))?;
    let packed = pack(&bytes, &module, created, &args)?;
    let digest = digest(&packed.manifest);
    let mut out = Output::default();
    if let Some(path) = &args.output {
        layout::write(path, &args.reference, &packed)?;
        if path.as_os_str() == "-" {
            return Ok(0);
        }
    }
    if args.push {
        push::packed(&args.registry, registries, &args.reference, &packed).await?;
    }
    if args.json {
        out.json(&json!({"reference": args.reference, "digest": digest, "size": bytes.len()}));
    } else {
        out.line(&format!("{} {digest}", args.reference));
    }
    out.print()
}

/// The module, composed with what is plugged into it, and the time that the newest of the files was written. Seconds since 1970.
fn content(args: &PackArgs) -> Result<(Vec<u8>, i64), Error> {
    let (mut bytes, mut created) = read(&args.file)?;
    for path in &args.plug {
        let (dependency, written) = read(path)?;
        let (main, dependency) = (
            Part {
                path: &args.file,
                bytes: &bytes,
            },
            Part {
                path,
                bytes: &dependency,
            },
        );
        bytes = plug::compose(main, dependency)?;
        created = created.max(written);
    }
    Ok((bytes, created))
}

/// The file, and the time that it was written. Seconds since 1970.
fn read(path: &Path) -> Result<(Vec<u8>, i64), Error> {
    let failed = |error| Error::because(&format!("read {}", path.display()), error);
    let file = File::open(path).map_err(failed)?;
    let created = file.metadata().map_err(failed)?.mtime();
    let mut bytes = Vec::new();
    file.take(MAX_MODULE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_MODULE_BYTES {
        let (path, most) = (path.display(), MAX_MODULE_BYTES >> 20);
        return Err(Error::new(format!("{path} is larger than {most} MiB")));
    }
    Ok((bytes, created))
}

fn pack(bytes: &[u8], module: &Module, created: i64, args: &PackArgs) -> Result<Packed, Error> {
    let created = jiff::Timestamp::from_second(created)
        .map_err(|error| Error::because("read the time of the file", error))?;
    let created = created.to_string();
    let (config_type, config, layer_type, layer) = match args.form {
        Form::Artifact => {
            let config = artifact_config(module, &created, &digest(bytes), args.target.as_deref());
            (ARTIFACT_CONFIG, config, MODULE, bytes.to_vec())
        }
        Form::Image => {
            let layer = tar(bytes)?;
            let config = json!({
                "created": created, "os": module.os(), "architecture": "wasm",
                "config": {"Entrypoint": ["/app.wasm"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
            });
            (IMAGE_CONFIG, config, LAYER, layer)
        }
    };
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(config_type, &config), "layers": [descriptor(layer_type, &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    Ok(Packed {
        manifest,
        blobs: vec![config, layer],
    })
}

/// The config of an artifact. Source: CNCF TAG Runtime, Wasm OCI artifact layout.
fn artifact_config(module: &Module, created: &str, layer: &str, target: Option<&str>) -> Value {
    let mut config = json!({
        "created": created, "architecture": "wasm", "os": module.os(), "layerDigests": [layer],
    });
    if let Module::Component { imports, exports } = module {
        config["component"] = json!({"imports": imports, "exports": exports});
        if let Some(target) = target {
            config["component"]["target"] = json!(target);
        }
    }
    config
}

fn tar(module: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::because("make a layer", error);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(module.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "app.wasm", module)
        .map_err(failed)?;
    tar.into_inner().map_err(failed)
}
