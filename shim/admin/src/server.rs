//! The admin service: binds its socket and answers.
//!
//! Called by: the shim's `serve`. Invariants: the socket lies in the run directory, which is root's alone, and takes root
//! alone, too; it stands before the daemon says that it is ready, and goes with it.
//! Must not know: how answers are made.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coracle_images::Images;
use coracle_lifecycle::{HistoryEntry, Pods};
use coracle_proto::admin::v1 as admin;
use coracle_proto::admin::v1::admin_service_server::{AdminService, AdminServiceServer};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::net::UnixListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::connections::incoming;
use super::control::{Control, Internals, LogChange};
use super::{explain, listing, status, tasks};

/// Requests at a time on one connection.
const STREAMS: u32 = 16;

/// The facts of the daemon that never change while it runs.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The daemon's version.
    pub version: String,
    /// The major version of wasmtime.
    pub wasmtime: String,
    /// The directory of images and records.
    pub root: PathBuf,
    /// The directory of sockets.
    pub run: PathBuf,
    /// The CRI socket.
    pub socket: PathBuf,
    /// The address of the listener for metrics; empty for none.
    pub metrics_address: String,
    /// Who creates cgroups.
    pub cgroup_driver: String,
    /// 1 or 2.
    pub cgroup_version: u32,
    /// What an operator should know of this configuration on this node, although pods can be run.
    pub warnings: Vec<String>,
}

/// What can be seen of the daemon.
#[derive(Clone)]
pub struct View {
    /// Facts of the daemon.
    pub facts: Facts,
    /// Pods and containers.
    pub pods: Pods,
    /// The image store.
    pub images: Images,
}

/// The parts that answers come from.
pub struct Parts {
    /// What the daemon does for an operator.
    pub control: Arc<dyn Control>,
    /// What can be seen of it.
    pub view: View,
}

/// The socket cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("bind the admin socket {}", path.display())]
pub struct BindError {
    path: PathBuf,
    source: io::Error,
}

/// A running service; it ends, and its socket goes, when it is dropped.
#[derive(Debug)]
pub struct Service {
    path: PathBuf,
    _serving: JoinSet<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may be gone with the run directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves on `path`, which no other daemon may use: the caller has claimed its directory.
pub fn serve(path: &Path, parts: Parts) -> Result<Service, BindError> {
    let failed = |source| BindError {
        path: path.to_owned(),
        source,
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Nobody else can enter the directory meanwhile.
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, private).map_err(failed)?;
    let admin = Admin {
        parts: Arc::new(parts),
        began: Instant::now(),
    };
    let server = Server::builder()
        .max_concurrent_streams(STREAMS)
        .add_service(AdminServiceServer::new(admin))
        .serve_with_incoming(incoming(listener));
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the admin service has ended");
        }
    });
    Ok(Service {
        path: path.to_owned(),
        _serving: serving,
    })
}

struct Admin {
    parts: Arc<Parts>,
    began: Instant,
}

type Events = Pin<Box<dyn Stream<Item = Result<admin::Event, Status>> + Send>>;

#[tonic::async_trait]
impl AdminService for Admin {
    async fn status(
        &self,
        _: Request<admin::StatusRequest>,
    ) -> Result<Response<admin::StatusReply>, Status> {
        let reply = status::status(&self.parts.view, self.began.elapsed()).await;
        Ok(Response::new(reply))
    }

    async fn list_containers(
        &self,
        request: Request<admin::ListContainersRequest>,
    ) -> Result<Response<admin::ListContainersReply>, Status> {
        let all = request.into_inner().all;
        let containers = listing::list(&self.parts.view.pods, all, usize::MAX).await;
        let (containers, _) = containers.map_err(|error| Status::internal(error.chain()))?;
        Ok(Response::new(admin::ListContainersReply { containers }))
    }

    async fn explain(
        &self,
        request: Request<admin::ExplainRequest>,
    ) -> Result<Response<admin::ExplainReply>, Status> {
        let name = request.into_inner().name;
        let pods = explain::explain(&self.parts.view.pods, &name).await;
        let mut pods = pods.map_err(|error| Status::internal(error.chain()))?;
        for one in pods.iter_mut().flat_map(|pod| &mut pod.containers) {
            one.log_file = self.parts.control.log_file(&one.log_path);
        }
        if pods.is_empty() {
            let text = format!(
                "there is no pod and no container {name:?} here; `coracle ps -a` lists what there is"
            );
            return Err(Status::not_found(text));
        }
        Ok(Response::new(admin::ExplainReply { pods }))
    }

