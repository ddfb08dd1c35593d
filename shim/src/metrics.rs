//! Puts the metrics together: what is measured, what the crates count, and the listener that serves it.
//!
//! Called by `serve`, once. Invariant: without an address nothing listens, but the kubelet can still read metrics by CRI.
//! Must not know: any metric.

use std::error::Error;
use std::sync::Arc;

use coracle_admin::page::NodePage;
use coracle_admin::server::{Facts, View};
use coracle_config::Config;
use coracle_images::Images;
use coracle_lifecycle::Pods;
use coracle_metrics::Format;
use coracle_metrics::listener::{Answer, Listener, Refusal, Source};
use coracle_telemetry::{Build, Collector, Daemon, PATHS, Scrapes};
use futures_util::future::BoxFuture;

/// What is measured and counted, and the listener that serves it.
pub struct Metrics {
    /// The series of containers.
    pub containers: Arc<Collector>,
    /// The daemon's own.
    pub daemon: Daemon,
    /// `None` without an address in the configuration.
    pub listener: Option<Listener>,
}

/// The path of the page.
const PAGE: &str = "/";

/// What the listener serves.
struct Site {
    scrapes: Scrapes,
    page: NodePage,
}

impl Source for Site {
    fn paths(&self) -> &'static [&'static str] {
        &[PATHS[0], PATHS[1], PAGE]
    }

    fn gather(
        self: Arc<Self>,
        path: &'static str,
        format: Format,
    ) -> BoxFuture<'static, Result<Answer, Refusal>> {
        Box::pin(async move {
            if path == PAGE {
                let page = self.page.html().await;
                let failed = |error: coracle_lifecycle::Error| Refusal::Failed(error.chain());
                return page.map(Answer::Page).map_err(failed);
            }
            self.scrapes.text(path, format).await.map(Answer::Metrics)
        })
    }
}

/// Starts the listener, if the configuration has an address; `engine` is the hash of the daemon's engine. Errors: the address
/// cannot be used.
pub async fn start(
    config: &Config,
    pods: &Pods,
    images: &Images,
    (engine, facts): (String, Facts),
) -> Result<Metrics, Box<dyn Error>> {
    let root = config.root.clone();
    let collector = Collector::new(pods.clone(), root, config.metrics.processes);
    let containers = Arc::new(collector);
    let counted = coracle_cri::calls::all().into_iter();
    let counted = counted.chain(crate::reload::metrics());
    let daemon = Daemon {
        build: Build {
            version: env!("CARGO_PKG_VERSION"),
            commit: crate::version::COMMIT,
            engine,
            wasmtime: crate::version::WASMTIME,
        },
        pods: pods.clone(),
        images: images.clone(),
        counted: counted
            .chain(coracle_lifecycle::counters::all())
            .chain(coracle_host::metrics())
            .chain(coracle_streaming::metrics())
            .chain([coracle_telemetry::observe_unpacking(images)])
            .chain(coracle_nri::metrics())
            .chain(coracle_trace::metrics())
            .collect(),
    };
    let mut listener = None;
    if let Some(address) = config.metrics.address {
        let source = Site {
            scrapes: Scrapes::new(Arc::clone(&containers), daemon.clone()),
            page: NodePage::new(View {
                facts,
                pods: pods.clone(),
                images: images.clone(),
            }),
        };
        let bound = Listener::bind(address, Arc::new(source)).await?;
        tracing::info!(address = %bound.address, "serving metrics");
        listener = Some(bound);
    }
    Ok(Metrics {
        containers,
        daemon,
        listener,
    })
}
