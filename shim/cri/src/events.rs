//! Streamed replies: GetContainerEvents and the streamed lists.
//!
//! Called by `service`, `pods`, `containers` and `images`. Invariants: a slow reader delays nobody: its queue is
//! bounded, and when it overflows the stream ends with an error; every stream ends when the daemon drains.
//! Must not know: what an event means.

use std::pin::Pin;
use std::sync::Arc;

use coracle_lifecycle::Event;
use coracle_proto::runtime::v1 as cri;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::watch;
use tonic::Status;

use super::convert::{self, ListReply};
use super::status::Failure;
use super::{Shared, calls};

/// The messages of one streamed reply.
pub(super) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A list as a series of messages, each rendered when the client takes it.
pub(super) fn replies<R>(items: impl Iterator<Item = R::Item> + Send + 'static) -> Replies<R>
where
    R: ListReply + Send + 'static,
    R::Item: Send,
{
    Box::pin(stream::iter(convert::batches(items).map(Ok)))
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
    Box::pin(stream::unfold(Some(batches), move |batches| async move {
        let mut batches = batches?;
        let rendered = tokio::task::spawn_blocking(move || (batches.next(), batches)).await;
        match rendered {
            Ok((batch, rest)) => Some((Ok(batch?), Some(rest))),
            Err(panic) => {
                let text = format!("{what} did not finish: {panic}");
                Some((Err(Status::internal(text)), None))
            }
        }
    }))
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
    use futures_util::StreamExt as _;
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
}
