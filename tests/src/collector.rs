//! A collector of traces: OTLP over gRPC, as its protocol says, with TLS or without, which keeps what it gets.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
pub use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::Outcome;

/// What a collector answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// That it has the spans.
    Good,
    /// Nothing, ever.
    None,
    /// That it refused more spans than there were.
    Refused,
    /// The same, for a reason of two MiB.
    Huge,
}

/// A collector that runs until the test ends.
pub struct Collector {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    spans: Vec<Span>,
    resources: Vec<Resource>,
}

/// A certificate that vouches for itself, and its key.
pub struct Certificate {
    /// The certificate.
    pub pem: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// Makes one for `host`, with openssl, in files of `directory` that begin with `name`.
    pub fn make(directory: &Path, name: &str, host: &str) -> Outcome<Certificate> {
        let certificate = Certificate {
            pem: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=collector", "-addext"])
            .arg(format!("subjectAltName=DNS:{host}"))
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&certificate.key)
            .arg("-out")
            .arg(&certificate.pem)
            .output()?;
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr);
            return Err(format!("openssl: {why}").into());
        }
        Ok(certificate)
    }
}

struct Service {
    answer: Answer,
    kept: Arc<Mutex<Kept>>,
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.answer == Answer::None {
            std::future::pending::<()>().await;
        }
        let mut kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        for of in request.into_inner().resource_spans {
            kept.resources.extend(of.resource);
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.spans.extend(spans);
        }
        let length = if self.answer == Answer::Huge {
            1 << 20
        } else {
            1
        };
        let refused = ExportTracePartialSuccess {
            rejected_spans: i64::MAX,
            error_message: "no".repeat(length),
        };
        let partial_success = (self.answer != Answer::Good).then_some(refused);
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success,
        }))
    }
}

impl Collector {
    /// Starts one on a free port of loopback.
    pub async fn start(answer: Answer) -> Outcome<Collector> {
        Self::start_with(answer, Server::builder()).await
    }

    /// Starts one that speaks TLS.
    pub async fn start_tls(answer: Answer, certificate: &Certificate) -> Outcome<Collector> {
        let identity = Identity::from_pem(
            std::fs::read(&certificate.pem)?,
            std::fs::read(&certificate.key)?,
        );
        let tls = ServerTlsConfig::new().identity(identity);
        Self::start_with(answer, Server::builder().tls_config(tls)?).await
    }

    async fn start_with(answer: Answer, mut server: Server) -> Outcome<Collector> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let kept = Arc::default();
        let service = Service {
            answer,
            kept: Arc::clone(&kept),
        };
        let server = server.add_service(TraceServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Collector { address, kept })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans of one trace, in the order in which they ended.
    pub fn spans(&self, trace: u128) -> Vec<Span> {
        let kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        let of = |span: &&Span| span.trace_id == trace.to_be_bytes();
        kept.spans.iter().filter(of).cloned().collect()
    }

    /// All spans.
    pub fn count(&self) -> usize {
        let kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        kept.spans.len()
    }

    /// The attributes of all that sent spans.
    pub fn senders(&self) -> HashSet<(String, String)> {
        let kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        let attributes = kept.resources.iter().flat_map(|of| of.attributes.clone());
        attributes
            .map(|pair| (pair.key, text(pair.value.and_then(|value| value.value))))
            .collect()
    }
}

/// One attribute of a span, as text; empty without one.
pub fn attribute(span: &Span, key: &str) -> String {
    let mut pairs = span.attributes.iter().filter(|pair| pair.key == key);
    let value = pairs.next().and_then(|pair| pair.value.clone());
    text(value.and_then(|value| value.value))
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}
