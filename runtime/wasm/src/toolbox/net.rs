//! `nslookup`, and an HTTP GET as `wget` and `curl`: what the container's own guest would be answered.
//!
//! Names, addresses and connections go through the guest's own [`Guard`] and HTTP client, so that what is refused here is
//! refused there, with the same reason. Invariant: every wait has an end.
//! Not here: policies, redirects, requests other than GET and HEAD.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::options::Options;
use super::{Job, Streams};
use crate::http::Client;
use crate::network::{Failure, Guard};

/// How long anything may take, unless `-T` or `-m` says.
const PATIENCE: Duration = Duration::from_secs(30);

/// An event loop of this thread. Errors: the system has no descriptors left.
fn reactor() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
}

fn guard(job: &Job<'_>) -> Arc<Guard> {
    Arc::new(Guard::new(&job.wasm.network, job.wasm.resolver.clone()))
}

/// `nslookup NAME...`.
pub(super) fn nslookup<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let names: Vec<&String> = job.wasm.args.iter().skip(1).collect();
    if names.is_empty() || names.iter().any(|name| name.starts_with('-')) {
        return streams.complain(job.name, "it needs names, and has no options");
    }
    let (reactor, guard) = (reactor()?, guard(job));
    for name in names {
        // The timer needs the event loop that it is made in.
        let look_up = async { tokio::time::timeout(PATIENCE, guard.resolve(name)).await };
        let found = reactor.block_on(look_up);
        match found.unwrap_or(Err(Failure::Unanswered)) {
            Ok(addresses) => {
                writeln!(streams.out, "Name:    {name}")?;
                for address in addresses {
                    writeln!(streams.out, "Address: {address}")?;
                }
            }
            Err(failure) => {
                let why = match failure {
                    Failure::Invalid => "this is no name",
                    Failure::Denied => {
                        "refused by the pod's egress list; egress.coracle.dev/allow has to list it"
                    }
                    Failure::Absent => "there is no such name, or it has no address",
                    Failure::Unanswered => "no name server answered",
                };
                streams.complain(job.name, &format!("{name}: {why}"))?;
            }
        }
    }
    Ok(())
}

/// A request as its options have it.
struct Order<'a> {
    url: &'a str,
    /// Show the response's head, too.
    head: bool,
    /// Ask for nothing but the head.
    only_head: bool,
    /// A status of 400 and above is a failure.
    strict: bool,
    file: Option<&'a str>,
    patience: Duration,
}

impl<'a> Order<'a> {
    /// Errors: a text.
    fn of_wget(job: &'a Job<'_>) -> Result<Self, String> {
        let options = Options::parse(job, "qS", "OT")?;
        let file = options
            .value('O')
            .ok_or("it writes to standard output or to a file that is named: add -O- or -O FILE")?;
        Ok(Self {
            url: url(&options)?,
            head: options.has('S'),
            only_head: false,
            strict: true,
            file: Some(file).filter(|file| *file != "-"),
            patience: patience(options.value('T'))?,
        })
    }

    /// Errors: a text.
    fn of_curl(job: &'a Job<'_>) -> Result<Self, String> {
        let options = Options::parse(job, "sSfivI", "om")?;
        Ok(Self {
            url: url(&options)?,
            head: options.has('i') || options.has('v') || options.has('I'),
            only_head: options.has('I'),
            strict: options.has('f'),
            file: options.value('o').filter(|file| *file != "-"),
            patience: patience(options.value('m'))?,
        })
    }

    fn request(&self) -> Result<Request<WasiBody>, String> {
        let text = match self.url.contains("://") {
            true => self.url.to_owned(),
            false => format!("http://{}", self.url),
        };
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("{}: {error}", self.url))?;
        let host = uri.authority().map(|host| host.as_str().to_owned());
        let method = if self.only_head { "HEAD" } else { "GET" };
        Request::builder()
            .method(method)
            .uri(uri)
            .header("host", host.unwrap_or_default())
            .header("user-agent", "coracle")
            .header("accept", "*/*")
            .body(
                Empty::<Bytes>::new()
                    .map_err(|never| match never {})
                    .boxed_unsync(),
            )
            .map_err(|error| format!("{}: {error}", self.url))
    }
}

fn url<'a>(options: &Options<'a>) -> Result<&'a str, String> {
    match options.operands.as_slice() {
        [url] => Ok(url),
        _ => Err("it needs one URL".to_owned()),
    }
}

fn patience(text: Option<&str>) -> Result<Duration, String> {
    let Some(text) = text else {
        return Ok(PATIENCE);
    };
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no time"))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is no time"))
}

pub(super) fn wget<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    fetch(job, Order::of_wget(job), streams)
}

pub(super) fn curl<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    fetch(job, Order::of_curl(job), streams)
}

fn fetch<O: Write, E: Write>(
    job: &Job<'_>,
    order: Result<Order<'_>, String>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let asked = order.and_then(|order| order.request().map(|request| (order, request)));
    let (order, request) = match asked {
        Ok(asked) => asked,
        Err(text) => return streams.complain(job.name, &text),
    };
    let client = Client::new(guard(job));
    let exchange = async {
        let options = RequestOptions {
            connect_timeout: Some(order.patience),
            first_byte_timeout: Some(order.patience),
            between_bytes_timeout: Some(order.patience),
        };
        match client.fetch(request, options).await {
            Ok(response) => answer(job, &order, response, streams).await,
            Err(error) => streams.complain(job.name, &format!("{}: {}", order.url, why(&error))),
        }
    };
    reactor()?.block_on(exchange)
}

async fn answer<O: Write, E: Write>(
    job: &Job<'_>,
    order: &Order<'_>,
    response: Response<WasiBody>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let status = response.status();
    if order.strict && status.as_u16() >= 400 {
        return streams.complain(
            job.name,
            &format!("{}: the server said {status}", order.url),
        );
    }
    if order.head {
        writeln!(streams.out, "{:?} {status}", response.version())?;
        for (name, value) in response.headers() {
            writeln!(streams.out, "{name}: {}", value.as_bytes().escape_ascii())?;
        }
        writeln!(streams.out)?;
    }
    let mut file = match order.file.map(|path| File::create(job.path(path))) {
        Some(Err(error)) => return streams.cannot(job, order.file.unwrap_or_default(), &error),
        Some(Ok(file)) => Some(file),
        None => None,
    };
    let mut body = response.into_body();
    while let Some(part) = body.frame().await {
        match part {
            Ok(part) => {
                let Some(bytes) = part.data_ref() else {
                    continue;
                };
                match &mut file {
                    Some(file) => file.write_all(bytes)?,
                    None => streams.out.write_all(bytes)?,
                }
            }
            Err(error) => {
                return streams.complain(job.name, &format!("{}: {}", order.url, why(&error)));
            }
        }
    }
    Ok(())
}

/// Why a request failed, for people.
fn why(error: &Error) -> String {
    match error {
        Error::HttpRequestDenied => {
            "refused by the pod's egress list; egress.coracle.dev/allow has to list the host".into()
        }
        Error::DestinationIpProhibited => {
            "refused by the pod's egress list; egress.coracle.dev/allow has to list the address"
                .into()
        }
        Error::DnsError { .. } => "there is no such name, or it has no address".into(),
        Error::DnsTimeout => "no name server answered".into(),
        Error::ConnectionRefused => "connection refused".into(),
        Error::ConnectionTimeout | Error::ConnectionReadTimeout => "timed out".into(),
        Error::DestinationIpUnroutable => "no route to it".into(),
        other => format!("{other:?}"),
    }
}
