//! Streaming sessions: which container or pod a client reaches, and whether it may now.
//!
//! Called by the streaming server. Invariant: a session is admitted by the pod's own driver when it begins, not when its
//! URL was handed out: by then the container may have ended.
//! Not here: wires, pipes.

use std::sync::Arc;
use std::time::Duration;

use coracle_runtime::id::{ContainerId, PodId};
use tokio::net::TcpStream;

use super::{Ask, ContainerState, Error, Kind, NamespaceMode, Pods, Purpose, ask};
use crate::host::Launch;
use crate::streaming::{AttachWish, Backend, ExecWish, Job, Streams};

/// How long the exit of a container may be known later than the end of its output.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked for.
const GLANCE: Duration = Duration::from_millis(20);

impl Pods {
    /// The containers' side of streaming.
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.clone())
    }

    /// What it takes to reach into a container that runs. Errors: Missing; WrongPhase.
    pub(super) async fn enter(
        &self,
        id: &ContainerId,
        purpose: Purpose,
    ) -> Result<Box<Launch>, Error> {
        ask(&self.container_mailbox(id)?, |reply| {
            Ask::Enter(id.clone(), purpose, reply)
        })
        .await
    }

    /// Tells apart why a container's output has ended for a client. Errors: it runs on.
    async fn has_ended(&self, id: &ContainerId) -> Result<(), Error> {
        let limit = tokio::time::Instant::now() + EXIT_PATIENCE;
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
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Whether a session may begin now. Errors: Missing; WrongPhase.
    pub async fn admit(&self, id: &ContainerId, purpose: Purpose) -> Result<(), Error> {
        self.enter(id, purpose).await.map(drop)
    }
}

impl Backend for Pods {
    fn exec(&self, wish: ExecWish, streams: Streams) -> Job<i32> {
        let pods = self.clone();
        Box::pin(async move {
            let launch = pods.enter(&wish.container, Purpose::Exec).await?;
            pods.shared.host.exec_stream(&launch, wish, streams).await
        })
    }

    fn attach(&self, wish: AttachWish, streams: Streams) -> Job<()> {
        let pods = self.clone();
        Box::pin(async move {
            let launch = pods.enter(&wish.container, Purpose::Attach).await?;
            let id = wish.container.clone();
            pods.shared.host.attach(&launch, wish, streams).await?;
            pods.has_ended(&id).await
        })
    }

    fn connect(&self, pod: PodId, port: u16) -> Job<TcpStream> {
        let pods = self.clone();
        Box::pin(async move {
            let view = pods.pod(&pod);
            let view = view
                .ok_or_else(|| Error::new(Kind::Missing, format!("there is no sandbox {pod}")))?;
            if !view.ready {
                let text = format!("cannot connect to a port of sandbox {pod}: it is not ready");
                return Err(Error::new(Kind::WrongPhase, text));
            }
            let on_node = view.wish.namespaces.network == NamespaceMode::Node;
            pods.shared.host.dial(&pod, on_node, port).await
        })
    }
}
