//! The RPCs of the image service: convert the request, pass it to the store, render the reply.
//!
//! Called by `service`. Invariants: an absent image is not an error for ImageStatus and RemoveImage; a pull ends when
//! its last caller goes; a module that does not compile is an error of the container, not of the pull.
//! Must not know: registries, disk.

use std::sync::Arc;

use coracle_images::{FsInfo, Image};
use coracle_proto::runtime::v1 as cri;
use tracing::{info, warn};

use super::calls;
use super::convert;
use super::events::{Replies, replies};
use super::stats::written;
use super::status::{Failure, or_absent};
use super::{Shared, span};

/// PullImage: returns the image's id, once the image is on disk and its module compiled.
pub(super) async fn pull(
    shared: Arc<Shared>,
    request: cri::PullImageRequest,
) -> Result<cri::PullImageResponse, Failure> {
    let order = convert::pull_order(request, &shared.policies.get())?;
    span::image(&order.reference);
    let counted = calls::begin_pull();
    let namespace = order.namespace.clone();
    let pulled = shared.images.pull(order).await;
    counted.end(pulled.as_ref().err());
    let image = pulled?;
    if let Err(problem) = shared.pods.prepare_image(&image, &namespace).await {
        warn!(digest = %image.id, failure = problem.chain(), "the image was pulled, but its module did not compile: its containers will be refused");
    }
    Ok(convert::pull_reply(&image))
}

/// ImageStatus: OK without an image when there is none.
pub(super) async fn status(
    shared: Arc<Shared>,
    request: cri::ImageStatusRequest,
) -> Result<cri::ImageStatusResponse, Failure> {
    let (name, platform) = convert::named_image(&request, &shared.policies.get())?;
    span::image(name);
    let image = shared.images.resolve_for(name, platform);
    Ok(convert::image_status_reply(image.as_deref(), &request))
}

/// RemoveImage: removes all tags of the image; running containers keep its content.
pub(super) async fn remove(
    shared: Arc<Shared>,
    request: cri::RemoveImageRequest,
) -> Result<cri::RemoveImageResponse, Failure> {
    let (name, _) = convert::named_image(&request, &shared.policies.get())?;
    span::image(name);
    if or_absent(shared.images.remove(name).await)?.is_some() {
        info!("image removed");
    }
    Ok(cri::RemoveImageResponse {})
}

/// ListImages.
pub(super) async fn list(
    shared: Arc<Shared>,
    request: cri::ListImagesRequest,
) -> Result<cri::ListImagesResponse, Failure> {
    let chosen = chosen(&shared, convert::listed_image(request));
    Ok(convert::list(
        chosen.iter().map(|image| convert::image(image)),
    ))
}

/// StreamImages: the same list in several messages.
pub(super) async fn stream(
    shared: Arc<Shared>,
    request: cri::StreamImagesRequest,
) -> Result<Replies<cri::StreamImagesResponse>, Failure> {
    let chosen = chosen(&shared, convert::listed_image(request));
    Ok(replies(
        chosen.into_iter().map(|image| convert::image(&image)),
    ))
}

/// ImageFsInfo: from counters, without a walk. Compiled code counts: it goes with the image that it was made from. Where
/// images have a file system of their own, the other one has compiled code and writable layers.
pub(super) async fn fs_info(
    shared: Arc<Shared>,
    _: cri::ImageFsInfoRequest,
) -> Result<cri::ImageFsInfoResponse, Failure> {
    let mut images = shared.images.fs_info();
    let counts = shared.pods.counts();
    let (bytes, files) = (counts.compiled_bytes, counts.compiled_files);
    if !shared.node.splits_images {
        images.used_bytes += bytes;
        images.inodes_used += files;
        return Ok(convert::filesystem_usage(&images, &images));
    }
    let (written_bytes, written_files) = written(&shared).await?;
    let layers = FsInfo {
        mountpoint: shared.node.layers_dir.clone(),
        used_bytes: bytes + written_bytes,
        layer_bytes: 0,
        inodes_used: files + written_files,
    };
    Ok(convert::filesystem_usage(&images, &layers))
}

/// All images, or the one that `name` resolves to.
fn chosen(shared: &Shared, name: Option<String>) -> Vec<Arc<Image>> {
    match name {
        Some(name) => shared.images.resolve(&name).into_iter().collect(),
        None => shared.images.list(),
    }
}
