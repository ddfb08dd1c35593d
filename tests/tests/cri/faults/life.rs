//! A pod's whole life as a kubelet drives it, with calls that are repeated until they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{Cri, container};
use coracle_tests::push::{Image, Packing, file};
use coracle_tests::{guests, retry};
use tonic::{Code, Status};

use crate::site::{images, tool};

/// A pod's whole life as a kubelet would drive it: each call is tried again until it is answered.
pub(super) struct Life {
    pub cri: Cri,
    pub pod: cri::PodSandboxConfig,
    /// Makes the module, and so its image, one of its own.
    pub salt: String,
    /// How long it waits before the daemon is killed.
    pub pause: Duration,
    /// Set when the daemon is to be killed and started again.
    pub restart_requested: Arc<AtomicBool>,
    /// Whether the pod's keeper or processes may be killed.
    pub harmed: bool,
}

impl Life {
    /// Runs the whole life. Errors: the step that failed, or the promise that was broken.
    pub(super) async fn live(self) -> Result<(), String> {
        let image = self.pull().await?;
        let cri = &self.cri;
        let pod = self
            .retry("run", async || retry::run_pod(cri, &self.pod).await)
            .await?;
        let containers = self.start_containers(&pod).await?;
        tokio::time::sleep(self.pause).await;
        // The next daemon has to find all this again.
        self.restart_requested.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.expect_running(&pod, &containers).await?;
        self.remove(&pod, &containers, &image).await
    }

    /// Pulls an image whose module nobody has compiled yet; its reference by digest.
    async fn pull(&self) -> Result<String, String> {
        let module = guests::nothing(&self.salt).map_err(|e| e.to_string())?;
        let files = [file("m.wasm", 0o644, &module)];
        let image = Image::wasi(&files, Packing::Gzip, &["/m.wasm"]);
        let pushed =
            image.and_then(|image| image.push(images().registry.host(), "cross", "latest"));
        let image = pushed.map_err(|e| e.to_string())?.by_digest;
        self.retry("pull", async || self.cri.pull(&image).await.map(drop))
            .await?;
        Ok(image)
    }

    /// Starts two containers that go on and one, `c`, that exits with 5. Returns those that could be created. One whose
    /// start was refused, because the keeper is gone, never exits: it stays Created.
    async fn start_containers(&self, pod: &str) -> Result<Vec<(&'static str, String)>, String> {
        let cri = &self.cri;
        let mut containers = Vec::new();
        for (name, args) in [
            ("a", &["sleep"][..]),
            ("b", &["sleep"]),
            ("c", &["exit", "5"]),
        ] {
            let config = container(name, tool(), args);
            let id = self
                .tolerate("create", async || {
                    retry::create(cri, pod, &config, &self.pod).await
                })
                .await?;
            let Some(id) = id else { continue };
            let started = self
                .tolerate("start", async || retry::start(cri, &id).await)
                .await?;
            if started.is_some() && name == "c" {
                self.expect_exit(&id, 5).await?;
            }
            containers.push((name, id));
        }
        Ok(containers)
    }

    /// The pod is in the list, and its containers run, unless their keeper or processes were killed.
    async fn expect_running(&self, pod: &str, containers: &[(&str, String)]) -> Result<(), String> {
        let cri = &self.cri;
        let listed = self
            .retry("list", async || cri.list_pods(None).await)
            .await?;
        if !listed.iter().any(|listed| listed.id == pod) {
            return Err(format!("pod {pod} was acknowledged and is not in the list"));
        }
        for (name, id) in containers {
            let status = self.retry("status", async || cri.status(id).await).await?;
            let must_run = *name != "c" && !self.harmed;
            if must_run && status.state() != cri::ContainerState::ContainerRunning {
                return Err(format!(
                    "container {name} was started and is {:?} {}",
                    status.state(),
                    status.reason
                ));
            }
        }
        Ok(())
    }

    /// Stops and removes everything, the image too.
    async fn remove(
        &self,
        pod: &str,
        containers: &[(&str, String)],
        image: &str,
    ) -> Result<(), String> {
        let cri = &self.cri;
        for (name, id) in containers {
            let grace = if *name == "a" { 5 } else { 0 };
            self.retry("stop", async || cri.stop(id, grace).await)
                .await?;
        }
        if let Some((_, id)) = containers.first() {
            self.retry("remove", async || cri.remove(id).await).await?;
        }
        self.retry("stop pod", async || cri.stop_pod(pod).await)
            .await?;
        self.retry("remove pod", async || cri.remove_pod(pod).await)
            .await?;
        self.retry("remove image", async || cri.remove_image(image).await)
            .await
    }

    /// The exit code of a container whose start was acknowledged is never lost, only replaced by a kill.
    pub(super) async fn expect_exit(&self, id: &str, code: i32) -> Result<(), String> {
        let status = self
            .retry("wait", async || self.cri.wait_exit(id).await)
            .await?;
        let killed = self.harmed && status.exit_code == 137;
        if status.exit_code == code || killed || status.reason == "StartError" && self.harmed {
            return Ok(());
        }
        Err(format!(
            "container {id} exited {} {} instead of {code}",
            status.exit_code, status.reason
        ))
    }

    /// Calls until there is an answer; a daemon that is away or dies on the way is asked again.
    pub(super) async fn retry<T>(
        &self,
        what: &str,
        call: impl AsyncFn() -> Result<T, Status>,
    ) -> Result<T, String> {
        retry::until_answered(what, call).await
    }

    /// The same, but a pod that lost its keeper or a guest may refuse for good.
    pub(super) async fn tolerate<T>(
        &self,
        what: &str,
        call: impl AsyncFn() -> Result<T, Status>,
    ) -> Result<Option<T>, String> {
        if !self.harmed {
            return self.retry(what, call).await.map(Some);
        }
        for _ in 0..20 {
            match call().await {
                Ok(answer) => return Ok(Some(answer)),
                Err(refusal) if refusal.code() == Code::FailedPrecondition => return Ok(None),
                Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
        Ok(None)
    }
}
