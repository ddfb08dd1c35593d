//! Import of archives, our own service beside CRI on the same socket: root and its group may connect there, and run any
//! image.
//!
//! Called by tonic. Invariant: an archive goes to disk as it comes, within the store's limit, and is imported only if
//! its client has sent all of it; nothing of it is kept in memory.
//! Must not know: formats of archives.

use coracle_images::{Image, ImportRequest};
use coracle_proto::archives::v1 as wire;
use coracle_proto::archives::v1::archive_service_server::ArchiveService;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::bad_request::BadRequest;
use super::status::Failure;
use super::{Cri, Shared, answered, span};

#[tonic::async_trait]
impl ArchiveService for Cri {
    async fn import(
        &self,
        request: Request<Streaming<wire::ImportRequest>>,
    ) -> Result<Response<wire::ImportResponse>, Status> {
        (self.0.on_call)();
        // It takes as long as the archive needs; its client cancels it.
        answered("Import", None, import(&self.0, request.into_inner())).await
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
        if let Err(problem) = shared.pods.prepare_image(image).await {
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
    parts.message().await.map_err(broken)
}

fn imported(image: &Image) -> wire::ImportedImage {
    wire::ImportedImage {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
    }
}
