//! Streamed replies: GetContainerEvents and the streamed lists.
//!
//! Called by `service`, `pods`, `containers` and `images`. Invariants: a slow reader delays nobody: its queue is
//! bounded, and when it overflows the stream ends with an error; a list whose client takes nothing holds its items no longer
//! than [`PATIENCE`]; a series that is not whole ends with an error; every stream of events ends when the daemon drains.
//! Must not know: what an event means.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_lifecycle::Event;
use coracle_proto::runtime::v1 as cri;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::convert::{self, ListReply};
use super::status::Failure;
use super::{Shared, calls};

/// How long a client may take nothing of a list: it holds what its items are made of.
const PATIENCE: Duration = Duration::from_secs(60);

/// The messages of one streamed reply.
pub(super) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A list as a series of messages, each rendered when the client has taken the one before it.
pub(super) fn replies<R>(items: impl Iterator<Item = R::Item> + Send + 'static) -> Replies<R>
where
    R: ListReply + Send + 'static,
    R::Item: Send,
{
    held_for(PATIENCE, stream::iter(convert::batches(items).map(Ok)))
}

/// The same for a list whose items take time: each message is rendered on the blocking pool.
pub(super) fn blocking_replies<R>(
    what: &'static str,
    items: impl Iterator<Item = R::Item> + Send + 'static,
) -> Replies<R>
where
    R: ListReply + Send + 'static,
    R::Item: Send,
{
    let batches = convert::batches::<R>(items);
    let rendered = stream::unfold(Some(batches), move |batches| async move {
        let mut batches = batches?;
        let rendered = tokio::task::spawn_blocking(move || (batches.next(), batches)).await;
        match rendered {
            Ok((batch, rest)) => Some((Ok(batch?), Some(rest))),
            Err(panic) => {
                let text = format!("{what} did not finish: {panic}");
                Some((Err(Status::internal(text)), None))
            }
        }
    });
    held_for(PATIENCE, rendered)
}

/// `messages`, held until the client has taken them, has left or takes none of them for as long as `patience`: HTTP/2 asks a
/// stream for nothing while its client has no room, so that the stream itself would never learn of that.
fn held_for<T: Send + 'static>(
    patience: Duration,
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Replies<T> {
    let (sender, receiver) = mpsc::channel(1);
    let (end, ended) = ending();
    tokio::spawn(async move {
        let mut messages = std::pin::pin!(messages);
        while let Some(message) = messages.next().await {
            match sender.send_timeout(message, patience).await {
                Ok(()) => {}
                Err(SendTimeoutError::Closed(_)) => return,
                Err(SendTimeoutError::Timeout(_)) => return end.slow_client(patience),
            }
        }
        end.whole();
    });
    until(receiver, ended)
}

/// How a series of messages ends for its client, unless a failure was its last message.
#[derive(Clone)]
pub(super) struct Ending(Arc<Mutex<Option<Status>>>);

/// Of a series that is not whole until [`Ending::whole`] says so: for who makes it, and for its stream.
pub(super) fn ending() -> (Ending, Ending) {
    let broken = Status::internal("the messages broke off");
    let end = Ending(Arc::new(Mutex::new(Some(broken))));
    (end.clone(), end)
}

impl Ending {
    /// All messages are there.
    pub(super) fn whole(&self) {
        *self.lock() = None;
    }

    /// The client was given up.
    pub(super) fn slow_client(&self, patience: Duration) {
        let text = format!("the client took nothing of the reply for {patience:?}");
        *self.lock() = Some(Status::deadline_exceeded(text));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Status>> {
        // Nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The messages of `receiver`, then the ending.
pub(super) fn until<T: Send + 'static>(
    receiver: mpsc::Receiver<Result<T, Status>>,
    ended: Ending,
) -> Replies<T> {
    let last = stream::iter(std::iter::from_fn(move || ended.lock().take().map(Err)));
    Box::pin(ReceiverStream::new(receiver).chain(last))
}

/// GetContainerEvents: everything that happens from now on.
pub(super) async fn watch(
    shared: Arc<Shared>,
    _: cri::GetEventsRequest,
) -> Result<Replies<cri::ContainerEventResponse>, Failure> {
    let source = (shared.pods.subscribe(), shared.draining.clone());
    let counted = calls::subscribe();
    let events = stream::unfold(Some(source), next_event);
    Ok(Box::pin(events.map(move |event| {
        let _ = &counted;
        event
    })))
}

type Source = (Receiver<Arc<Event>>, watch::Receiver<bool>);

/// The next message and the rest of the stream; `None` ends the stream.
async fn next_event(
    source: Option<Source>,
) -> Option<(Result<cri::ContainerEventResponse, Status>, Option<Source>)> {
    let (mut events, mut draining) = source?;
    let received = tokio::select! {
        biased;
        () = drained(&mut draining) => return None,
        received = events.recv() => received,
    };
    match received {
        Ok(event) => Some((Ok(convert::event(&event)), Some((events, draining)))),
        Err(RecvError::Lagged(lost)) => {
            calls::lost_events(lost);
            let failure = Failure::FellBehind { lost };
            Some((Err(failure.into_status("GetContainerEvents")), None))
        }
        Err(RecvError::Closed) => None,
    }
}

/// Resolves once the daemon drains, or its sender is gone.
async fn drained(draining: &mut watch::Receiver<bool>) {
    let _ = draining.wait_for(|on| *on).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use tokio::sync::broadcast;

    use super::*;

    fn open(
        queue: usize,
    ) -> (
        broadcast::Sender<Arc<Event>>,
        watch::Sender<bool>,
        Replies<cri::ContainerEventResponse>,
    ) {
        let (sender, events) = broadcast::channel(queue);
        let (drain, draining) = watch::channel(false);
        (
            sender,
            drain,
            Box::pin(stream::unfold(Some((events, draining)), next_event)),
        )
    }

    #[tokio::test]
    async fn events_arrive_in_order_and_end_with_the_daemon() {
        let (sender, drain, mut stream) = open(8);
        for at in 1..=3 {
            sender.send(convert::sample_event(at)).unwrap();
        }
        for at in 1..=3 {
            assert_eq!(stream.next().await.unwrap().unwrap().created_at, at);
        }
        drain.send(true).unwrap();
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_gets_an_error_and_the_end() {
        let (sender, _drain, mut stream) = open(4);
        for at in 0..10 {
            sender.send(convert::sample_event(at)).unwrap();
        }
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(
            error.message().contains("lost 6 events"),
            "{}",
            error.message()
        );
        assert!(stream.next().await.is_none());
    }

    const SHORT: Duration = Duration::from_millis(400);
    /// Longer than any pause that a slow machine makes here.
    const LONG: Duration = Duration::from_secs(60);

    /// Twenty messages, held for `patience`, and what tells whether they are held.
    fn held(patience: Duration) -> (Replies<usize>, Arc<()>) {
        let held = Arc::new(());
        let messages = (0..20).map({
            let held = Arc::clone(&held);
            move |number| {
                let _ = &held;
                Ok(number)
            }
        });
        (held_for(patience, stream::iter(messages)), held)
    }

    /// Waits until nobody holds the messages.
    async fn dropped(messages: Arc<()>, within: Duration) {
        let held = async {
            while Arc::strong_count(&messages) > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let dropped = tokio::time::timeout(within, held).await;
        dropped.expect("they are held");
    }

    #[tokio::test]
    async fn a_list_whose_client_takes_nothing_is_given_up_and_one_that_is_slow_is_not() {
        let (mut stream, messages) = held(SHORT);
        stream.next().await.unwrap().unwrap();
        dropped(messages, LONG).await;
        let rest: Vec<_> = stream.collect().await;
        let error = rest.last().unwrap().as_ref().unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        // It takes all of it, if slowly: longer than the patience in all, and far less at a time.
        let (mut stream, _messages) = held(SHORT * 8);
        for number in 0..20 {
            tokio::time::sleep(SHORT / 2).await;
            assert_eq!(stream.next().await.unwrap().unwrap(), number);
        }
        assert!(stream.next().await.is_none());
        // One that leaves holds nothing.
        let (stream, messages) = held(LONG * 10);
        drop(stream);
        dropped(messages, LONG).await;
    }

    #[tokio::test]
    async fn a_list_that_breaks_off_does_not_look_whole() {
        let items = (0..2).map(|number| -> cri::Image {
            assert_eq!(number, 0, "the second one cannot be rendered");
            cri::Image {
                id: "x".repeat(4 << 20),
                ..Default::default()
            }
        });
        let mut stream: Replies<cri::StreamImagesResponse> = replies(items);
        let error = loop {
            if let Err(error) = stream.next().await.unwrap() {
                break error;
            }
        };
        assert_eq!(error.code(), tonic::Code::Internal);
    }
}
