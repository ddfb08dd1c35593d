//! One request: from its head to the answer of a guest, or to the answer that says why there is none.
//!
//! Called by [`super::connections`]. Invariants: no more guests run at a time than the settings say; a request that finds
//! no room within a moment is answered 503; whatever goes wrong with a guest, its client gets an answer that tells
//! nothing of the guest's insides; a line of the access log is one line of printable ASCII.
//! Not here: connections, instances, who is let in.
//!
//! | answer | when |
//! |---|---|
//! | 400 | no host, or one that is no text |
//! | 413, 414, 431 | the body, the path or the header fields are too large |
//! | 500 | the guest trapped, gave no answer, or none that can be sent |
//! | 502, 504 | the guest says that somebody that it asked failed or was late |
//! | 503 with `Retry-After` | as many requests as there may be are under way, or answers not taken yet |
//! | 503 | the container was stopped, and its grace period was over |
//! | 504 | the guest was late itself |

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::PoolConcurrencyLimitError;
use wasmtime_wasi_http::handler::{InstantiationError, ProxyHandler};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, WasiBody};

use super::admission::{Admission, Place};
use super::answers::{Answer, Answers};
use super::connections::Active;
use super::instances::{Instances, Turn, one_line};
use super::request_id::{RequestId, RequestIds};
use super::uploads::Uploads;
use coracle_spec::HttpServer;

/// How long a request waits for its turn before it is answered 503.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(250);
/// How much longer than its guest a request waits for an answer, should the guest not be told of the deadline.
const GRACE: Duration = Duration::from_secs(1);
/// Longest path in the access log; the rest of a longer one is left out. Bytes.
const MAX_SHOWN_PATH: usize = 2 << 10;

/// A request whose head has come.
pub(super) enum Received {
    /// It has its turn, or waits for it.
    Enters(Call, Box<Request<Incoming>>, Place),
    /// It goes no further.
    Refused(Call, StatusCode),
}

/// What is kept of a request until it has its answer.
pub(super) struct Call {
    begun: Instant,
    version: Version,
    id: Option<RequestId>,
    /// What the access log calls it.
    log: Option<String>,
}

/// A request that a guest is to have.
struct Admitted {
    request: Request<WasiBody>,
    turn: OwnedSemaphorePermit,
    /// For its answer.
    room: OwnedSemaphorePermit,
}

/// What all requests share.
pub(super) struct Requests {
    handler: ProxyHandler<Instances>,
    settings: HttpServer,
    admission: Admission,
    uploads: Uploads,
    answers: Answers,
    /// Set where lines carry the ids of requests.
    ids: Option<RequestIds>,
}

impl Requests {
    /// Requests that `handler` answers, held to `settings`.
    pub(super) fn new(
        handler: ProxyHandler<Instances>,
        settings: HttpServer,
        answers: Answers,
    ) -> Self {
        Self {
            handler,
            ids: settings.limits.request_ids.then(RequestIds::new),
            admission: Admission::new(&settings.limits),
            uploads: Uploads::default(),
            settings,
            answers,
        }
    }

    /// Looks at a head as soon as it has come: many may have come by the time that one is answered.
    pub(super) fn receive(&self, mut request: Request<Incoming>) -> Received {
        let (begun, version) = (Instant::now(), request.version());
        let id = self.ids.as_ref().map(|ids| ids.of(&mut request));
        let place = self.admission.enter(&mut request);
        let log = self
            .settings
            .limits
            .access_log
            .then(|| format!("{} {}", request.method(), shown(request.uri().path())));
        let call = Call {
            begun,
            version,
            id,
            log,
        };
        match place {
            Ok(place) => Received::Enters(call, Box::new(request), place),
            Err(status) => Received::Refused(call, status),
        }
    }

    /// The answer to a request that goes no further.
    pub(super) fn refuse(
        &self,
        call: Call,
        status: StatusCode,
        active: Active,
    ) -> Response<Answer> {
        let answer = refusal(status, call.version);
        self.answered(call, answer, active, None)
    }

    /// The answer to one request; `active` lives until it has left.
    pub(super) async fn answer(
        &self,
        call: Call,
        request: Request<Incoming>,
        place: Place,
        active: Active,
    ) -> Response<Answer> {
        let (answer, room) = match self.admit(request, place).await {
            Ok(Admitted {
                request,
                turn,
                room,
            }) => {
                let turn = Turn {
                    permit: turn,
                    id: call.id.clone(),
                };
                (self.handle(request, turn).await, Some(room))
            }
            Err(refused) => (refused, None),
        };
        self.answered(call, answer, active, room)
    }

    /// Says in the log how a request was answered.
    fn answered(
        &self,
        call: Call,
        answer: Response<WasiBody>,
        active: Active,
        room: Option<OwnedSemaphorePermit>,
    ) -> Response<Answer> {
        if let Some(what) = call.log {
            let (status, took) = (answer.status().as_u16(), call.begun.elapsed().as_micros());
            let id = call.id.map(|id| format!("{id} ")).unwrap_or_default();
            let line = format!("{id}{what} {status} {took}us");
            self.handler.state().out.line(&line);
        }
        active.answered(answer.status());
        answer.map(|body| Answer::new(body, call.version, active, room))
    }

    /// Waits for the guests that have answered and still have something to do. New requests have no turn from then on.
    pub(super) async fn finished(&self) {
        let _ = self
            .admission
            .turns
            .acquire_many(self.settings.limits.max_requests)
            .await;
    }

    /// How many there are.
    pub(super) fn under_way(&self) -> usize {
        (self.settings.limits.max_requests as usize)
            .saturating_sub(self.admission.turns.available_permits())
    }

