//! Small requests and replies with a single field, and the split of a long list into messages.
//!
//! Called by `pods`, `containers` and `images`. Invariants: a list contains each object once; one message fits the
//! kubelet's client, and one of a streamed list comes near that limit only if a single object does.
//! Must not know: how an object is rendered.

use coracle_images::Image;
use coracle_proto::runtime::v1 as cri;
use coracle_spec::id::{ContainerId, PodId};
use prost::Message;

use super::fit::{Cuttable, fit};
use super::{BadRequest, ContainerFilter, PodFilter};

/// Bytes in one message of a streamed list before the next one begins.
const BATCH_BYTES: usize = 1 << 20;

macro_rules! reads_filter {
    ($filter:ident: $($request:ident),+) => {
        $(impl TryFrom<cri::$request> for $filter {
            type Error = BadRequest;

            fn try_from(request: cri::$request) -> Result<Self, BadRequest> {
                Self::read(request.filter)
            }
        })+
    };
}

reads_filter!(PodFilter: ListPodSandboxRequest, StreamPodSandboxesRequest);
reads_filter!(ContainerFilter: ListContainersRequest, StreamContainersRequest);

/// A reply that consists of one list.
pub(crate) trait ListReply {
    /// The type of its items.
    type Item: Message;

    /// The reply that contains exactly `items`.
    fn of(items: Vec<Self::Item>) -> Self;
}

macro_rules! list_reply {
    ($($reply:ident { $field:ident: $item:ident }),+ $(,)?) => {
        $(impl ListReply for cri::$reply {
            type Item = cri::$item;

            fn of($field: Vec<cri::$item>) -> Self {
                Self { $field }
            }
        })+
    };
}

list_reply! {
    ListPodSandboxResponse { items: PodSandbox },
    StreamPodSandboxesResponse { pod_sandboxes: PodSandbox },
    ListContainersResponse { containers: Container },
    StreamContainersResponse { containers: Container },
    ListImagesResponse { images: Image },
    StreamImagesResponse { images: Image },
    ListContainerStatsResponse { stats: ContainerStats },
    StreamContainerStatsResponse { container_stats: ContainerStats },
    ListPodSandboxStatsResponse { stats: PodSandboxStats },
    StreamPodSandboxMetricsResponse { pod_sandbox_metrics: PodSandboxMetrics },
    StreamPodSandboxStatsResponse { pod_sandbox_stats: PodSandboxStats },
}

/// `items` as a series of replies, each rendered when the client takes it; none for an empty list.
pub(crate) fn batches<R: ListReply>(
    items: impl Iterator<Item = R::Item>,
) -> impl Iterator<Item = R> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        let mut batch = vec![items.next()?];
        let mut size = batch[0].encoded_len();
        while let Some(next) = items.next_if(|next| size + next.encoded_len() <= BATCH_BYTES) {
            size += next.encoded_len();
            batch.push(next);
        }
        Some(R::of(batch))
    })
}

/// `items` as one reply, without their longest texts if it would be too large.
pub(crate) fn list<R>(items: impl Iterator<Item = R::Item>) -> R
where
    R: ListReply,
    R::Item: Cuttable,
{
    let mut items: Vec<R::Item> = items.collect();
    fit(&mut items);
    R::of(items)
}

/// The reply of RunPodSandbox.
pub(crate) fn run_pod_reply(id: &PodId) -> cri::RunPodSandboxResponse {
    cri::RunPodSandboxResponse {
        pod_sandbox_id: id.to_string(),
    }
}

/// The reply of CreateContainer.
pub(crate) fn create_reply(id: &ContainerId) -> cri::CreateContainerResponse {
    cri::CreateContainerResponse {
        container_id: id.to_string(),
    }
}

/// The reply of PullImage.
pub(crate) fn pull_reply(image: &Image) -> cri::PullImageResponse {
    cri::PullImageResponse {
        image_ref: image.id.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn image(id: usize, weight: usize) -> cri::Image {
        cri::Image {
            id: id.to_string(),
            username: "x".repeat(weight),
            ..Default::default()
        }
    }

    #[test]
    fn a_streamed_list_shows_each_object_once_in_bounded_messages() {
        let all: Vec<_> = (0..40).map(|id| image(id, 100_000)).collect();
        let sent: Vec<cri::StreamImagesResponse> = batches(all.clone().into_iter()).collect();
        assert!(sent.len() > 1);
        assert!(
            sent.iter()
                .all(|message| message.encoded_len() <= BATCH_BYTES + 1024)
        );
        let received: Vec<_> = sent
            .into_iter()
            .flat_map(|message| message.images)
            .collect();
        assert_eq!(received, all);
    }

    #[test]
    fn an_object_larger_than_a_batch_is_sent_alone() {
        let sent: Vec<cri::StreamImagesResponse> =
            batches([image(0, 10), image(1, BATCH_BYTES * 2), image(2, 10)].into_iter()).collect();
        let sizes: Vec<_> = sent.iter().map(|message| message.images.len()).collect();
        assert_eq!(sizes, [1, 1, 1]);
    }

    #[test]
    fn an_empty_list_has_no_message() {
        assert_eq!(
            batches::<cri::StreamImagesResponse>(std::iter::empty()).count(),
            0
        );
    }
}
