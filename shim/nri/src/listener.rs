//! The socket that plugins connect to, and the life of each connection.
//!
//! ```text
//! accept -> registered (limit) -> configured -> synchronised -> events ... closed
//! ```
//! Called by: the shim's `serve`. Invariants: the socket is root's alone; one with a listener is never replaced; what
//! connects and does not register holds nothing for longer than the limit; few can do so at a time.
//! Must not know: events.

use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_lifecycle::Pods;
use coracle_proto::nri::v1 as nri;
use prost::Message as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Nri;
use super::counters;
use super::event::subscription;
use super::session::{CallError, Received, Request, Session};

/// Connections at a time.
const CONNECTIONS: usize = 64;
/// The pause after accept(2) failed.
const PAUSE: Duration = Duration::from_millis(500);
/// How long all plugins together may take to hear of the daemon's end.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// Why plugins cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error(
        "NRI socket {0} is in use: another runtime listens on it; give this one another nri.socket, or set nri.enabled = false"
    )]
    Taken(PathBuf),
    /// The path holds something else than a socket.
    #[error(
        "NRI socket path {0} holds something that is no socket; remove it or change nri.socket"
    )]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("bind the NRI socket {0}")]
    Io(PathBuf, #[source] io::Error),
}

/// The running service; it ends, and its socket goes, when it is dropped.
pub struct Service {
    /// The socket, and its device and inode.
    bound: Option<(PathBuf, (u64, u64))>,
    nri: Arc<Nri>,
    _accepting: JoinSet<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        let Some((path, identity)) = &self.bound else {
            return;
        };
        // Another runtime may have put its own there meanwhile.
        if identity_of(path).is_ok_and(|found| found == *identity) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Service {
    /// Tells plugins that the daemon ends.
    pub async fn shut_down(self) {
        let sessions = self.nri.connected.all();
        let notices = sessions.iter().map(|session| async move {
            let _ = session.call("Shutdown", &nri::Empty {}).await;
        });
        let all = futures_util::future::join_all(notices);
        let _ = tokio::time::timeout(SHUTDOWN, all).await;
    }
}

impl Nri {
    /// Lets plugins connect. Errors: the socket cannot be bound.
    pub fn serve(self: &Arc<Self>, pods: &Pods) -> Result<Service, BindError> {
        let _ = self.pods.set(pods.clone());
        let mut accepting = JoinSet::new();
        let mut bound = None;
        if let Some(path) = &self.settings.socket {
            let listener = bind(path)?;
            let identity = identity_of(path);
            let identity = identity.map_err(|error| BindError::Io(path.clone(), error))?;
            bound = Some((path.clone(), identity));
            tracing::info!(socket = %path.display(), "NRI plugins can connect");
            accepting.spawn(Arc::clone(self).accept(listener, pods.clone()));
        }
        Ok(Service {
            bound,
            nri: Arc::clone(self),
            _accepting: accepting,
        })
    }

    async fn accept(self: Arc<Self>, listener: UnixListener, pods: Pods) {
        let (places, mut sessions) = (Arc::new(Semaphore::new(CONNECTIONS)), JoinSet::new());
        loop {
            while sessions.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "an NRI plugin was not accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!("{CONNECTIONS} NRI plugins are connected; another one was refused");
                continue;
            };
            let (nri, pods) = (Arc::clone(&self), pods.clone());
            sessions.spawn(async move {
                nri.session(stream, pods).await;
                drop(place);
            });
        }
    }

    /// One connection, from its beginning to its end.
    async fn session(self: Arc<Self>, stream: UnixStream, pods: Pods) {
        let (session, reading, received) = Session::new(stream, self.settings.request_timeout);
        let mut tasks = JoinSet::new();
        tasks.spawn(reading);
        if let Err(why) = self.join(&session, received, &pods, &mut tasks).await {
            session.close(why);
        }
        let why = session.ended().await;
        self.connected.remove(&session);
        counters::closed();
        let plugin = match session.name() {
            "" => "(not registered)",
            name => name,
        };
        tracing::warn!(plugin, why, "the connection of an NRI plugin has ended");
    }

    /// Registers, configures and synchronises. Errors: why the plugin cannot be kept.
    async fn join(
        self: &Arc<Self>,
        session: &Arc<Session>,
        received: Received,
        pods: &Pods,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), String> {
        let limit = self.settings.registration_timeout;
        let registered = tokio::time::timeout(limit, received.registered).await;
        let Ok(registered) = registered else {
            return Err(format!("it did not register within {limit:?}"));
        };
        let (index, name) = registered.map_err(|_| "it did not register".to_owned())?;
        session.count_as(&name);
        let events = self.configure(session).await?;
        session.subscribe(format!("{index}-{name}"), events);
        tracing::info!(plugin = session.name(), events, "NRI plugin connected");
        let requests = received.requests;
        tasks.spawn(Arc::clone(self).serve_requests(Arc::clone(session), requests));
        self.synchronize(pods, session).await
    }

    async fn configure(&self, session: &Session) -> Result<u32, String> {
        let millis = |limit: Duration| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        let request = nri::ConfigureRequest {
            config: String::new(),
            runtime_name: "coracle".to_owned(),
            runtime_version: self.settings.version.to_owned(),
            registration_timeout: millis(self.settings.registration_timeout),
            request_timeout: millis(self.settings.request_timeout),
            nri_version: super::VERSION.to_owned(),
        };
        let answer = match session.call("Configure", &request).await {
            Ok(answer) => answer,
            Err(CallError::Answered(why)) => {
                return Err(format!("it refuses to be configured: {why}"));
            }
            Err(_) => return Err("it was not configured".to_owned()),
        };
        let answer = nri::ConfigureResponse::decode(answer.as_slice())
            .map_err(|error| format!("its answer to Configure cannot be read: {error}"))?;
        subscription(answer.events)
    }

    /// Carries out a plugin's own requests, one after the other.
    async fn serve_requests(
        self: Arc<Self>,
        session: Arc<Session>,
        mut requests: mpsc::Receiver<Request>,
    ) {
        while let Some(mut request) = requests.recv().await {
            let wanted = std::mem::take(&mut request.request);
            let failed = self.apply_request(session.name(), wanted).await;
            session.answer(request, failed).await;
        }
    }
}

/// The device and inode of a file.
fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |error| BindError::Io(path.to_owned(), error);
    if let Some(directory) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(directory);
        made.map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(BindError::Taken(path.to_owned()));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(failed)?;
    Ok(listener)
}
