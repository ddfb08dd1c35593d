//! `nslookup`, `wget` and `curl`: name lookups and HTTP requests with the results that the container's guest would get.
//!
//! Names, addresses and connections go through the guest's [`Guard`] and HTTP client, so that the same things are refused
//! for the same reasons. Invariant: every wait has a timeout.
//! Not supported: redirects, methods other than GET and HEAD. It must not know the egress policy itself.

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

/// Timeout of each step, unless `-T` or `-m` sets another one.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An event loop for this thread. Errors: the system is out of descriptors.
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
        let look_up = async { tokio::time::timeout(TIMEOUT, guard.resolve(name)).await };
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
                    Failure::Invalid => "this is not a name",
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

/// A request, as the options describe it.
struct Fetch<'a> {
    url: &'a str,
    /// Print the response's status and headers, too.
    head: bool,
    /// Send HEAD instead of GET.
    only_head: bool,
    /// A status of 400 and above is a failure.
    strict: bool,
    /// Where the body is saved, if not written to standard output.
    file: Option<&'a str>,
    timeout: Duration,
}

impl<'a> Fetch<'a> {
    /// Errors: a message.
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
            timeout: timeout(options.value('T'))?,
        })
    }

    /// Errors: a message.
    fn of_curl(job: &'a Job<'_>) -> Result<Self, String> {
        let options = Options::parse(job, "sSfivI", "om")?;
        Ok(Self {
            url: url(&options)?,
            head: options.has('i') || options.has('v') || options.has('I'),
            only_head: options.has('I'),
            strict: options.has('f'),
            file: options.value('o').filter(|file| *file != "-"),
            timeout: timeout(options.value('m'))?,
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

fn timeout(text: Option<&str>) -> Result<Duration, String> {
    let Some(text) = text else {
        return Ok(TIMEOUT);
    };
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a time"))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is not a time"))
}

pub(super) fn wget<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    fetch(job, Fetch::of_wget(job), streams)
}

pub(super) fn curl<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    fetch(job, Fetch::of_curl(job), streams)
}

fn fetch<O: Write, E: Write>(
    job: &Job<'_>,
    parsed: Result<Fetch<'_>, String>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let parsed = parsed.and_then(|fetch| fetch.request().map(|request| (fetch, request)));
    let (fetch, request) = match parsed {
        Ok(parsed) => parsed,
        Err(text) => return streams.complain(job.name, &text),
    };
    let client = Client::new(guard(job));
    let exchange = async {
        let options = RequestOptions {
            connect_timeout: Some(fetch.timeout),
            first_byte_timeout: Some(fetch.timeout),
            between_bytes_timeout: Some(fetch.timeout),
        };
        match client.fetch(request, options).await {
            Ok(response) => show(job, &fetch, response, streams).await,
            Err(error) => streams.complain(job.name, &format!("{}: {}", fetch.url, why(&error))),
        }
    };
    reactor()?.block_on(exchange)
}

/// Writes the response to where `fetch` sends it.
async fn show<O: Write, E: Write>(
    job: &Job<'_>,
    fetch: &Fetch<'_>,
    response: Response<WasiBody>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let status = response.status();
    if fetch.strict && status.as_u16() >= 400 {
        let text = format!("{}: the server answered {status}", fetch.url);
        return streams.complain(job.name, &text);
    }
    if fetch.head {
        writeln!(streams.out, "{:?} {status}", response.version())?;
        for (name, value) in response.headers() {
            writeln!(streams.out, "{name}: {}", value.as_bytes().escape_ascii())?;
        }
        writeln!(streams.out)?;
    }
    let copied = match fetch.file.map(|path| File::create(job.path(path))) {
        Some(Err(error)) => return streams.cannot(job, fetch.file.unwrap_or_default(), &error),
        Some(Ok(mut file)) => copy(response.into_body(), &mut file).await?,
        None => copy(response.into_body(), &mut streams.out).await?,
    };
    match copied {
        Ok(()) => Ok(()),
        Err(error) => streams.complain(job.name, &format!("{}: {}", fetch.url, why(&error))),
    }
}

/// Outer error: `to` cannot be written. Inner error: the body ended early.
async fn copy(mut body: WasiBody, to: &mut impl Write) -> io::Result<Result<(), Error>> {
    while let Some(part) = body.frame().await {
        match part {
            Ok(part) => to.write_all(part.data_ref().map_or(&[], |bytes| bytes))?,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
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