    /// Ends every guest that computes; new ones end as soon as they compute.
    pub(super) fn end_guests(&self) {
        self.handler.state().end_guests();
    }

    /// The request as a guest may have it. Errors: the answer of a request that gets no further.
    async fn admit(
        &self,
        request: Request<Incoming>,
        place: Place,
    ) -> Result<Admitted, Response<WasiBody>> {
        let busy = || refusal(StatusCode::SERVICE_UNAVAILABLE, request.version());
        let turn = match place {
            Place::Turn(turn) => turn,
            Place::Room(_room) => {
                self.uploads.give_up_slowest();
                let turn = Arc::clone(&self.admission.turns).acquire_owned();
                let turn = tokio::time::timeout(QUEUE_TIMEOUT, turn).await;
                turn.ok().and_then(Result::ok).ok_or_else(busy)?
            }
        };
        let room = self.answers.room().await.ok_or_else(busy)?;
        let most = self.settings.limits.max_body_bytes;
        let request = request.map(|body| self.uploads.track(limited(body, most)));
        Ok(Admitted {
            request,
            turn,
            room,
        })
    }

    async fn handle(&self, request: Request<WasiBody>, turn: Turn) -> Response<WasiBody> {
        let begun = Instant::now();
        let deadline = Duration::from_secs(self.settings.limits.deadline_s.into());
        let answer = self.handler.handle(turn, request);
        match tokio::time::timeout(deadline + GRACE, answer).await {
            Ok(Ok(answer)) => answer,
            // The guest's end is told by whoever ended it.
            Ok(Err(_)) if begun.elapsed() >= deadline => plain(StatusCode::GATEWAY_TIMEOUT),
            Err(_) => plain(StatusCode::GATEWAY_TIMEOUT),
            Ok(Err(e)) => self.failure(&e),
        }
    }

    /// The answer to a request that a guest failed.
    fn failure(&self, error: &wasmtime::Error) -> Response<WasiBody> {
        if let Some(code) = error.downcast_ref::<ErrorCode>() {
            return plain(status_of(code));
        }
        if let Some(failed) = error.downcast_ref::<InstantiationError<Turn>>() {
            if failed.error.is::<PoolConcurrencyLimitError>() {
                return refusal(StatusCode::SERVICE_UNAVAILABLE, Version::HTTP_11);
            }
            self.handler.state().err.line(&one_line(&failed.error));
        }
        if self.handler.state().is_ending() {
            return plain(StatusCode::SERVICE_UNAVAILABLE);
        }
        plain(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// The status for what a guest says went wrong. Source: the names of the interface's errors, which are those of RFC 9209.
pub(super) fn status_of(code: &ErrorCode) -> StatusCode {
    match code {
        ErrorCode::HttpRequestDenied => StatusCode::FORBIDDEN,
        ErrorCode::HttpRequestLengthRequired => StatusCode::LENGTH_REQUIRED,
        ErrorCode::HttpRequestBodySize(_) => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::HttpRequestMethodInvalid | ErrorCode::HttpRequestUriInvalid => {
            StatusCode::BAD_REQUEST
        }
        ErrorCode::HttpRequestUriTooLong => StatusCode::URI_TOO_LONG,
        ErrorCode::HttpRequestHeaderSectionSize(_)
        | ErrorCode::HttpRequestHeaderSize(_)
        | ErrorCode::HttpRequestTrailerSectionSize(_)
        | ErrorCode::HttpRequestTrailerSize(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ErrorCode::DnsTimeout
        | ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::ConnectionLimitReached | ErrorCode::DestinationUnavailable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorCode::ConfigurationError | ErrorCode::InternalError(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        ErrorCode::LoopDetected => StatusCode::LOOP_DETECTED,
        _ => StatusCode::BAD_GATEWAY,
    }
}

/// The answer to a request that no guest has. In HTTP/2 it has no body, which its client might not take.
fn refusal(status: StatusCode, version: Version) -> Response<WasiBody> {
    let mut answer = plain(status);
    if version == Version::HTTP_2 {
        let nothing = Empty::new().map_err(|never| match never {});
        *answer.body_mut() = nothing.boxed_unsync();
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let again = HeaderValue::from_static("1");
        answer.headers_mut().insert(RETRY_AFTER, again);
    }
    answer
}

/// A path as the log has it: a terminal takes some characters beyond ASCII for commands.
fn shown(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            _ if text.len() >= MAX_SHOWN_PATH => return text + "...",
            b'!'..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn plain(status: StatusCode) -> Response<WasiBody> {
    let reason = status.canonical_reason().unwrap_or("error");
    let body = Full::new(Bytes::from_static(reason.as_bytes()));
    let mut answer = Response::new(body.map_err(Error::from).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// `body`, which breaks off behind `most` bytes; 0 is any number.
fn limited(body: Incoming, most: u64) -> WasiBody {
    if most == 0 {
        return body.map_err(Error::Hyper).boxed_unsync();
    }
    let body = Limited::new(body, usize::try_from(most).unwrap_or(usize::MAX));
    body.map_err(move |error| match error.downcast::<LengthLimitError>() {
        Ok(_) => Error::HttpRequestBodySize(Some(most)),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Error::Hyper(*error),
            Err(error) => Error::InternalError(Some(error.to_string())),
        },
    })
    .boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_log_is_short_printable_ascii() {
        assert_eq!(shown("/a?%20{}\"~"), "/a?%20{}\"~");
        assert_eq!(shown("/\u{9b}2J\u{202e}\u{e4}"), "/%C2%9B2J%E2%80%AE%C3%A4");
        let long = shown(&"\u{e4}".repeat(40_000));
        assert!(long.len() < MAX_SHOWN_PATH + 16 && long.ends_with("..."));
    }
}