    async fn tasks(
        &self,
        _: Request<admin::TasksRequest>,
    ) -> Result<Response<admin::TasksReply>, Status> {
        let tasks = tasks::tasks(&self.parts.view.pods).await;
        Ok(Response::new(admin::TasksReply { tasks }))
    }

    async fn reload(
        &self,
        _: Request<admin::ReloadRequest>,
    ) -> Result<Response<admin::ReloadReply>, Status> {
        let reloaded = self.parts.control.reload().await;
        Ok(Response::new(admin::ReloadReply {
            error: reloaded.error,
            applied: reloaded.applied,
            waiting: reloaded.waiting,
        }))
    }

    async fn set_log_level(
        &self,
        request: Request<admin::SetLogLevelRequest>,
    ) -> Result<Response<admin::SetLogLevelReply>, Status> {
        let request = request.into_inner();
        let change = LogChange {
            level: request.level,
            target: request.target,
            duration: (request.for_s > 0).then(|| Duration::from_secs(request.for_s)),
        };
        let levels = self.parts.control.set_log_level(change);
        let levels = levels.map_err(Status::invalid_argument)?.into_iter();
        let levels = levels.map(|(target, level)| admin::LogLevel { target, level });
        Ok(Response::new(admin::SetLogLevelReply {
            levels: levels.collect(),
        }))
    }

    async fn internals(
        &self,
        _: Request<admin::InternalsRequest>,
    ) -> Result<Response<admin::InternalsReply>, Status> {
        let control = Arc::clone(&self.parts.control);
        let found = tokio::task::spawn_blocking(move || control.internals()).await;
        let Internals { log, metrics } =
            found.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(admin::InternalsReply { log, metrics }))
    }

    type EventsStream = Events;

    async fn events(
        &self,
        request: Request<admin::EventsRequest>,
    ) -> Result<Response<Events>, Status> {
        let admin::EventsRequest { since_s, follow } = request.into_inner();
        let from = since(since_s, now());
        let (kept, followed) = self.parts.view.pods.follow_history();
        let kept = kept.into_iter().filter(move |entry| entry.at >= from);
        let kept = stream::iter(kept.map(|entry| Ok(event(&entry))));
        if !follow {
            return Ok(Response::new(Box::pin(kept)));
        }
        let later = stream::unfold(Some(followed), |followed| async {
            let mut followed = followed?;
            match followed.recv().await {
                Ok(entry) => Some((Ok(event(&entry)), Some(followed))),
                Err(RecvError::Lagged(lost)) => {
                    let text = format!("the reader fell behind and lost {lost} events");
                    Some((Err(Status::resource_exhausted(text)), None))
                }
                Err(RecvError::Closed) => None,
            }
        });
        Ok(Response::new(Box::pin(kept.chain(later))))
    }
}

/// The time `seconds` before `now`, in nanoseconds since 1970; for 0 seconds, which means always, the first of all.
fn since(seconds: u64, now: i64) -> i64 {
    if seconds == 0 {
        return 0;
    }
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    now.saturating_sub(seconds.saturating_mul(1_000_000_000))
}

/// The message for an entry of the history.
pub(crate) fn event(entry: &HistoryEntry) -> admin::Event {
    let (container, id) = entry.container.clone().unwrap_or_default();
    admin::Event {
        at: entry.at,
        namespace: entry.pod.0.clone(),
        pod: entry.pod.1.clone(),
        sandbox: entry.sandbox.clone(),
        container,
        id,
        what: entry.what.clone(),
        took_ms: milliseconds(entry.took),
        failed: entry.failed,
    }
}

/// Nanoseconds since 1970 UTC.
pub(crate) fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| {
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    })
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_time_never_shows_less() {
        const NOW: i64 = 1_790_000_000_000_000_000;
        assert_eq!(since(1, NOW), NOW - 1_000_000_000);
        for seconds in [0, 1_u64 << 40, i64::MAX as u64, u64::MAX] {
            assert!(since(seconds, NOW) <= 0, "{seconds}");
        }
    }
}
