//! A client of streaming servers, written from the protocols alone: exec, attach and port-forward over SPDY/3.1 and over
//! WebSocket, in every version, and with broken clients where a test needs them.
//!
//! ```text
//! URL of a CRI reply --upgrade--> spdy::Session | websocket::Socket --> Remote (exec, attach) | pairs of streams
//! ```
//! Invariants: nothing is read ahead but a few frames, so that a test that does not read blocks the server; dropping a
//! client closes its connection, as the end of a process does.
//! Not here: what a server should answer.

pub mod spdy;
pub mod websocket;

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::Outcome;

/// How long a server may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where a session is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `address:port`.
    pub host: String,
    /// With its slash.
    pub path: String,
}

impl Url {
    /// Of a URL without TLS. Errors: it has another scheme, or no path.
    pub fn parse(text: &str) -> Outcome<Url> {
        let rest = text.strip_prefix("http://");
        let parts = rest.and_then(|rest| rest.split_once('/'));
        let (host, path) = parts.ok_or_else(|| format!("{text:?} is no http URL"))?;
        Ok(Url {
            host: host.into(),
            path: format!("/{path}"),
        })
    }
}

/// A server's response to an upgrade request.
#[derive(Debug)]
pub struct Answer {
    /// 101 if it is one.
    pub status: u16,
    /// All of it, as text.
    pub head: String,
    /// The connection.
    pub socket: TcpStream,
}

impl Answer {
    /// The value of a header, its name compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut found = pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    }
}

/// Asks for an upgrade by these header lines, and reads the head of the answer.
pub async fn upgrade(url: &Url, method: &str, headers: &[(&str, &str)]) -> Outcome<Answer> {
    let mut socket = TcpStream::connect(&url.host).await?;
    socket.set_nodelay(true)?;
    let mut request = format!("{method} {} HTTP/1.1\r\n", url.path);
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        request += &format!("Host: {}\r\n", url.host);
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    socket.write_all((request + "\r\n").as_bytes()).await?;
    let head = tokio::time::timeout(TIMEOUT, head(&mut socket)).await??;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| format!("{head:?} is no HTTP"))?;
    Ok(Answer {
        status,
        head,
        socket,
    })
}

/// Up to the empty line and no further: what follows is of another protocol.
async fn head(socket: &mut TcpStream) -> Outcome<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        if bytes.len() > 16 << 10 {
            return Err("an answer without end".into());
        }
        bytes.push(socket.read_u8().await?);
    }
    Ok(String::from_utf8(bytes)?)
}

/// Which streams an exec or attach has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// A terminal: sizes are sent, and errors come with the output.
    pub tty: bool,
    /// Input is sent.
    pub stdin: bool,
    /// Output comes.
    pub stdout: bool,
    /// Errors come.
    pub stderr: bool,
}

/// How an exec or attach is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// SPDY/3.1 with this `X-Stream-Protocol-Version`.
    Spdy(&'static str),
    /// WebSocket with this subprotocol; empty for none.
    WebSocket(&'static str),
}

impl Wire {
    /// Whether the error stream is JSON.
    pub fn has_json(self) -> bool {
        let (Wire::Spdy(name) | Wire::WebSocket(name)) = self;
        name.starts_with("v4.") || name.starts_with("v5.")
    }

    /// Whether the protocol can signal the end of input.
    pub fn half_closes(self) -> bool {
        matches!(self, Wire::Spdy(_) | Wire::WebSocket("v5.channel.k8s.io"))
    }

    /// Whether the protocol can send terminal sizes.
    pub fn resizes(self) -> bool {
        !matches!(self, Wire::Spdy("v2.channel.k8s.io" | "channel.k8s.io"))
    }
}

/// Every way to speak exec and attach.
pub const WIRES: &[Wire] = &[
    Wire::Spdy("v4.channel.k8s.io"),
    Wire::Spdy("v3.channel.k8s.io"),
    Wire::Spdy("v2.channel.k8s.io"),
    Wire::Spdy("channel.k8s.io"),
    Wire::WebSocket("v5.channel.k8s.io"),
    Wire::WebSocket("v4.channel.k8s.io"),
    Wire::WebSocket("v4.base64.channel.k8s.io"),
    Wire::WebSocket("channel.k8s.io"),
    Wire::WebSocket("base64.channel.k8s.io"),
    Wire::WebSocket(""),
];

/// The two that clients of today speak.
pub const MODERN: &[Wire] = &[
    Wire::Spdy("v4.channel.k8s.io"),
    Wire::WebSocket("v5.channel.k8s.io"),
];

/// A piece of a session's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of its output.
    Out(Vec<u8>),
    /// Of its errors.
    Err(Vec<u8>),
    /// Of how it ended.
    Status(Vec<u8>),
}

/// Something to send to: a stream of SPDY, a channel of a WebSocket.
pub enum Input {
    /// A stream.
    Spdy(spdy::Outgoing),
    /// A channel.
    Channel(websocket::Channel),
}

impl Input {
    /// Sends bytes; waits while the server does not take them. Errors: the connection is gone.
    pub async fn send(&self, bytes: &[u8]) -> Outcome<()> {
        match self {
            Input::Spdy(stream) => stream.send(bytes).await,
            Input::Channel(channel) => channel.send(bytes).await,
        }
    }

