//! The only code that names fields of CRI messages: converts requests into checked configs, renders snapshots as
//! replies.
//!
//! Called by: every function in `cri/*` that answers a call, as its first and last step. `sandbox`, `container` and
//! `image` read requests; `render` writes replies; `filter` does both for lists.
//! Invariants: pure, no waiting and no I/O; the configs for the lifecycle contain no CRI message; labels and
//! annotations pass byte for byte; every refusal names the field at fault.
//! Must not know: whether an image, a path or a sandbox exists.

mod annotations;
mod check;
mod container;
mod diagnosis;
mod egress;
mod exec;
mod filter;
mod fit;
mod http;
mod image;
mod lists;
mod metrics;
mod mount;
mod namespaces;
mod network;
mod node;
mod render;
mod resources;
mod sandbox;
mod security;
mod signal;
mod stats;
mod streaming;
mod sysctl;
mod update;

use std::time::Duration;

use coracle_proto::runtime::v1 as cri;

pub(super) use self::container::container_config;
pub(super) use self::exec::exec_config;
pub(super) use self::filter::{ContainerFilter, PodFilter};
pub(super) use self::image::{
    filesystem_usage, image, image_status_reply, listed_image, named_image, pull_order,
};
pub(super) use self::lists::{ListReply, batches, create_reply, list, pull_reply, run_pod_reply};
pub(super) use self::metrics::{metric_descriptors, metrics_reply, pod_metrics};
pub(super) use self::node::{runtime_config_reply, status_reply, version_reply};
#[cfg(test)]
pub(super) use self::render::samples::event as sample_event;
pub(super) use self::render::{container, container_status_reply, event, pod, pod_status_reply};
pub(super) use self::sandbox::sandbox_config;
pub(super) use self::stats::{container_stats, pod_stats};
pub(super) use self::streaming::{attach_session, exec_session, forward_session};
pub(super) use self::update::{new_pod_resources, new_resources};
pub(super) use super::bad_request::BadRequest;

/// The longest object id or id prefix, in bytes.
const MAX_ID_BYTES: usize = 256;

/// The name of the container that a request wants to create; empty when it has none.
pub(super) fn new_container_name(request: &cri::CreateContainerRequest) -> &str {
    let config = request.config.as_ref();
    let metadata = config.and_then(|config| config.metadata.as_ref());
    metadata.map_or("", |metadata| metadata.name.as_str())
}

/// A request about one existing sandbox or container.
pub(super) trait NamesObject {
    /// The path of the field with its id.
    const FIELD: &'static str;

    /// The value of the field.
    fn named(&self) -> &str;

    /// The requested id, or prefix of an id: printable, not empty, bounded.
    fn object(&self) -> Result<&str, BadRequest> {
        let id = check::given(Self::FIELD, self.named())?;
        if id.len() > MAX_ID_BYTES {
            let problem = format!(
                "is {} bytes long, an id has at most {MAX_ID_BYTES}",
                id.len()
            );
            return Err(BadRequest::invalid(Self::FIELD, problem));
        }
        check::printable(Self::FIELD, id)?;
        Ok(id)
    }
}

macro_rules! names_object {
    ($field:ident: $($request:ident),+ $(,)?) => {
        $(impl NamesObject for cri::$request {
            const FIELD: &'static str = stringify!($field);

            fn named(&self) -> &str {
                &self.$field
            }
        })+
    };
}

names_object!(pod_sandbox_id: StopPodSandboxRequest, RemovePodSandboxRequest, PodSandboxStatusRequest);
names_object!(pod_sandbox_id: CreateContainerRequest);
names_object!(container_id: StartContainerRequest, StopContainerRequest, RemoveContainerRequest);
names_object!(container_id: ContainerStatusRequest, ReopenContainerLogRequest, ExecSyncRequest);
names_object!(container_id: ExecRequest, AttachRequest);
names_object!(pod_sandbox_id: PortForwardRequest);
names_object!(container_id: ContainerStatsRequest, UpdateContainerResourcesRequest);
names_object!(pod_sandbox_id: PodSandboxStatsRequest, UpdatePodSandboxResourcesRequest);

/// The grace period of a stop: whole seconds, 0 kills at once.
pub(super) fn grace(request: &cri::StopContainerRequest) -> Result<Duration, BadRequest> {
    match u64::try_from(request.timeout) {
        // More than a century is "for ever" for everybody, and keeps every sum of times in range.
        Ok(seconds) => Ok(Duration::from_secs(seconds.min(u64::from(u32::MAX)))),
        Err(_) => Err(BadRequest::invalid(
            "timeout",
            format!("is {}, less than 0", request.timeout),
        )),
    }
}

/// Checks UpdateRuntimeConfig. Nothing of it is used: the built-in network has its own subnet.
pub(super) fn runtime_config(
    request: &cri::UpdateRuntimeConfigRequest,
) -> Result<String, BadRequest> {
    let config = request.runtime_config.as_ref();
    let config = config.ok_or_else(|| BadRequest::invalid("runtime_config", "is missing"))?;
    Ok(config
        .network_config
        .as_ref()
        .map(|network| network.pod_cidr.clone())
        .unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn ids_are_given_printable_and_bounded() {
        let ask = |id: &str| cri::StartContainerRequest {
            container_id: id.into(),
        };
        assert_eq!(ask("abc123").object().unwrap(), "abc123");
        assert_eq!(
            ask("").object().unwrap_err().to_string(),
            "container_id is empty"
        );
        for odd in ["a\0b", "a\nb", &"f".repeat(MAX_ID_BYTES + 1)] {
            let refused = ask(odd).object().unwrap_err();
            assert!(
                matches!(&refused, BadRequest::Invalid { field, .. } if field == "container_id"),
                "{refused}"
            );
        }
    }

    #[test]
    fn grace_is_whole_seconds_from_zero_up() {
        let ask = |timeout| {
            grace(&cri::StopContainerRequest {
                container_id: "c".into(),
                timeout,
            })
        };
        assert_eq!(ask(0).unwrap(), Duration::ZERO);
        assert_eq!(ask(30).unwrap(), Duration::from_secs(30));
        assert!(ask(i64::MAX).unwrap() > Duration::from_secs(1 << 31));
        assert_eq!(
            ask(-1).unwrap_err().to_string(),
            "timeout is -1, less than 0"
        );
    }

    #[test]
    fn runtime_config_must_be_there() {
        let empty = cri::UpdateRuntimeConfigRequest::default();
        assert_eq!(
            runtime_config(&empty).unwrap_err().to_string(),
            "runtime_config is missing"
        );
    }
}
