//! `coracle image`: the images of the running daemon, for people and scripts; and `coracle image pack`, which makes some.
//!
//! Called by: the binary, with the CRI socket of the configuration. All but `pack` goes through that socket: CRI where it has
//! a call, else the daemon's own service for archives.
//! Invariants: results go to standard output, as text or as JSON, everything else to standard error; a closed pipe is no
//! error; an archive is streamed, never held in memory.
//! Must not know: the image store, configuration files.

mod client;
mod error;
mod export;
mod layout;
mod module;
mod oci;
mod pack;
mod plug;
mod print;
mod progress;
mod push;
mod registry;
mod source;
mod upload;

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use coracle_proto::archives::v1::ListTransfersRequest;
use coracle_proto::runtime::v1 as cri;

use client::Client;
pub use error::Error;
pub use export::ExportArgs;
pub use pack::{Form, PackArgs};
use print::Output;
use progress::{Count, State};
pub use push::PushArgs;
pub use registry::{FindLogin, Login, Registries, RegistryArgs};

/// Longest password that is read. Bytes.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;

/// The subcommands of `coracle image`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List images
    Ls(LsArgs),
    /// Pull an image from its registry
    Pull(PullArgs),
    /// Remove images with all their names
    Rm(RmArgs),
    /// Print all that is known about an image, as JSON
    Inspect(InspectArgs),
    /// Import images from archives or OCI layouts
    Import(ImportArgs),
    /// Write an image as an OCI layout in a tar
    Export(ExportArgs),
    /// Push an image, or an OCI layout, to a registry
    Push(PushArgs),
    /// Make an image of a WebAssembly module or component, without a daemon
    Pack(PackArgs),
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only this image
    pub image: Option<String>,
    /// As a JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The image
    pub image: String,
    /// User name for the registry; the password is read from standard input
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// The RuntimeClass handler that the image is for: it decides which entry of an index is pulled
    #[arg(long, value_name = "NAME", default_value = "")]
    pub handler: String,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The images, by name or id
    #[arg(required = true)]
    pub images: Vec<String>,
    /// As a JSON array of the names that were removed
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The image, by name or id
    pub image: String,
    /// JSON is what it prints anyway
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Archives (tar, plain or compressed with gzip or zstd: OCI layout or docker-archive), directories of OCI layouts, or -
    #[arg(required = true)]
    pub archives: Vec<PathBuf>,
    /// The name of the only image in the archive, instead of those that the archive says
    #[arg(long = "ref", value_name = "NAME")]
    pub reference: Option<String>,
    /// Keep the kubelet from collecting the images
    #[arg(long)]
    pub pin: bool,
    /// As a JSON array
    #[arg(long)]
    pub json: bool,
}

/// Runs a subcommand against the daemon that listens on `socket`; pushes use `registries`. Returns the exit code.
///
/// Errors: the daemon does not answer, or its refusal.
pub fn main(command: Command, socket: &Path, registries: &Registries) -> Result<u8, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::because("start a runtime", error))?;
    runtime.block_on(async {
        let client = Client::new(socket);
        match command {
            Command::Ls(args) => ls(client, args).await,
            Command::Pull(args) => pull(client, args).await,
            Command::Rm(args) => rm(client, args).await,
            Command::Inspect(args) => inspect(client, args).await,
            Command::Import(args) => import(client, args).await,
            Command::Export(args) => export::run(client, args).await,
            Command::Push(args) => push::run(client, registries, args).await,
            Command::Pack(args) => pack::run(registries, args).await,
        }
    })
}

async fn ls(mut client: Client, args: LsArgs) -> Result<u8, Error> {
    let filter = args.image.map(|name| cri::ImageFilter {
        image: Some(spec(&name)),
    });
    let request = cri::ListImagesRequest { filter };
    let reply = client.images.list_images(request).await;
    let images = client.answer(reply)?.images;
    let mut out = Output::default();
    if args.json {
        out.json(&images.iter().map(print::image).collect());
    } else {
        out.table(&images);
    }
    out.print()
}

async fn pull(mut client: Client, args: PullArgs) -> Result<u8, Error> {
    let auth = match args.username {
        Some(username) => Some(cri::AuthConfig {
            username,
            password: password()?,
            ..Default::default()
        }),
        None => None,
    };
    let mut image = spec(&args.image);
    image.runtime_handler = args.handler;
    let request = cri::PullImageRequest {
        image: Some(image),
        auth,
        sandbox_config: None,
    };
    let (doing, archives) = (format!("pulling {}", args.image), client.archives.clone());
    let look = || transfer(archives.clone(), args.image.clone());
    let reply = progress::watch(&doing, client.images.pull_image(request), look).await;
    let id = client.answer(reply)?.image_ref;
    let mut out = Output::default();
    if args.json {
        let status = client.status(&id, false).await?;
        out.json(
            &status
                .image
                .as_ref()
                .map_or_else(Default::default, print::image),
        );
    } else {
        out.line(&id);
    }
    out.print()
}

