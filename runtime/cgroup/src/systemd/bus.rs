//! One D-Bus connection to systemd's own socket: connect, call, wait for the end of the job.
//!
//! Called by `systemd`. systemd serves D-Bus on a private socket, without a bus daemon, and signals the end of every
//! job to every connection. A connection serves one operation and is dropped: none is open when there is nothing to
//! do, operations of different pods do not queue behind each other, and a re-executed systemd needs no handling.
//! Invariant: no call blocks beyond its deadline.
//! Not here: which methods are called.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::Error;
use super::message::{self, Body, Message};

/// Where systemd listens for root.
pub(super) const SOCKET: &str = "/run/systemd/private";

/// A connection, for a few calls until its deadline.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    deadline: Instant,
    serial: u32,
    /// Jobs that ended, by unit.
    ended: Vec<(String, String)>,
}

/// systemd's reply to a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A method return.
    Accepted,
    /// An error: its name and text.
    Refused { name: String, text: String },
}

impl Bus {
    /// Connects and authenticates as root. Errors: the connection or the authentication is refused.
    pub(super) fn connect(socket: &Path, timeout: Duration) -> Result<Self, Error> {
        let failed = |source| Error::Connect {
            socket: socket.to_owned(),
            source,
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        let mut bus = Self {
            stream,
            deadline: Instant::now() + timeout,
            serial: 0,
            ended: Vec::new(),
        };
        bus.authenticate().map_err(failed)?;
        Ok(bus)
    }

    /// SASL EXTERNAL, as the specification's "Authentication Protocol" has it: the socket's credentials count.
    fn authenticate(&mut self) -> io::Result<()> {
        let uid = rustix::process::getuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 1024 {
                return Err(io::Error::other("the answer to AUTH has no end"));
            }
        }
        if !line.starts_with(b"OK ") {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        self.send(b"BEGIN\r\n")
    }

    /// Calls a method of systemd's manager and waits for its answer.
    pub(super) fn call(&mut self, member: &'static str, body: Body) -> Result<Answer, Error> {
        let failed = |source| Error::Call { member, source };
        self.serial += 1;
        let serial = self.serial;
        self.send(&body.call(serial, member)).map_err(failed)?;
        loop {
            match self.next().map_err(failed)? {
                Message::Return { reply_to } if reply_to == serial => return Ok(Answer::Accepted),
                Message::Error {
                    reply_to,
                    name,
                    text,
                } if reply_to == serial => return Ok(Answer::Refused { name, text }),
                Message::JobRemoved { unit, result } => self.ended.push((unit, result)),
                Message::Return { .. } | Message::Error { .. } | Message::Other => {}
            }
        }
    }

    /// Waits until a job of `unit` has ended and gives its result: `done`, or why not.
    pub(super) fn job_end(&mut self, member: &'static str, unit: &str) -> Result<String, Error> {
        loop {
            if let Some(at) = self.ended.iter().position(|(of, _)| of == unit) {
                return Ok(self.ended.swap_remove(at).1);
            }
            self.ended.clear();
            let next = self.next();
            if let Message::JobRemoved { unit, result } =
                next.map_err(|source| Error::Call { member, source })?
            {
                self.ended.push((unit, result));
            }
        }
    }

    fn next(&mut self) -> io::Result<Message> {
        let mut bytes = vec![0; message::PREFIX_BYTES];
        self.receive(&mut bytes)?;
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed message");
        let whole = message::length_of(&bytes).ok_or_else(malformed)?;
        bytes.resize(whole, 0);
        self.receive(&mut bytes[message::PREFIX_BYTES..])?;
        message::read(&bytes).ok_or_else(malformed)
    }

    /// The time left until the deadline. Errors: none is left.
    fn timeout(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        Ok(Some(left))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(self.timeout()?)?;
        self.stream.write_all(bytes).map_err(in_time)
    }

    fn receive(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_read_timeout(self.timeout()?)?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => bytes = &mut bytes[got..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(in_time(error)),
            }
        }
        Ok(())
    }
}

/// Maps EAGAIN, the error of a socket timeout, to `TimedOut`.
fn in_time(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => error,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// The socket `bus` in a new directory, which accepts one client, answers its greeting with `line` and then says nothing
    /// until the client is gone.
    fn listener(line: &'static [u8]) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(temp.path().join("bus")).unwrap();
        thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut greeting = String::new();
            let mut reader = BufReader::new(client.try_clone().unwrap());
            reader.read_line(&mut greeting).unwrap();
            assert_eq!(greeting, "\0AUTH EXTERNAL 30\r\n");
            client.write_all(line).unwrap();
            let _ = io::copy(&mut reader, &mut io::sink());
        });
        temp
    }

    #[test]
    fn an_authentication_error_carries_the_text_of_systemd() {
        let socket = listener(b"REJECTED EXTERNAL\r\n");
        let error = Bus::connect(&socket.path().join("bus"), PATIENCE).unwrap_err();
        let Error::Connect { source, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(source.to_string(), "REJECTED EXTERNAL");
    }

    #[test]
    fn a_systemd_that_does_not_answer_is_given_up_at_the_deadline() {
        let socket = listener(b"OK 00\r\n");
        let mut bus = Bus::connect(&socket.path().join("bus"), PATIENCE).unwrap();
        // The way there may take long; what is left is short.
        bus.deadline = Instant::now() + Duration::from_millis(100);
        let error = bus.call("StopUnit", Body::default()).unwrap_err();
        let Error::Call { source, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    }
}
