//! Connections: accepted while there is room, spoken to in HTTP/1.1 or HTTP/2, closed when nothing happens on them.
//!
//! Called by [`super`]. Which of the two versions a client speaks is seen by its first bytes; both are hyper's.
//! Invariants: a client that is slow with the head of a request, or to take its answer, loses its connection (or stream of
//! HTTP/2, where what is left of the answer allows) and holds up nobody else; nobody waits for a connection that is idle; after a stop signal nothing new is taken but what the kernel had accepted already, and this returns when all is answered; a
//! server that ends because it is idle has closed its connections, and leaves those that come meanwhile to the kernel.
//! Not here: what a request is answered, how long is idle.

mod activity;
mod crowd;
mod drain;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use wasmtime_wasi_http::handler::ProxyHandler;

use super::admission::MAX_FIELDS;
use super::answers::Answers;
use super::idle::{Idle, Open};
use super::instances::Instances;
use super::requests::{Received, Requests};
use crate::end::End;
pub(super) use activity::Active;
use activity::{Activity, Streams};
use coracle_spec::HttpServer;
use coracle_spec::error::{Context as _, Result};
use crowd::Crowd;

/// With what a connection begins on which HTTP/2 is spoken. Source: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that the kernel accepts ahead; it has a limit of its own.
const BACKLOG: i32 = 1024;
/// How long to wait before accepting again when the process is short of something.
const SHORTAGE: Duration = Duration::from_millis(50);
/// How long to wait for room before another idle connection is told to end, or it is looked again whether somebody waits.
const CROWDED: Duration = Duration::from_millis(20);
/// How long to wait for the rest of a preface whose beginning has come.
const REST: Duration = Duration::from_millis(5);
/// How long a new connection may take to say its first word once the server is to stop.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a connection that was told to end may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of a body HTTP/2 holds for a guest that does not read it. Bytes.
const STREAM_WINDOW: u32 = 64 << 10;
/// Least buffer that hyper takes for a head. Bytes.
const MIN_BUFFER: usize = 8 * 1024;

/// A server's connections.
pub(super) struct Connections {
    requests: Arc<Requests>,
    settings: HttpServer,
    answers: Answers,
    room: Arc<Semaphore>,
    crowd: Crowd,
    idle: Arc<Idle>,
}

/// What a server waits for.
enum Event {
    Stop,
    Newcomer(TcpStream, OwnedSemaphorePermit),
    /// Nothing has happened for long; or, once that was so, all connections are closed.
    Quiet,
}

impl Connections {
    /// Connections whose requests `handler` answers. `is_again`: not the first server of its container.
    pub(super) fn new(
        handler: ProxyHandler<Instances>,
        settings: HttpServer,
        is_again: bool,
    ) -> Self {
        let patience = Duration::from_secs(settings.limits.header_timeout_s.into());
        let answers = Answers::new(settings.limits.max_requests, patience);
        Self {
            requests: Arc::new(Requests::new(handler, settings.clone(), answers.clone())),
            answers,
            room: Arc::new(Semaphore::new(settings.limits.max_connections as usize)),
            crowd: Crowd::default(),
            idle: Arc::new(Idle::new(&settings, is_again)),
            settings,
        }
    }

    /// Listens, calls `serving`, and serves `callers` and whoever connects until `stop` can be read and all is answered, or
    /// until the server is idle.
    ///
    /// Errors: the kernel does not let the socket listen.
    pub(super) async fn serve(
        self,
        listener: OwnedFd,
        callers: Vec<std::net::TcpStream>,
        stop: OwnedFd,
        serving: impl FnOnce(),
    ) -> Result<End> {
        let what = || format!("listen at TCP port {}", self.settings.port);
        rustix::net::listen(&listener, BACKLOG).during(what)?;
        let listener = TcpListener::from_std(listener.into()).during(what)?;
        // SAFETY: the registration is dropped at the end of this function, before the eventfd that it borrows.
        let stop = unsafe { AsyncFd::register(stop.as_fd()) }.during(what)?;
        serving();
        let own = Arc::new(self);
        let (mut closing, mut closed) = watch::channel(false);
        let mut is_leaving = false;
        own.admit(callers, &closed);
        loop {
            match own.next(&listener, &stop, is_leaving).await {
                Event::Stop => break,
                Event::Quiet if is_leaving => return Ok(End::Idle(own.idle.probes())),
                Event::Quiet => {
                    is_leaving = true;
                    let _ = closing.send(true);
                }
                Event::Newcomer(stream, room) => {
                    if std::mem::take(&mut is_leaving) {
                        // The connections that are being closed stay so; this one begins anew.
                        (closing, closed) = watch::channel(false);
                    }
                    own.start(stream, room, &closed);
                }
            }
        }
        Ok(own.drain(listener, &closing).await)
    }

