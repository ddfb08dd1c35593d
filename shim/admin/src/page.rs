//! The node's page: what `status`, `ps` and `events` say, as one HTML document.
//!
//! ```text
//! browser --GET / on the listener of metrics--> NodePage --> the same snapshots as the admin service
//! ```
//! Called by: the shim, for the listener of metrics. Invariants: names and messages are tenants' text, and stand in the document
//! as text only; it has no script, form or link, so that nothing can be made of it but reading; it says less than `coracle ps`:
//! no environment, argument, annotation or credential; it is rendered at most once in `KEPT` and never larger than
//! `MOST_ROWS` rows allow, however many ask and however many containers there are.
//! Must not know: HTTP.

mod html;

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_images::Transfer;
use coracle_lifecycle::Error;
use coracle_proto::admin::v1 as admin;
use tokio::sync::Mutex;

use super::print::{age, container_row, facts, size};
use super::server::{View, event, now};
use super::{listing, status};
use html::Document;

/// How long a rendered page is shown to whoever asks.
const KEPT: Duration = Duration::from_secs(2);
/// Most rows of the table of containers, which are also all that are measured.
const MOST_ROWS: usize = 500;
/// Most events.
const EVENTS: usize = 50;
/// Most pulls and imports.
const TRANSFERS: usize = 50;

/// Renders the page of this node.
pub struct NodePage {
    view: View,
    began: Instant,
    last: Mutex<Option<(Instant, Arc<str>)>>,
}

impl std::fmt::Debug for NodePage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodePage").finish_non_exhaustive()
    }
}

impl NodePage {
    /// The page of what `view` shows.
    #[must_use]
    pub fn new(view: View) -> NodePage {
        NodePage {
            view,
            began: Instant::now(),
            last: Mutex::new(None),
        }
    }

    /// The document, at most `KEPT` old. Errors: containers cannot be measured.
    pub async fn html(&self) -> Result<Arc<str>, Error> {
        let mut last = self.last.lock().await;
        if let Some((at, page)) = &*last
            && at.elapsed() < KEPT
        {
            return Ok(Arc::clone(page));
        }
        let page: Arc<str> = self.render().await?.into();
        *last = Some((Instant::now(), Arc::clone(&page)));
        Ok(page)
    }

    async fn render(&self) -> Result<String, Error> {
        let status = status::status(&self.view, self.began.elapsed()).await;
        let pods = &self.view.pods;
        let (rows, left_out) = listing::list(pods, true, MOST_ROWS).await?;
        let events = pods.follow_history().0;
        let events: Vec<_> = events.iter().rev().take(EVENTS).collect();
        let events: Vec<_> = events.into_iter().map(|entry| event(entry)).collect();
        let transfers = self.view.images.transfers("");
        let mut page = Document::begin(&format!("coracle on {}", node_name()));
        write_status(&mut page, &status);
        write_containers(&mut page, &rows, left_out);
        write_transfers(&mut page, &transfers);
        write_events(&mut page, &events);
        Ok(page.end())
    }
}

fn node_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

fn write_status(page: &mut Document, status: &admin::StatusReply) {
    let verdict = if status.ready { "ready" } else { "not ready" };
    page.verdict(verdict, status.ready);
    page.list(&status.problems);
    // The reader knows where the listener is.
    let facts = facts(status).into_iter();
    let facts = facts.filter(|(name, _)| *name != "metrics");
    let rows: Vec<_> = facts
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    page.table(&[], &rows);
}

fn write_containers(page: &mut Document, rows: &[admin::Container], left_out: usize) {
    page.heading("Containers");
    let heads = [
        "namespace/pod",
        "container",
        "id",
        "kind",
        "state",
        "age",
        "memory",
        "CPU",
        "image",
    ];
    let now = now();
    let rows: Vec<_> = rows.iter().map(|line| container_row(line, now)).collect();
    page.table(&heads, &rows);
    if left_out > 0 {
        page.note(&format!("{left_out} more; coracle ps -a lists them"));
    }
}

fn write_transfers(page: &mut Document, transfers: &[Transfer]) {
    page.heading("Pulls and imports");
    let row = |transfer: &Transfer| {
        let layers = format!("{} of {}", transfer.unpacked_layers, transfer.layers);
        let bytes = format!(
            "{} of {}",
            size(transfer.received_bytes),
            size(transfer.total_bytes)
        );
        let seconds = i64::try_from(transfer.elapsed.as_nanos()).unwrap_or(i64::MAX);
        vec![transfer.reference.clone(), bytes, layers, age(seconds)]
    };
    let rows: Vec<_> = transfers.iter().take(TRANSFERS).map(row).collect();
    page.table(&["image", "received", "layers unpacked", "age"], &rows);
}

fn write_events(page: &mut Document, events: &[admin::Event]) {
    page.heading("Events");
    let now = now();
    let row = |event: &admin::Event| {
        vec![
            age(now - event.at),
            format!("{}/{}", event.namespace, event.pod),
            event.container.clone(),
            event.what.clone(),
            format!("{} ms", event.took_ms),
        ]
    };
    let rows: Vec<_> = events.iter().map(row).collect();
    page.table(
        &["ago", "namespace/pod", "container", "what", "took"],
        &rows,
    );
}
