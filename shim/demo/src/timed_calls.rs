//! The CRI calls of the demo: each is timed, and printed as a line of a table when it is answered.
//!
//! Called by: `steps`. Invariant: the time is that of the call alone, measured at the client's side of the socket.
//! Must not know: which calls are made, and why.

use std::fmt::Display;
use std::future::Future;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1::image_service_client::ImageServiceClient;
use coracle_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

use super::error::Error;

/// The deadline of each call.
const CALL: Duration = Duration::from_secs(20);

/// A client of the daemon's socket.
#[derive(Clone, Debug)]
pub struct Calls {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Calls {
    /// A client for `socket`; it connects at the first call, and again when the daemon does not listen yet.
    pub fn new(socket: &Path) -> Calls {
        let socket = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL);
        let channel = endpoint.connect_with_connector_lazy(connect);
        Calls {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
        }
    }

    /// The runtime service.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// The image service.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }
}

/// Makes a call about `object`, and prints how long it took and what `shown` says of the reply.
///
/// Errors: the refusal, with its code; standard output is closed.
pub async fn call<T>(
    name: &str,
    object: &str,
    request: impl Future<Output = Result<Response<T>, Status>>,
    shown: impl FnOnce(&T) -> String,
) -> Result<T, Error> {
    let begun = Instant::now();
    let answer = request.await;
    let took = begun.elapsed();
    let reply = answer
        .map_err(|status| refused(name, object, &status))?
        .into_inner();
    let milliseconds = format!("{:.1}", took.as_secs_f64() * 1e3);
    row(name, object, &milliseconds, shown(&reply))?;
    Ok(reply)
}

/// Prints the head of the table.
pub fn head() -> Result<(), Error> {
    row("CRI call", "on", "ms", "reply")
}

/// Prints one line of text.
pub fn print_line(line: impl Display) -> Result<(), Error> {
    let written = writeln!(io::stdout().lock(), "{line}");
    written.map_err(|error| Error::because("write to standard output", error))
}

fn row(name: &str, object: &str, milliseconds: &str, shown: impl Display) -> Result<(), Error> {
    print_line(format_args!(
        "  {name:<18}{object:<9}{milliseconds:>7}  {shown}"
    ))
}

/// A refusal as an error: the call, its object, the name of the code and the message.
pub fn refused(name: &str, object: &str, status: &Status) -> Error {
    Error::new(format!(
        "{name} {object}: {:?}: {}",
        status.code(),
        status.message()
    ))
}
