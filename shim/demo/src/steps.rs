//! The steps of the demo: the calls of a kubelet for one pod, in a kubelet's order.
//!
//! Called by: the demo, when daemon and registry answer. Calls: `timed_calls`, `log`. The pod has two containers of one
//! image: `greeter` prints and exits, `sleeper` waits until it is stopped.
//! Invariant: a reply that breaks the protocol is an error, not a line in the table.
//! Must not know: how the daemon was started, what is left when it has ended.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use cri::{ContainerState, PodSandboxState};

use super::error::Error;
use super::log::Logs;
use super::scratch::Scratch;
use super::timed_calls::{Calls, call, print_line, refused};

/// The exit code of `guest.wat`.
const EXIT_CODE: i32 = 7;
/// The contents of the file that is mounted into both containers.
const GREETING: &str = "hello from a file the pod mounted\n";
/// How long the greeter may take to exit.
const EXIT: Duration = Duration::from_secs(5);
/// Grace period of the sleeper's stop. Seconds.
const GRACE_S: i64 = 2;

/// Makes the calls of a pod's life. `image` is the reference to pull. Errors: a refusal, or a reply that breaks the
/// protocol.
pub async fn run(scratch: &Scratch, calls: &Calls, image: &str) -> Result<(), Error> {
    let steps = Steps::new(scratch, calls, image)?;
    steps.check_runtime().await?;
    let image_ref = steps.pull().await?;
    let pod = steps.run_pod().await?;
    let greeter = steps.create(&pod, "greeter", &["kubelet"]).await?;
    steps.start("greeter", &greeter).await?;
    steps.wait_for_exit(&greeter).await?;
    let waits = ["kubelet", "and-wait"];
    let sleeper = steps.create(&pod, "sleeper", &waits).await?;
    steps.start("sleeper", &sleeper).await?;
    steps.logs.wait_for_greeting("sleeper").await?;
    steps.stop(&sleeper).await?;
    steps.remove("greeter", &greeter).await?;
    steps.remove("sleeper", &sleeper).await?;
    steps.remove_pod(&pod).await?;
    steps.remove_image(&image_ref).await?;
    steps.logs.show("greeter")?;
    steps.logs.show("sleeper")?;
    print_line(format_args!("\ngreeter's exit code: {EXIT_CODE}"))
}

/// Stops and removes all pods, without output: for a demo that failed. Errors: the first refusal.
pub async fn undo(calls: &Calls) -> Result<(), Error> {
    let mut runtime = calls.runtime();
    let listed = runtime
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .await;
    let listed = listed.map_err(|status| refused("ListPodSandbox", "", &status))?;
    for pod in listed.into_inner().items {
        let stop = cri::StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let stopped = runtime.stop_pod_sandbox(stop).await;
        stopped.map_err(|status| refused("StopPodSandbox", &pod.id, &status))?;
        let remove = cri::RemovePodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let removed = runtime.remove_pod_sandbox(remove).await;
        removed.map_err(|status| refused("RemovePodSandbox", &pod.id, &status))?;
    }
    Ok(())
}

/// State of all steps.
struct Steps<'a> {
    calls: &'a Calls,
    image: cri::ImageSpec,
    pod: cri::PodSandboxConfig,
    /// Host directory of the mounted file.
    volume: PathBuf,
    logs: Logs,
}

