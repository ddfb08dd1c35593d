//! Streaming sessions: which container or pod a client reaches, and whether it may now.
//!
//! Called by: the CRI services, which offer a session for a URL; run by the streaming server.
//! Invariant: a session is admitted by the pod's own driver when it begins, not when its URL was handed out: by then the
//! container may have ended.
//! Not here: wires, pipes.

use std::time::Duration;

use coracle_spec::id::{ContainerId, PodId};
use coracle_streaming::{Forward, Program, Session, StreamOptions, Streams};
use tokio::net::TcpStream;

use super::{ContainerState, Error, Kind, NamespaceMode, Pods, Purpose, Request, send_request};
use crate::config::{AttachConfig, ExecConfig, PortForwardConfig};
use crate::host::StartRequest;

/// How long the exit of a container may be known later than the end of its output.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Pods {
    /// A session that runs a program until it ends and its output was taken.
    pub fn exec_session(&self, config: ExecConfig) -> Session {
        let (tty, stdin, stdout, stderr) = (config.tty, config.stdin, config.stdout, config.stderr);
        let options = StreamOptions {
            tty,
            stdin,
            stdout,
            stderr,
        };
        let (pods, action) = (self.clone(), "executing command in container");
        Session::Exec(Program::new(action, options, move |streams| {
            Box::pin(async move { Ok(pods.exec(config, streams).await?) })
        }))
    }

    /// A session that joins a container's own streams until it ends, or the client closes all it can send and take.
    pub fn attach_session(&self, config: AttachConfig) -> Session {
        let (tty, stdin, stdout, stderr) = (config.tty, config.stdin, config.stdout, config.stderr);
        let options = StreamOptions {
            tty,
            stdin,
            stdout,
            stderr,
        };
        let (pods, action) = (self.clone(), "attaching to container");
        Session::Attach(Program::new(action, options, move |streams| {
            Box::pin(async move { Ok(pods.attach(config, streams).await.map(|()| 0)?) })
        }))
    }

    /// A session that connects to ports of a pod at its loopback, IPv4 first.
    pub fn forward_session(&self, config: PortForwardConfig) -> Session {
        let (pods, PortForwardConfig { pod, ports }) = (self.clone(), config);
        Session::Forward(Forward::new(format!("pod {pod}"), ports, move |port| {
            let (pods, pod) = (pods.clone(), pod.clone());
            Box::pin(async move { Ok(pods.connect(pod, port).await?) })
        }))
    }

    /// What it takes to reach into a container that runs. Errors: Missing; WrongPhase.
    pub(super) async fn enter(
        &self,
        id: &ContainerId,
        purpose: Purpose,
    ) -> Result<Box<StartRequest>, Error> {
        send_request(&self.container_mailbox(id)?, |reply| {
            Request::Enter(id.clone(), purpose, reply)
        })
        .await
    }

    /// Tells apart why a container's output has ended for a client. Errors: it runs on.
    async fn has_ended(&self, id: &ContainerId) -> Result<(), Error> {
        let limit = tokio::time::Instant::now() + EXIT_TIMEOUT;
        loop {
            let view = self.container(id);
            if view.is_none_or(|view| view.state != ContainerState::Running) {
                return Ok(());
            }
            if tokio::time::Instant::now() > limit {
                let text = format!(
                    "the output of container {id} has ended for this client, and the container runs on: \
                     the client was too slow, or the program has closed its output"
                );
                return Err(Error::new(Kind::Io, text));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether a session may begin now. Errors: Missing; WrongPhase.
    pub async fn admit(&self, id: &ContainerId, purpose: Purpose) -> Result<(), Error> {
        self.enter(id, purpose).await.map(drop)
    }

    /// The program's exit code. Errors: it was not started, or its keeper was lost.
    async fn exec(&self, config: ExecConfig, streams: Streams) -> Result<i32, Error> {
        let launch = self.enter(&config.container, Purpose::Exec).await?;
        self.shared
            .host()
            .exec_stream(&launch, config, streams)
            .await
    }

    /// Errors: the container does not run, or has no standard input though it is asked for.
    async fn attach(&self, config: AttachConfig, streams: Streams) -> Result<(), Error> {
        let launch = self.enter(&config.container, Purpose::Attach).await?;
        let id = config.container.clone();
        self.shared.host().attach(&launch, config, streams).await?;
        self.has_ended(&id).await
    }

    /// Errors: the pod is not ready, or nothing listens.
    async fn connect(&self, pod: PodId, port: u16) -> Result<TcpStream, Error> {
        let view = self.pod(&pod);
        let view =
            view.ok_or_else(|| Error::new(Kind::Missing, format!("there is no sandbox {pod}")))?;
        if !view.ready {
            let text = format!("cannot connect to a port of sandbox {pod}: it is not ready");
            return Err(Error::new(Kind::WrongPhase, text));
        }
        let on_node = view.config.namespaces.network == NamespaceMode::Node;
        self.shared.host().dial(&pod, on_node, port).await
    }
}
