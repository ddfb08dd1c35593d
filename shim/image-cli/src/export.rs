//! `coracle image export`: an image of the daemon becomes an OCI layout in a tar.
//!
//! Called by: the commands, and by `push` for an image of the store. Invariants: a file appears under its name only when it is
//! whole; the tar is streamed, never held in memory; a reader that closes standard output is no error.
//! Must not know: what is in the tar.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use coracle_proto::archives::v1::{ExportRequest, ExportedImage};
use serde_json::{Value, json};

use crate::client::Client;
use crate::error::Error;
use crate::print::Output;
use crate::progress::{Count, counted, line};

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The image, by name or id
    pub image: String,
    /// The file to write: a tar; - for standard output
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// Of a name with an image for Linux and one for WebAssembly, the one for this platform, as linux/amd64 or wasi/wasm; both
    /// unless given
    #[arg(long, value_name = "OS[/ARCH]", default_value = "")]
    pub platform: String,
    /// As a JSON array, one object for each image
    #[arg(long)]
    pub json: bool,
}

/// Exports an image. Errors: the daemon's refusal, or the file cannot be written.
pub(crate) async fn run(mut client: Client, args: ExportArgs) -> Result<u8, Error> {
    let request = ExportRequest {
        image: args.image.clone(),
        platform: args.platform.clone(),
    };
    if args.output.as_os_str() == "-" {
        let mut out = BufWriter::new(io::stdout().lock());
        // A reader that has left wants no more: that is no failure.
        receive(&mut client, request, &mut out).await?;
        return Ok(0);
    }
    let images = to_file(&mut client, request, &args.output).await?;
    let mut out = Output::default();
    if args.json {
        out.json(&images.iter().map(exported).collect());
    } else {
        for image in &images {
            let names = image.names.join(" ");
            out.line(format!("{} {} {names}", image.id, image.digest).trim_end());
        }
    }
    out.print()
}

fn exported(image: &ExportedImage) -> Value {
    json!({
        "id": image.id, "names": image.names, "digest": image.digest, "asReceived": image.as_received,
    })
}

/// What became of an export.
pub(crate) enum Received {
    Whole(Vec<ExportedImage>),
    /// The reader of `out` has left.
    NotWanted,
}

/// Writes an export to `path`.
async fn to_file(
    client: &mut Client,
    request: ExportRequest,
    path: &Path,
) -> Result<Vec<ExportedImage>, Error> {
    let failed = |error: io::Error| Error::because(&format!("write {}", path.display()), error);
    // A device or a FIFO is written as it is; nothing may take its place.
    if fs::metadata(path).is_ok_and(|facts| !facts.is_file()) {
        let mut out = File::options().write(true).open(path).map_err(failed)?;
        return match receive(client, request, &mut out).await? {
            Received::Whole(images) => Ok(images),
            Received::NotWanted => Err(failed(io::ErrorKind::BrokenPipe.into())),
        };
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = Part(PathBuf::from(name));
    let mut out = BufWriter::new(File::create_new(&part.0).map_err(failed)?);
    match receive(client, request, &mut out).await? {
        Received::Whole(images) => {
            fs::rename(&part.0, path).map_err(failed)?;
            Ok(images)
        }
        Received::NotWanted => Err(failed(io::ErrorKind::BrokenPipe.into())),
    }
}

/// A file that is removed unless it was renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes an export to `out`. Errors: the daemon's refusal; the stream is not whole; `out` fails.
pub(crate) async fn receive(
    client: &mut Client,
    request: ExportRequest,
    out: &mut impl Write,
) -> Result<Received, Error> {
    let (image, count) = (request.image.clone(), Count::default());
    let reply = client.archives.export(request).await;
    let mut parts = client.answer(reply)?;
    let work = async {
        loop {
            let part = match parts.message().await {
                Err(status) => return Err(client.refused(&status)),
                Ok(None) => return Err(Error::new(format!("the export of {image} broke off"))),
                Ok(Some(part)) => part,
            };
            if let Some(head) = part.head {
                count.expect(head.total_bytes);
                if !head.as_received {
                    line(REPACKED);
                }
            }
            count.add(part.data.len() as u64);
            let mut written = out.write_all(&part.data);
            if !part.images.is_empty() {
                written = written.and_then(|()| out.flush());
            }
            match written {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(Received::NotWanted);
                }
                written => written.map_err(|error| Error::because("write the archive", error))?,
            }
            if !part.images.is_empty() {
                return Ok(Received::Whole(part.images));
            }
        }
    };
    counted(&format!("exporting {image}"), &count, work).await
}

/// Said when layers are not the ones that were received.
const REPACKED: &str = "the store does not have this image as it was received: it is packed anew, with other digests and \
    another id (images.keep_blobs = true keeps what is pulled from then on)";
