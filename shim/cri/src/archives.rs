//! Import and export of archives, and how far pulls are: our own service beside CRI on the same socket. Root and its group
//! may connect there, and run any image.
//!
//! Called by tonic. Invariants: an archive goes to disk as it comes, within the store's limit, and is imported only if
//! its client has sent all of it; an export ends when its client leaves; of neither more than a few parts are in memory.
//! Must not know: formats of archives.

use std::io::{self, Write};
use std::time::Duration;

use coracle_images::{Export, Exported, Image, ImportRequest, Transfer};
use coracle_proto::archives::v1 as wire;
use coracle_proto::archives::v1::archive_service_server::ArchiveService;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::bad_request::BadRequest;
use super::events::{self, Ending, Replies};
use super::status::Failure;
use super::{Cri, Shared, answered, span};

/// Bytes of one part of an export.
const PART_BYTES: usize = 1 << 20;
/// Parts that wait for the client.
const PARTS: usize = 4;
/// How long a client may take nothing of its export, or send nothing of its archive: the one occupies a place of few, the other
/// the disk. A part is whole when it counts, and what clients read from or write to may be slow.
const PATIENCE: Duration = Duration::from_secs(600);
/// Exports at a time; others wait. Each occupies a thread, and a processor if it packs layers.
static EXPORTS: Semaphore = Semaphore::const_new(2);

#[tonic::async_trait]
impl ArchiveService for Cri {
    type ExportStream = Replies<wire::ExportResponse>;

    async fn import(
        &self,
        request: Request<Streaming<wire::ImportRequest>>,
    ) -> Result<Response<wire::ImportResponse>, Status> {
        (self.0.on_call)();
        // It takes as long as the archive needs; its client cancels it.
        let call = span::call(
            "coracle.archives.v1.ArchiveService/Import",
            request.metadata(),
        );
        answered(call, None, import(&self.0, request.into_inner())).await
    }

    async fn export(
        &self,
        request: Request<wire::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        (self.0.on_call)();
        let call = span::call(
            "coracle.archives.v1.ArchiveService/Export",
            request.metadata(),
        );
        answered(call, None, export(&self.0, request.into_inner())).await
    }

    async fn list_transfers(
        &self,
        request: Request<wire::ListTransfersRequest>,
    ) -> Result<Response<wire::ListTransfersResponse>, Status> {
        let transfers = self.0.images.transfers(&request.into_inner().name);
        let transfers = transfers.into_iter().map(transfer).collect();
        Ok(Response::new(wire::ListTransfersResponse { transfers }))
    }
}

async fn import(
    shared: &Shared,
    mut parts: Streaming<wire::ImportRequest>,
) -> Result<wire::ImportResponse, Failure> {
    let mut part = next(&mut parts).await?;
    let first = part
        .take()
        .ok_or_else(|| BadRequest::invalid("the stream", "has no message"))?;
    let request = ImportRequest {
        name: first.name,
        reference: Some(first.reference).filter(|name| !name.is_empty()),
        pin: first.pin,
        ..ImportRequest::default()
    };
    span::image(&request.name);
    let mut archive = shared.images.receive_archive().await?;
    archive.write(&first.data).await?;
    let mut is_whole = first.last;
    while let Some(part) = next(&mut parts).await? {
        archive.write(&part.data).await?;
        is_whole = part.last;
    }
    if !is_whole {
        return Err(BadRequest::invalid("the stream", "ended before the archive").into());
    }
    let images = shared.images.import_received(archive, &request).await?;
    for image in &images {
        if let Err(problem) = shared.pods.prepare_image(image, "").await {
            warn!(digest = %image.id, failure = problem.chain(), "the image was imported, but its module did not compile: its containers will be refused");
        }
    }
    let images = images.iter().map(|image| imported(image)).collect();
    Ok(wire::ImportResponse { images })
}

/// The next part of the archive; `None` at its end.
async fn next(
    parts: &mut Streaming<wire::ImportRequest>,
) -> Result<Option<wire::ImportRequest>, BadRequest> {
    let broken = |status: Status| {
        let problem = format!("broke off: {}", status.message());
        BadRequest::invalid("the stream", problem)
    };
    match tokio::time::timeout(PATIENCE, parts.message()).await {
        Ok(part) => part.map_err(broken),
        Err(_) => {
            let problem = format!("brought nothing for {PATIENCE:?}");
            Err(BadRequest::invalid("the stream", problem))
        }
    }
}

fn imported(image: &Image) -> wire::ImportedImage {
    wire::ImportedImage {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
    }
}