    /// Says that no more comes. Errors: the connection is gone.
    pub async fn end(&self) -> Outcome<()> {
        match self {
            Input::Spdy(stream) => stream.end().await,
            Input::Channel(channel) => channel.end().await,
        }
    }
}

/// An open exec or attach; dropping it closes its connection.
pub struct Remote {
    /// Input, if it was requested.
    pub stdin: Option<Input>,
    /// Sizes, if there is a terminal and the protocol has them.
    pub sizes: Option<Input>,
    parts: mpsc::Receiver<Part>,
    _connection: Box<dyn Send>,
}

/// All that a session said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Its output.
    pub out: Vec<u8>,
    /// Its errors.
    pub err: Vec<u8>,
    /// How it ended.
    pub status: String,
}

impl Received {
    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// The exit code, where the protocol has it. Errors: the session failed otherwise.
    pub fn code(&self) -> Result<i32, String> {
        let status: Value = serde_json::from_str(&self.status).map_err(|_| self.status.clone())?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        let cause = &status["details"]["causes"][0];
        let code = cause["message"].as_str().and_then(|code| code.parse().ok());
        match code {
            Some(code)
                if status["reason"] == "NonZeroExitCode" && cause["reason"] == "ExitCode" =>
            {
                Ok(code)
            }
            _ => Err(self.status.clone()),
        }
    }
}

/// Passes on what comes from the server until that ends, or nobody takes it.
async fn forward(
    mut incoming: spdy::Incoming,
    part: fn(Vec<u8>) -> Part,
    output: mpsc::Sender<Part>,
) {
    while let Some(bytes) = incoming.next().await {
        if output.send(part(bytes)).await.is_err() {
            return;
        }
    }
}

impl Remote {
    /// Opens a session. Errors: the server refuses it, with its answer.
    pub async fn open(url: &str, wire: Wire, ends: Ends) -> Outcome<Remote> {
        let url = Url::parse(url)?;
        match wire {
            Wire::Spdy(protocol) => Self::spdy(&url, protocol, ends, wire.resizes()).await,
            Wire::WebSocket(protocol) => Self::websocket(&url, protocol, ends).await,
        }
    }

    async fn spdy(url: &Url, protocol: &str, ends: Ends, resizes: bool) -> Outcome<Remote> {
        let session = spdy::Session::open(url, protocol).await?;
        let (output, parts) = mpsc::channel(4);
        let mut inputs = Vec::new();
        for (name, wanted) in [
            ("error", true),
            ("stdin", ends.stdin),
            ("stdout", ends.stdout),
            ("stderr", ends.stderr),
            ("resize", ends.tty && resizes),
        ] {
            if !wanted {
                inputs.push(None);
                continue;
            }
            let stream = session.stream(&[("streamtype", name)]).await?;
            let (outgoing, incoming) = stream.split();
            inputs.push(Some(Input::Spdy(outgoing)));
            if matches!(name, "stdin" | "resize") {
                continue;
            }
            let part = match name {
                "error" => Part::Status,
                "stderr" => Part::Err,
                _ => Part::Out,
            };
            tokio::spawn(forward(incoming, part, output.clone()));
        }
        let sizes = inputs.pop().flatten();
        Ok(Remote {
            stdin: inputs.swap_remove(1),
            sizes,
            parts,
            _connection: Box::new(session),
        })
    }

    async fn websocket(url: &Url, protocol: &str, ends: Ends) -> Outcome<Remote> {
        let socket = websocket::Socket::open(url, protocol).await?;
        let (output, parts) = mpsc::channel(4);
        let channel = |number, wanted: bool| wanted.then(|| Input::Channel(socket.channel(number)));
        let (stdin, sizes) = (channel(0, ends.stdin), channel(4, ends.tty));
        let reader = socket.forward(move |channel, bytes| {
            let output = output.clone();
            async move {
                let part = match channel {
                    2 => Part::Err(bytes),
                    3 => Part::Status(bytes),
                    _ => Part::Out(bytes),
                };
                output.send(part).await.is_ok()
            }
        });
        Ok(Remote {
            stdin,
            sizes,
            parts,
            _connection: Box::new(reader),
        })
    }

    /// The next piece; none at the end.
    pub async fn next(&mut self) -> Option<Part> {
        self.parts.recv().await
    }

    /// Waits until the output holds `text`. Errors: it ended before.
    pub async fn wait_for(&mut self, text: &str) -> Outcome<String> {
        let mut seen = String::new();
        while !seen.contains(text) {
            let next = tokio::time::timeout(TIMEOUT, self.next()).await?;
            match next {
                Some(Part::Out(bytes) | Part::Err(bytes)) => {
                    seen.push_str(&String::from_utf8_lossy(&bytes))
                }
                Some(Part::Status(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                None => return Err(format!("it ended without {text:?}: {seen:?}").into()),
            }
        }
        Ok(seen)
    }

    /// Reads to the end. Errors: it does not end.
    pub async fn finish(mut self) -> Outcome<Received> {
        let mut output = Received::default();
        loop {
            match tokio::time::timeout(TIMEOUT, self.next()).await? {
                Some(Part::Out(bytes)) => output.out.extend(bytes),
                Some(Part::Err(bytes)) => output.err.extend(bytes),
                Some(Part::Status(bytes)) => {
                    output.status.push_str(&String::from_utf8_lossy(&bytes))
                }
                None => return Ok(output),
            }
        }
    }
}
