//! Streaming sessions: which container or pod a client reaches, and whether it may now.
//!
//! Called by the streaming server. Invariant: a session is admitted by the pod's own driver when it begins, not when its
//! URL was handed out: by then the container may have ended.
//! Not here: wires, pipes.

use std::sync::Arc;

use coracle_runtime::id::{ContainerId, PodId};
use tokio::net::TcpStream;

use super::{Ask, Error, Kind, NamespaceMode, Pods, Purpose, ask};
use crate::host::Launch;
use crate::streaming::{AttachWish, Backend, ExecWish, Job, Streams};

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
            pods.shared.host.attach(&launch, wish, streams).await
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