    /// Starts those who have been accepted already, each as soon as there is room.
    fn admit(self: &Arc<Self>, callers: Vec<std::net::TcpStream>, closed: &watch::Receiver<bool>) {
        // What the event loop does not take is closed, as where descriptors are short.
        for stream in callers.into_iter().flat_map(TcpStream::from_std) {
            // At once, so that a stop signal waits for them.
            if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
                self.start(stream, room, closed);
                continue;
            }
            let (own, closed) = (Arc::clone(self), closed.clone());
            tokio::spawn(async move {
                if let Ok(room) = Arc::clone(&own.room).acquire_owned().await {
                    own.start(stream, room, &closed);
                }
            });
        }
    }

    /// What happens next. `is_leaving`: the server is idle and closes its connections.
    async fn next(
        &self,
        listener: &TcpListener,
        stop: &AsyncFd<std::os::fd::BorrowedFd<'_>>,
        is_leaving: bool,
    ) -> Event {
        let quiet = async {
            if is_leaving {
                self.idle.closed().await;
                self.requests.finished().await;
            } else {
                self.idle.due().await;
            }
        };
        tokio::select! {
            biased;
            _ = stop.readable() => Event::Stop,
            (stream, room) = self.accept(listener) => Event::Newcomer(stream, room),
            () = quiet => Event::Quiet,
        }
    }

    /// The next connection, once there is room for one.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, OwnedSemaphorePermit) {
        loop {
            let room = self.room(listener).await;
            match listener.accept().await {
                Ok((stream, _)) => return (stream, room),
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => tokio::time::sleep(SHORTAGE).await,
            }
        }
    }

    /// Room for one more connection. Where there is none and somebody waits for it, a connection that is idle ends.
    async fn room(&self, listener: &TcpListener) -> OwnedSemaphorePermit {
        let mut room = pin!(Arc::clone(&self.room).acquire_owned());
        let mut patience = Duration::ZERO;
        loop {
            // The semaphore is never closed.
            if let Ok(Ok(room)) = tokio::time::timeout(patience, room.as_mut()).await {
                return room;
            }
            if is_somebody_waiting(listener) {
                self.crowd.make_room();
            }
            patience = CROWDED;
        }
    }

    fn start(
        self: &Arc<Self>,
        stream: TcpStream,
        room: OwnedSemaphorePermit,
        stopped: &watch::Receiver<bool>,
    ) {
        let (own, stopped) = (Arc::clone(self), stopped.clone());
        let open = self.idle.open();
        tokio::spawn(async move {
            let _room = room;
            own.speak(stream, stopped, open).await;
        });
    }

    /// Serves one connection to its end, in the version that its client speaks.
    async fn speak(&self, stream: TcpStream, mut stopped: watch::Receiver<bool>, open: Open) {
        let _ = stream.set_nodelay(true);
        let activity = Arc::new(Activity::new());
        let _listed = self.crowd.enter(&activity);
        let Some(is_http2) = self.version(&stream, &activity, &mut stopped).await else {
            return;
        };
        let (requests, own) = (Arc::clone(&self.requests), Arc::clone(&activity));
        let idle = Arc::clone(&self.idle);
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = idle.request(&request);
            open.speaks();
            let (requests, active) = (Arc::clone(&requests), own.enter(busy));
            let received = requests.receive(request);
            async move {
                Ok::<_, Infallible>(match received {
                    Received::Refused(call, status) => requests.refuse(call, status, active),
                    // In a box: a client may have thousands refused at a time.
                    Received::Enters(call, request, place) => {
                        Box::pin(requests.answer(call, *request, place, active)).await
                    }
                })
            }
        });
        let io = TokioIo::new(stream);
        match is_http2 {
            true => {
                let connection = self.http2(&activity).serve_connection(io, service);
                self.attend(connection, &activity, stopped).await;
            }
            false => {
                let connection = self.http1().serve_connection(io, service);
                let attended = self.attend(connection, &activity, stopped);
                self.answers.attend(attended).await;
            }
        }
    }

    /// Whether the client speaks HTTP/2; `None` if it says nothing in time, or before its room is needed.
    async fn version(
        &self,
        stream: &TcpStream,
        activity: &Activity,
        stopped: &mut watch::Receiver<bool>,
    ) -> Option<bool> {
        let timeout = Duration::from_secs(self.settings.limits.header_timeout_s.into());
        let hurried = async {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(FIRST_BYTES_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            seen = tokio::time::timeout(timeout, speaks_http2(stream)) => seen.ok()?.ok(),
            () = hurried => None,
            () = activity.is_spared.notified() => None,
        }
    }

    fn http1(&self) -> http1::Builder {
        let most = (self.settings.limits.max_header_bytes as usize).max(MIN_BUFFER);
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(
                self.settings.limits.header_timeout_s.into(),
            ))
            .max_headers(MAX_FIELDS)
            .max_buf_size(most);
        builder
    }

    fn http2(&self, activity: &Arc<Activity>) -> http2::Builder<Streams> {
        let timeout = Duration::from_secs(self.settings.limits.header_timeout_s.into());
        let mut builder = http2::Builder::new(Streams {
            answers: self.answers.clone(),
            activity: Arc::clone(activity),
        });
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(timeout)
            .keep_alive_timeout(timeout)
            .max_header_list_size(self.settings.limits.max_header_bytes)
            .max_concurrent_streams(self.settings.limits.max_requests)
            .initial_stream_window_size(STREAM_WINDOW);
        builder
    }

    /// Drives a connection, and ends it when nothing has happened on it for long, its room is needed or the server stops. One
    /// whose client does not take the end of an answer ends, too, but others that share it have as long for their requests as
    /// a client may take nothing.
    async fn attend<C: GracefulConnection>(
        &self,
        connection: C,
        activity: &Activity,
        mut stopped: watch::Receiver<bool>,
    ) {
        let timeout = Duration::from_secs(self.settings.limits.header_timeout_s.into());
        let mut connection = pin!(connection);
        let mut timer = pin!(tokio::time::sleep(timeout));
        let (mut is_ending, mut is_stuck, mut is_stopping) = (false, false, false);
        loop {
            // How long it has from now on.
            let next = tokio::select! {
                _ = connection.as_mut() => return,
                () = activity.is_stuck.notified(), if !is_stuck => {
                    if is_stopping {
                        return;
                    }
                    is_stuck = true;
                    timeout
                }
                _ = stopped.wait_for(|stopped| *stopped), if !is_stopping => {
                    is_stopping = true;
                    CLOSE_TIMEOUT
                }
                () = activity.is_spared.notified(), if !is_ending => CLOSE_TIMEOUT,
                () = timer.as_mut() => {
                    let idle = activity.idle();
                    if is_stuck || (is_ending && idle >= CLOSE_TIMEOUT) {
                        return;
                    }
                    if !is_ending && idle < timeout {
                        timer.as_mut().reset((Instant::now() + timeout.saturating_sub(idle)).into());
                        continue;
                    }
                    CLOSE_TIMEOUT
                }
            };
            if !std::mem::replace(&mut is_ending, true) {
                connection.as_mut().graceful_shutdown();
            }
            timer.as_mut().reset((Instant::now() + next).into());
        }
    }
}

/// Whether the kernel has accepted somebody.
fn is_somebody_waiting(listener: &TcpListener) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(1..))
}

/// Whether the first bytes are HTTP/2's. Errors: the connection broke, or ended before it said anything.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let count = stream.peek(&mut seen).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if seen[..count] != PREFACE[..count] {
            return Ok(false);
        }
        if count == PREFACE.len() {
            return Ok(true);
        }
        // What has come is still there to be read, so the socket cannot say when there is more.
        tokio::time::sleep(REST).await;
    }
}
