//! Who is let in: what the head of a request may be, and how many requests wait for their turn.
//!
//! Called by [`super::requests`] as soon as a head has come. A client of HTTP/2 has many requests on one connection, and may
//! name one header field again and again by a byte each: the limits of a head, of connections and of requests at a time do
//! not bound what all that wait hold together. [`Admission`] does.
//! Invariants: what is refused is dropped before anybody waits for it; requests that wait take at most [`REQUEST`] bytes for
//! each connection that there may be, or are one; nobody takes the turn of somebody who waits.
//! Not here: how long one waits, what becomes of a request that has its turn.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use coracle_spec::HttpLimits;

/// Most header fields of a request.
pub(super) const MAX_FIELDS: usize = 128;
/// What a request that waits takes beside a long head: its task, its stream, a head as most are. Bytes.
const REQUEST: usize = 8 << 10;
/// What a header field takes beside its text. Bytes.
const FIELD: usize = 128;
/// What room is counted in. Bytes.
const UNIT: usize = 1 << 10;

/// The turns of a server, and the room for those that wait for one.
pub(super) struct Admission {
    pub(super) turns: Arc<Semaphore>,
    /// In units.
    room: Arc<Semaphore>,
    all_room: usize,
    max_body_bytes: u64,
}

/// What a request that is let in holds.
pub(super) enum Place {
    /// Its turn.
    Turn(OwnedSemaphorePermit),
    /// Room to wait for it.
    Room(OwnedSemaphorePermit),
}

impl Admission {
    /// Of a server with these limits.
    pub(super) fn new(limits: &HttpLimits) -> Self {
        let all_room = limits.max_connections as usize * (REQUEST / UNIT);
        Self {
            turns: Arc::new(Semaphore::new(limits.max_requests as usize)),
            room: Arc::new(Semaphore::new(all_room)),
            all_room,
            max_body_bytes: limits.max_body_bytes,
        }
    }

    /// The place of a request; one of the oldest clients is given the name of a host. Errors: why it goes no further.
    pub(super) fn enter<B>(&self, request: &mut Request<B>) -> Result<Place, StatusCode> {
        self.check(request)?;
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(Place::Turn(turn));
        }
        let units = units(request.uri(), request.headers()).min(self.all_room);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(units);
        room.map(Place::Room)
            .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
    }

    fn check<B>(&self, request: &mut Request<B>) -> Result<(), StatusCode> {
        let headers = request.headers();
        if headers.len() > MAX_FIELDS {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        let most = self.max_body_bytes;
        let length = headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if most != 0 && length.is_some_and(|length| length > most) {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        if request.uri().authority().is_none() {
            match headers.get(HOST).map(HeaderValue::to_str) {
                Some(Ok(_)) => {}
                // The oldest clients name none.
                None if request.version() <= Version::HTTP_10 => {
                    let local = HeaderValue::from_static("localhost");
                    request.headers_mut().insert(HOST, local);
                }
                Some(Err(_)) | None => return Err(StatusCode::BAD_REQUEST),
            }
        }
        Ok(())
    }
}

/// The room that a request with this head takes while it waits.
fn units(uri: &Uri, headers: &HeaderMap) -> usize {
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let fields = headers.iter();
    let fields = fields.map(|(name, value)| FIELD + name.as_str().len() + value.len());
    let head = path + fields.sum::<usize>();
    head.max(REQUEST) / UNIT
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn admission(max_requests: u32, max_connections: u32) -> Admission {
        Admission::new(&HttpLimits {
            max_requests,
            max_connections,
            ..HttpLimits::default()
        })
    }

    fn request(fields: usize, bytes: usize) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = "http://f/".parse().unwrap();
        let value = HeaderValue::from_str(&"x".repeat(bytes)).unwrap();
        for _ in 0..fields {
            request.headers_mut().append("x-a", value.clone());
        }
        request
    }

    #[test]
    fn requests_that_wait_hold_a_bounded_amount_whatever_their_heads_are() {
        let admission = admission(2, 16);
        let enter = |fields, bytes| admission.enter(&mut request(fields, bytes));
        let turns = [enter(1, 1), enter(1, 1)].map(Result::unwrap);
        assert!(turns.iter().all(|place| matches!(place, Place::Turn(_))));
        // As many small ones as there may be connections, fewer large ones, and always one.
        for (fields, bytes, most) in [(3, 10, 16), (128, 100, 4), (1, 200_000, 1)] {
            let waiting: Vec<_> = std::iter::from_fn(|| enter(fields, bytes).ok()).collect();
            assert_eq!(waiting.len(), most, "{fields} fields of {bytes} bytes");
            assert!(waiting.iter().all(|place| matches!(place, Place::Room(_))));
        }
        drop(turns);
        assert!(matches!(enter(1, 1), Ok(Place::Turn(_))));
    }

    #[test]
    fn a_head_has_no_more_fields_than_in_the_other_version() {
        let admission = admission(1, 1);
        assert!(admission.enter(&mut request(MAX_FIELDS, 1)).is_ok());
        let refused = admission.enter(&mut request(MAX_FIELDS + 1, 1)).err();
        let expected = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        assert_eq!(refused, Some(expected));
    }
}