impl Steps<'_> {
    fn new<'a>(scratch: &Scratch, calls: &'a Calls, image: &str) -> Result<Steps<'a>, Error> {
        let (volume, logs) = (scratch.make("volume")?, scratch.make("logs")?);
        let file = volume.join("greeting");
        std::fs::write(&file, GREETING).map_err(|error| Error::file("write", &file, error))?;
        let image = cri::ImageSpec {
            image: image.into(),
            user_specified_image: image.into(),
            ..Default::default()
        };
        let metadata = cri::PodSandboxMetadata {
            name: "demo".into(),
            uid: "coracle-demo".into(),
            namespace: "default".into(),
            attempt: 0,
        };
        let pod = cri::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: "demo".into(),
            log_directory: logs.display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..Default::default()
        };
        Ok(Steps {
            calls,
            image,
            pod,
            volume,
            logs: Logs {
                directory: logs,
                greeting: GREETING.trim_ascii_end(),
            },
        })
    }

    async fn check_runtime(&self) -> Result<(), Error> {
        let mut runtime = self.calls.runtime();
        let request = cri::VersionRequest {
            version: "v1".into(),
        };
        call("Version", "", runtime.version(request), |reply| {
            format!(
                "{} {}, CRI {}",
                reply.runtime_name, reply.runtime_version, reply.runtime_api_version
            )
        })
        .await?;
        let mut runtime = self.calls.runtime();
        let request = cri::StatusRequest { verbose: false };
        call("Status", "", runtime.status(request), |reply| {
            let conditions = reply.status.iter().flat_map(|status| &status.conditions);
            let parts =
                conditions.map(|condition| format!("{} {}", condition.r#type, condition.status));
            parts.collect::<Vec<_>>().join(", ")
        })
        .await
        .map(drop)
    }

    async fn pull(&self) -> Result<String, Error> {
        let mut images = self.calls.images();
        let image = Some(self.image.clone());
        let request = cri::PullImageRequest {
            image: image.clone(),
            ..Default::default()
        };
        let pulled = call("PullImage", "", images.pull_image(request), |reply| {
            short(&reply.image_ref)
        })
        .await?;
        let request = cri::ImageStatusRequest {
            image,
            verbose: false,
        };
        let seen = call(
            "ImageStatus",
            "",
            images.image_status(request),
            |reply| match &reply.image {
                Some(image) => format!("{} bytes, {}", image.size, image.repo_tags.join(", ")),
                None => "no such image".into(),
            },
        );
        let seen = seen.await?.image.map(|image| image.id).unwrap_or_default();
        same("the id of the pulled image", &pulled.image_ref, &seen)?;
        Ok(pulled.image_ref)
    }

    async fn run_pod(&self) -> Result<String, Error> {
        let mut runtime = self.calls.runtime();
        let request = cri::RunPodSandboxRequest {
            config: Some(self.pod.clone()),
            ..Default::default()
        };
        let request = runtime.run_pod_sandbox(request);
        let pod = call("RunPodSandbox", "pod", request, |reply| {
            short(&reply.pod_sandbox_id)
        })
        .await?
        .pod_sandbox_id;
        let mut runtime = self.calls.runtime();
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: pod.clone(),
            verbose: false,
        };
        let request = runtime.pod_sandbox_status(request);
        let reply = call("PodSandboxStatus", "pod", request, |reply| {
            let status = reply.status.clone().unwrap_or_default();
            let address = status.network.clone().unwrap_or_default().ip;
            format!("{}, address {address}", status.state().as_str_name())
        });
        let state = reply.await?.status.unwrap_or_default().state();
        same(
            "the sandbox's state",
            PodSandboxState::SandboxReady.as_str_name(),
            state.as_str_name(),
        )?;
        Ok(pod)
    }

    async fn create(&self, pod: &str, name: &str, arguments: &[&str]) -> Result<String, Error> {
        let volume = cri::Mount {
            container_path: "/config".into(),
            host_path: self.volume.display().to_string(),
            readonly: true,
            ..Default::default()
        };
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(self.image.clone()),
            command: vec![name.into()],
            args: arguments.iter().map(|&argument| argument.into()).collect(),
            mounts: vec![volume],
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(self.pod.clone()),
        };
        let mut runtime = self.calls.runtime();
        let request = runtime.create_container(request);
        let reply = call("CreateContainer", name, request, |reply| {
            short(&reply.container_id)
        })
        .await?;
        Ok(reply.container_id)
    }

    async fn start(&self, name: &str, id: &str) -> Result<(), Error> {
        let mut runtime = self.calls.runtime();
        let request = runtime.start_container(cri::StartContainerRequest {
            container_id: id.into(),
        });
        call("StartContainer", name, request, |_| "started".into())
            .await
            .map(drop)
    }

    /// Waits for the greeter's exit by polling, as a kubelet does, then prints one status.
    async fn wait_for_exit(&self, id: &str) -> Result<(), Error> {
        let deadline = Instant::now() + EXIT;
        let mut runtime = self.calls.runtime();
        loop {
            let request = cri::ContainerStatusRequest {
                container_id: id.into(),
                verbose: false,
            };
            let reply = runtime.container_status(request).await;
            let reply = reply.map_err(|status| refused("ContainerStatus", "greeter", &status))?;
            let status = reply.into_inner().status.unwrap_or_default();
            if status.state() == ContainerState::ContainerExited {
                break;
            }
            if Instant::now() > deadline {
                return Err(Error::new(format!(
                    "greeter has not exited within {EXIT:?}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let status = self.status("greeter", id).await?;
        same(
            "greeter's exit code",
            &EXIT_CODE.to_string(),
            &status.exit_code.to_string(),
        )
    }

    async fn stop(&self, id: &str) -> Result<(), Error> {
        let status = self.status("sleeper", id).await?;
        let running = ContainerState::ContainerRunning.as_str_name();
        same("sleeper's state", running, status.state().as_str_name())?;
        let mut runtime = self.calls.runtime();
        let request = cri::StopContainerRequest {
            container_id: id.into(),
            timeout: GRACE_S,
        };
        call(
            "StopContainer",
            "sleeper",
            runtime.stop_container(request),
            |_| "stopped".into(),
        )
        .await?;
        let status = self.status("sleeper", id).await?;
        let exited = ContainerState::ContainerExited.as_str_name();
        same("sleeper's state", exited, status.state().as_str_name())
    }

    async fn status(&self, name: &str, id: &str) -> Result<cri::ContainerStatus, Error> {
        let mut runtime = self.calls.runtime();
        let request = cri::ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        let reply = call(
            "ContainerStatus",
            name,
            runtime.container_status(request),
            |reply| {
                let status = reply.status.clone().unwrap_or_default();
                match status.state() {
                    ContainerState::ContainerExited => {
                        format!(
                            "exited, code {}, reason {}",
                            status.exit_code, status.reason
                        )
                    }
                    state => state.as_str_name().into(),
                }
            },
        );
        Ok(reply.await?.status.unwrap_or_default())
    }

    async fn remove(&self, name: &str, id: &str) -> Result<(), Error> {
        let mut runtime = self.calls.runtime();
        let request = runtime.remove_container(cri::RemoveContainerRequest {
            container_id: id.into(),
        });
        call("RemoveContainer", name, request, |_| "removed".into())
            .await
            .map(drop)
    }

    async fn remove_pod(&self, id: &str) -> Result<(), Error> {
        let mut runtime = self.calls.runtime();
        let request = runtime.stop_pod_sandbox(cri::StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        });
        call("StopPodSandbox", "pod", request, |_| "stopped".into()).await?;
        let mut runtime = self.calls.runtime();
        let request = runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        });
        call("RemovePodSandbox", "pod", request, |_| "removed".into())
            .await
            .map(drop)
    }

    async fn remove_image(&self, id: &str) -> Result<(), Error> {
        let mut images = self.calls.images();
        let image = Some(cri::ImageSpec {
            image: id.into(),
            ..Default::default()
        });
        let request = images.remove_image(cri::RemoveImageRequest { image });
        call("RemoveImage", "", request, |_| "removed".into())
            .await
            .map(drop)
    }
}

fn same(what: &str, expected: &str, got: &str) -> Result<(), Error> {
    if expected == got {
        return Ok(());
    }
    Err(Error::new(format!(
        "{what} is {got:?}, expected {expected:?}"
    )))
}

/// The first digits of an id, for people.
fn short(id: &str) -> String {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    let kept = hex.get(..12).unwrap_or(hex);
    format!("{}{kept}", &id[..id.len() - hex.len()])
}
