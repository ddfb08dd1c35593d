//! A CRI client over a unix socket, as thin as it can be: every call is the protocol's, with a deadline.
//!
//! Replies and refusals are handed on as they come, since tests look at both. [`pod`] and [`container`] make the
//! smallest valid requests, to be changed field by field.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use cri::image_service_client::ImageServiceClient;
use cri::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// The largest message either side may send; kubelet's own limit.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// The deadline of a call, kubelet's default.
const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// How long [`Cri::wait_exit`] and friends look before they give up.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A client; reconnects by itself when the daemon comes back. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cri {
    /// The runtime service, for the calls that have no shorthand here.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The image service.
    pub images: ImageServiceClient<Channel>,
}

impl Cri {
    /// A client for this socket. Connects at the first call.
    pub fn new(socket: &Path) -> Self {
        let channel = channel(socket);
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
        }
    }

    /// Waits until Version is answered. Errors: the last refusal, when it never was within the deadline.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<(), Status> {
        let end = Instant::now() + deadline;
        loop {
            let request = cri::VersionRequest {
                version: String::new(),
            };
            match self.runtime.clone().version(request).await {
                Ok(_) => return Ok(()),
                Err(refusal) if Instant::now() > end => return Err(refusal),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// PullImage; gives the image's id.
    pub async fn pull(&self, reference: &str) -> Result<String, Status> {
        let request = cri::PullImageRequest {
            image: Some(image(reference)),
            ..Default::default()
        };
        Ok(self
            .images
            .clone()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    /// ImageStatus; `None` is an image that is not there.
    pub async fn image(&self, reference: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest {
            image: Some(image(reference)),
            verbose: false,
        };
        Ok(self
            .images
            .clone()
            .image_status(request)
            .await?
            .into_inner()
            .image)
    }

    /// ListImages without a filter.
    pub async fn list_images(&self) -> Result<Vec<cri::Image>, Status> {
        Ok(self
            .images
            .clone()
            .list_images(cri::ListImagesRequest::default())
            .await?
            .into_inner()
            .images)
    }

    /// RemoveImage.
    pub async fn remove_image(&self, reference: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest {
            image: Some(image(reference)),
        };
        self.images.clone().remove_image(request).await.map(drop)
    }

    /// RunPodSandbox with the default handler; gives the sandbox's id.
    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> Result<String, Status> {
        self.run_pod_with(config, "").await
    }

    /// RunPodSandbox with a named handler.
    pub async fn run_pod_with(
        &self,
        config: &cri::PodSandboxConfig,
        handler: &str,
    ) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        Ok(self
            .runtime
            .clone()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime
            .clone()
            .stop_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime
            .clone()
            .remove_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// PodSandboxStatus.
    pub async fn pod_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        let reply = self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        reply
            .status
            .ok_or_else(|| Status::internal("PodSandboxStatus answered without a status"))
    }

    /// ListPodSandbox.
    pub async fn list_pods(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, Status> {
        let request = cri::ListPodSandboxRequest { filter };
        Ok(self
            .runtime
            .clone()
            .list_pod_sandbox(request)
            .await?
            .into_inner()
            .items)
    }

    /// CreateContainer; gives the container's id.
    pub async fn create(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self
            .runtime
            .clone()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// StartContainer.
    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest {
            container_id: id.into(),
        };
        self.runtime
            .clone()
            .start_container(request)
            .await
            .map(drop)
    }

    /// StopContainer with a grace period in seconds.
    pub async fn stop(&self, id: &str, grace_s: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest {
            container_id: id.into(),
            timeout: grace_s,
        };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest {
            container_id: id.into(),
        };
        self.runtime
            .clone()
            .remove_container(request)
            .await
            .map(drop)
    }

    /// ContainerStatus.
    pub async fn status(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        let reply = self
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner();
        reply
            .status
            .ok_or_else(|| Status::internal("ContainerStatus answered without a status"))
    }

    /// ListContainers.
    pub async fn list(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Status> {
        let request = cri::ListContainersRequest { filter };
        Ok(self
            .runtime
            .clone()
            .list_containers(request)
            .await?
            .into_inner()
            .containers)
    }

    /// ReopenContainerLog.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = cri::ReopenContainerLogRequest {
            container_id: id.into(),
        };
        self.runtime
            .clone()
            .reopen_container_log(request)
            .await
            .map(drop)
    }

    /// Creates and starts a container. Gives its id.
    pub async fn create_started(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let id = self.create(pod, config, sandbox).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Waits until the container has exited, and gives its status. Errors: refusals, and [`Code::DeadlineExceeded`]
    /// when it still runs after [`TIMEOUT`].
    pub async fn wait_exit(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let status = self.status(id).await?;
            if status.state() == cri::ContainerState::ContainerExited {
                return Ok(status);
            }
            if Instant::now() > end {
                let text = format!(
                    "container {id} is still {:?} after {TIMEOUT:?}",
                    status.state()
                );
                return Err(Status::new(Code::DeadlineExceeded, text));
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Stops and removes every pod the daemon lists, with its containers. Errors: the first refusal.
    pub async fn remove_all_pods(&self) -> Result<(), Status> {
        for pod in self.list_pods(None).await? {
            self.stop_pod(&pod.id).await?;
            self.remove_pod(&pod.id).await?;
        }
        Ok(())
    }
}

/// A connection to this socket, made at the first call and again when it is lost.
pub fn channel(socket: &Path) -> Channel {
    let socket: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move {
            Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_DEADLINE);
    endpoint.connect_with_connector_lazy(connector)
}

/// An image named by a reference or an id.
pub fn image(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: reference.into(),
        user_specified_image: reference.into(),
        ..Default::default()
    }
}

/// The smallest pod: a name that is also its uid, in namespace `test`, in a network of its own.
pub fn pod(name: &str, log_directory: &Path, cgroup_parent: &str) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "test".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: log_directory.display().to_string(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.into(),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The smallest container: a name, an image, arguments, and the log `NAME.log`.
pub fn container(name: &str, image_reference: &str, args: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(image(image_reference)),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources::default()),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}
