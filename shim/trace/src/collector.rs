//! The connection to a collector: OTLP over gRPC, with TLS or without.
//!
//! Called by: [`super::exporter`]; `check`, to say whether it can be used at all. Invariants: nothing is connected before the
//! first batch; a batch takes at most [`LIMIT`]; an answer is bounded, and its text is not shown: a stranger wrote it.
//! Must not know: queues, what spans say.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// How long one batch may take, the connection included.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest answer; a good one has a few bytes.
const MAX_ANSWER: usize = 64 << 10;

/// A collector.
#[derive(Clone, Debug)]
pub struct Collector {
    endpoint: Endpoint,
}

/// The configuration does not name a collector that could be connected to.
#[derive(Debug, thiserror::Error)]
#[error("use {endpoint} as the collector of traces")]
pub struct Unusable {
    endpoint: String,
    source: tonic::transport::Error,
}

impl Collector {
    /// The collector at `endpoint`, a URL; for `https`, `ca` are the certificates in PEM that may vouch for it.
    pub fn new(endpoint: &str, ca: Option<&[u8]>) -> Result<Collector, Unusable> {
        let unusable = |source| Unusable {
            endpoint: endpoint.to_owned(),
            source,
        };
        let mut to = Endpoint::from_shared(endpoint.to_owned())
            .map_err(unusable)?
            .connect_timeout(LIMIT)
            .timeout(LIMIT);
        if let Some(ca) = ca {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            to = to.tls_config(tls).map_err(unusable)?;
        }
        Ok(Collector { endpoint: to })
    }

    /// To be called in a tokio runtime. It connects with the first batch.
    pub(super) fn client(&self, version: &'static str) -> Client {
        let client = TraceServiceClient::new(self.endpoint.connect_lazy());
        Client {
            client: client.max_decoding_message_size(MAX_ANSWER),
            resource: ResourceAttributesWithSchema::from(&resource(version)),
        }
    }
}

/// What every span of this daemon says of its origin.
fn resource(version: &'static str) -> Resource {
    let node = rustix::system::uname();
    let node = node.nodename().to_string_lossy().into_owned();
    let attributes = [
        KeyValue::new("service.name", "coracle"),
        KeyValue::new("service.version", version),
        KeyValue::new("host.name", node),
        KeyValue::new("os.type", "linux"),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ];
    Resource::builder_empty()
        .with_attributes(attributes)
        .build()
}

/// A connection, which is made again when it is lost.
pub(super) struct Client {
    client: TraceServiceClient<Channel>,
    resource: ResourceAttributesWithSchema,
}

impl Client {
    /// Sends `spans`, and returns how many of them the collector refused. Errors: it has none of them.
    pub async fn send(&mut self, spans: Vec<SpanData>) -> Result<u64, Code> {
        let sent = spans.len() as u64;
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(spans, &self.resource),
        };
        // The channel has limits of its own, but none for a body that never ends.
        let answer = tokio::time::timeout(LIMIT, self.client.export(request));
        let answer = answer.await.map_err(|_| Code::DeadlineExceeded)?;
        let answer = answer.map_err(|status| status.code())?.into_inner();
        let refused = answer
            .partial_success
            .map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(refused).unwrap_or(0).min(sent))
    }
}