/// Begins an export. What goes wrong later ends its stream with a status.
async fn export(
    shared: &Shared,
    request: wire::ExportRequest,
) -> Result<Replies<wire::ExportResponse>, Failure> {
    span::image(&request.image);
    let platform = Some(request.platform).filter(|platform| !platform.is_empty());
    let name = request.image;
    // The semaphore is never closed, so this cannot fail.
    let permit = EXPORTS.acquire().await.ok();
    let export = shared.images.export(&name, platform.as_deref()).await?;
    let (sender, receiver) = mpsc::channel(PARTS);
    let (end, ended) = events::ending();
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        send(export, sender, &end);
    });
    Ok(events::until(receiver, ended))
}

/// Sends an export to its end. Blocking.
fn send(export: Export, sender: mpsc::Sender<Result<wire::ExportResponse, Status>>, end: &Ending) {
    let head = wire::ExportHead {
        as_received: export.is_as_received(),
        total_bytes: export.total_bytes().unwrap_or(0),
    };
    let mut parts = Parts {
        sender,
        pending: wire::ExportResponse {
            head: Some(head),
            ..Default::default()
        },
        patience: PATIENCE,
        is_over: false,
        end: end.clone(),
    };
    let last = match export.write_to(&mut parts) {
        Ok(images) => {
            let mut last = std::mem::take(&mut parts.pending);
            last.images = images.into_iter().map(exported).collect();
            Ok(last)
        }
        // Nobody is there to be told.
        Err(_) if parts.is_over => return,
        Err(error) => Err(Failure::from(error).into_status("Export")),
    };
    if parts.send(last).is_ok() {
        end.whole();
    }
}

/// Makes messages of what is written.
struct Parts {
    sender: mpsc::Sender<Result<wire::ExportResponse, Status>>,
    /// The message that is being filled.
    pending: wire::ExportResponse,
    patience: Duration,
    /// The client has left, or takes nothing.
    is_over: bool,
    end: Ending,
}

impl Parts {
    /// Waits until the client has taken earlier ones. Errors: it has left, or has taken nothing for too long.
    fn send(&mut self, part: Result<wire::ExportResponse, Status>) -> io::Result<()> {
        let sent = Handle::current().block_on(self.sender.send_timeout(part, self.patience));
        self.is_over = sent.is_err();
        sent.map_err(|error| match error {
            SendTimeoutError::Closed(_) => io::ErrorKind::BrokenPipe.into(),
            SendTimeoutError::Timeout(_) => {
                self.end.slow_client(self.patience);
                io::ErrorKind::TimedOut.into()
            }
        })
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PART_BYTES - self.pending.data.len();
        let count = bytes.len().min(room);
        self.pending.data.extend_from_slice(&bytes[..count]);
        if count == room {
            self.flush()?;
        }
        Ok(count)
    }

    /// Sends what there is. Errors: the client has left, or takes nothing.
    fn flush(&mut self) -> io::Result<()> {
        if self.pending.data.is_empty() {
            let is_open = !self.sender.is_closed();
            return is_open
                .then_some(())
                .ok_or_else(|| io::ErrorKind::BrokenPipe.into());
        }
        let part = std::mem::take(&mut self.pending);
        self.send(Ok(part))
    }
}

fn exported(image: Exported) -> wire::ExportedImage {
    wire::ExportedImage {
        id: image.id,
        names: image.names,
        digest: image.digest.to_string(),
        as_received: image.is_as_received,
    }
}

fn transfer(transfer: Transfer) -> wire::Transfer {
    wire::Transfer {
        reference: transfer.reference,
        archive: transfer.archive.unwrap_or_default(),
        received_bytes: transfer.received_bytes,
        total_bytes: transfer.total_bytes,
        layers: transfer.layers,
        unpacked_layers: transfer.unpacked_layers,
        seconds: transfer.elapsed.as_secs_f64(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn an_export_whose_client_takes_nothing_ends_and_gives_its_place_back() {
        let (sender, receiver) = mpsc::channel(1);
        let (end, ended) = events::ending();
        let mut parts = Parts {
            sender,
            pending: wire::ExportResponse::default(),
            patience: Duration::from_millis(50),
            is_over: false,
            end,
        };
        let writing = tokio::task::spawn_blocking(move || {
            let written = parts.write_all(&vec![7; 3 * PART_BYTES]);
            written.unwrap_err().kind()
        });
        let written = tokio::time::timeout(Duration::from_secs(60), writing).await;
        assert_eq!(written.unwrap().unwrap(), io::ErrorKind::TimedOut);
        let sent: Vec<_> = events::until(receiver, ended).collect().await;
        assert_eq!(sent.len(), 2);
        let error = sent[1].as_ref().unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
    }
}
