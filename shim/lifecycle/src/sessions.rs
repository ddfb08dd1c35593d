//! Streaming sessions: which container or pod a client reaches, and whether it may do so now.
//!
//! Called by: the CRI services, which return a URL for a session; run by the streaming server.
//! Invariant: the pod's driver admits a session when the client connects, not when the URL was returned: the container
//! may have ended in between.
//! Must not know: protocols of the wire, pipes.

use std::time::Duration;

use coracle_spec::id::{ContainerId, PodId};
use coracle_streaming::{Forward, Owner, Program, Session, StreamOptions, Streams};
use tokio::net::TcpStream;

use super::{ContainerState, Error, Kind, NamespaceMode, Pods, Purpose, Request, send_request};
use crate::config::{AttachConfig, ExecConfig, PortForwardConfig};
use crate::host::StartRequest;

/// How much later than the end of its output the exit of a container may become known.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the exit is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Pods {
    /// A session that runs a program until it ends and the client has read its output.
    pub fn exec_session(&self, config: ExecConfig) -> Session {
        let (tty, stdin, stdout, stderr) = (config.tty, config.stdin, config.stdout, config.stderr);
        let options = StreamOptions {
            tty,
            stdin,
            stdout,
            stderr,
        };
        let (pods, action) = (self.clone(), "executing command in container");
        let owner = self.owner_of(&config.container);
        let program = Program::new(action, options, move |streams| {
            Box::pin(async move { Ok(pods.exec(config, streams).await?) })
        });
        Session::Exec(program.of(owner))
    }

    /// A session that joins a container's own streams until it ends, or the client closes all streams.
    pub fn attach_session(&self, config: AttachConfig) -> Session {
        let (tty, stdin, stdout, stderr) = (config.tty, config.stdin, config.stdout, config.stderr);
        let options = StreamOptions {
            tty,
            stdin,
            stdout,
            stderr,
        };
        let (pods, action) = (self.clone(), "attaching to container");
        let owner = self.owner_of(&config.container);
        let program = Program::new(action, options, move |streams| {
            Box::pin(async move { Ok(pods.attach(config, streams).await.map(|()| 0)?) })
        });
        Session::Attach(program.of(owner))
    }

    /// A session that connects to ports on the loopback of a pod, IPv4 first.
    pub fn forward_session(&self, config: PortForwardConfig) -> Session {
        let (pods, PortForwardConfig { pod, ports }) = (self.clone(), config);
        let owner = self.owner(&pod);
        let forward = Forward::new(format!("pod {pod}"), ports, move |port| {
            let (pods, pod) = (pods.clone(), pod.clone());
            Box::pin(async move { Ok(pods.connect(pod, port).await?) })
        });
        Session::Forward(forward.of(owner))
    }

    /// Whose a session of the pod is.
    fn owner(&self, pod: &PodId) -> Owner {
        let view = self.pod(pod);
        let namespace = view.map(|view| view.config.name.namespace.clone());
        Owner {
            tenant: namespace.unwrap_or_default(),
            target: pod.to_string(),
        }
    }

    fn owner_of(&self, container: &ContainerId) -> Owner {
        let view = self.container(container);
        view.map_or_else(Owner::default, |view| self.owner(&view.pod))
    }

    /// What an exec or attach needs of a running container. Errors: Missing; WrongPhase.
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

    /// Finds out why a container's output ended for a client. Errors: the container still runs.
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
        let request = self.enter(&config.container, Purpose::Exec).await?;
        self.shared
            .host()
            .exec_stream(&request, config, streams)
            .await
    }

    /// Checks an attach. Errors: the container does not run, or has no standard input although the client sends some.
    async fn attach(&self, config: AttachConfig, streams: Streams) -> Result<(), Error> {
        let request = self.enter(&config.container, Purpose::Attach).await?;
        let id = config.container.clone();
        self.shared.host().attach(&request, config, streams).await?;
        self.has_ended(&id).await
    }

    /// Connects to a port. Errors: the pod is not ready, or nothing listens.
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