/// How far the pull of an image, or the import of an archive, is. `None`: not begun, or the daemon does not say.
async fn transfer(mut archives: client::Archives, name: String) -> Option<State> {
    let reply = archives.list_transfers(ListTransfersRequest { name }).await;
    let transfer = reply.ok()?.into_inner().transfers.into_iter().next()?;
    let (layers, unpacked) = (transfer.layers, transfer.unpacked_layers);
    Some(State {
        done: transfer.received_bytes,
        total: transfer.total_bytes,
        remark: match layers {
            0 => String::new(),
            _ => format!("{unpacked} of {layers} layers unpacked"),
        },
    })
}

async fn rm(mut client: Client, args: RmArgs) -> Result<u8, Error> {
    let mut removed = Vec::new();
    let mut failure = None;
    for name in &args.images {
        if let Err(error) = rm_one(&mut client, name).await {
            failure = Some(error);
            break;
        }
        removed.push(name.as_str());
    }
    // Also what was removed before one could not be.
    let mut out = Output::default();
    if args.json {
        out.json(&removed.into());
    } else {
        removed.iter().for_each(|name| out.line(name));
    }
    let code = out.print()?;
    failure.map_or(Ok(code), Err)
}

async fn rm_one(client: &mut Client, name: &str) -> Result<(), Error> {
    if client.status(name, false).await?.image.is_none() {
        return Err(Error::new(format!("there is no image {name}")));
    }
    let request = cri::RemoveImageRequest {
        image: Some(spec(name)),
    };
    let reply = client.images.remove_image(request).await;
    client.answer(reply)?;
    Ok(())
}

async fn inspect(mut client: Client, args: InspectArgs) -> Result<u8, Error> {
    let status = client.status(&args.image, true).await?;
    let Some(image) = &status.image else {
        return Err(Error::new(format!("there is no image {}", args.image)));
    };
    let mut out = Output::default();
    out.json(&print::details(image, &status.info));
    out.print()
}

async fn import(mut client: Client, args: ImportArgs) -> Result<u8, Error> {
    if args.reference.is_some() && args.archives.len() != 1 {
        return Err(Error::new(
            "--ref names the image of one archive, and there are several",
        ));
    }
    let mut images = Vec::new();
    for archive in &args.archives {
        let count = Count::default();
        let parts = upload::archive(archive, args.reference.as_deref(), args.pin, &count)?;
        let (doing, archives) = (
            format!("importing {}", archive.display()),
            client.archives.clone(),
        );
        let look = || sent_or_taken(&count, archives.clone(), archive);
        let reply = progress::watch(&doing, client.archives.import(parts.stream), look).await;
        // What keeps the archive from being read is more to the point than how the daemon saw the stream end.
        parts.failure.check()?;
        images.extend(client.answer(reply)?.images);
    }
    let mut out = Output::default();
    if args.json {
        out.json(&images.iter().map(print::imported).collect());
    } else {
        for image in &images {
            let names = if image.repo_tags.is_empty() {
                &image.repo_digests
            } else {
                &image.repo_tags
            };
            out.line(&format!("{} {}", image.id, names.join(" ")));
        }
    }
    out.print()
}

/// How far an import is: what is sent, then what the daemon has taken of it.
async fn sent_or_taken(count: &Count, archives: client::Archives, archive: &Path) -> Option<State> {
    let sent = count.state();
    if sent.done < sent.total {
        return Some(sent);
    }
    let taken = transfer(archives, archive.display().to_string()).await;
    Some(taken.unwrap_or(State {
        remark: "unpacking".to_owned(),
        ..sent
    }))
}

fn spec(name: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: name.to_owned(),
        user_specified_image: name.to_owned(),
        ..Default::default()
    }
}

/// The password on standard input, without the end of its line.
fn password() -> Result<String, Error> {
    let mut text = String::new();
    let read = io::stdin()
        .lock()
        .take(MAX_PASSWORD_BYTES)
        .read_to_string(&mut text);
    read.map_err(|error| Error::because("read the password from standard input", error))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
