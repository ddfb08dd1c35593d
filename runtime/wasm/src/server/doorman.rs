//! The doorman of a sleeping function: answers health probes in the guest's stead, and keeps everybody else for the guest.
//!
//! Called in a process that was forked because somebody connected, inside the container's jail, before an engine is there.
//! It ends when the probes have their answers; with somebody who wants the guest, it becomes the server.
//! Invariants: it has seen no guest and keeps nothing from one call to the next; a head is looked at, and taken from the
//! socket only once it is known to be a probe's, so that a server finds every byte of whoever wants the guest; whatever is
//! not a probe beyond doubt is for the guest.
//! Not here: whether a function is well enough to be vouched for, who forks, serving.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SocketFlags};

use super::idle;
use coracle_spec::error::{Context as _, Result};

/// How long somebody who has connected may say nothing before a guest is started for whatever it will be.
const SILENCE: Duration = Duration::from_secs(1);
/// Bytes of a head that are looked at; the kubelet's has some 150.
const HEAD: usize = 2_048;
/// Header fields of a probe; the kubelet sends four, and what a pod's `httpHeaders` say.
const FIELDS: usize = 32;
/// Most silent connections that are waited for.
const MAX_SILENT: usize = 64;
/// What a probe is told.
const ASLEEP: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 7\r\nconnection: close\r\n\r\nasleep\n";

/// The first bytes of a connection, which stay in it.
#[derive(Debug, PartialEq, Eq)]
enum Peeked {
    /// None have come yet.
    Silent,
    /// None will come: the connection is closed, as that of a `tcpSocket` probe.
    Closed,
    /// A whole `httpGet` probe of so many bytes.
    Probe(usize),
    /// Anything else, which is for the guest.
    Request,
}

/// Answers the probes among those who connect to `listener`, until nobody is left or somebody wants the guest; `stop` can be
/// read once the function is to stop. Gives the connections that a server has to begin with: none if nobody wants one.
///
/// Errors: the kernel refuses to wait.
pub fn receive(listener: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> Result<Vec<TcpStream>> {
    receive_unless_silent(listener, stop, SILENCE)
}

/// As [`receive`]; whoever has said nothing for `patience` is for the guest.
fn receive_unless_silent(
    listener: BorrowedFd<'_>,
    stop: BorrowedFd<'_>,
    patience: Duration,
) -> Result<Vec<TcpStream>> {
    let mut silent: Vec<(Instant, TcpStream)> = Vec::new();
    loop {
        let mut heard = Vec::new();
        // The others wait in the kernel, however fast they come.
        while silent.len() + heard.len() <= MAX_SILENT
            && let Some(stream) = accept(listener)
        {
            heard.push((Instant::now(), stream));
        }
        heard.append(&mut silent);
        let mut wants_guest = false;
        for (since, mut stream) in heard {
            match peek(&stream) {
                Peeked::Closed => {}
                // An error says that its client is gone.
                Peeked::Probe(bytes) => drop(answer(&mut stream, bytes)),
                Peeked::Request => {
                    wants_guest = true;
                    silent.push((since, stream));
                }
                Peeked::Silent => silent.push((since, stream)),
            }
        }
        let late = silent.iter().any(|(since, _)| since.elapsed() >= patience);
        let is_over = silent.is_empty() || wants_guest || late || silent.len() > MAX_SILENT;
        if is_over || is_readable(stop)? {
            return Ok(silent.into_iter().map(|(_, stream)| stream).collect());
        }
        let oldest = silent.iter().map(|(since, _)| since.elapsed()).max();
        let left = patience.saturating_sub(oldest.unwrap_or_default());
        wait(listener, stop, &silent, left)?;
    }
}

/// The next connection, if there is one.
fn accept(listener: BorrowedFd<'_>) -> Option<TcpStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let accepted: OwnedFd = rustix::net::accept_with(listener, flags).ok()?;
    Some(accepted.into())
}

/// Looks at what has arrived on `stream`.
fn peek(stream: &TcpStream) -> Peeked {
    let mut seen = [0; HEAD];
    match rustix::net::recv(stream, &mut seen[..], RecvFlags::PEEK) {
        Ok((_, 0)) => Peeked::Closed,
        Ok((_, count)) if is_probe(&seen[..count]) => Peeked::Probe(count),
        Ok(_) => Peeked::Request,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Peeked::Silent,
        Err(_) => Peeked::Closed,
    }
}

/// Whether this is the whole of what the kubelet sends for an `httpGet` probe: one head, and nothing behind it.
fn is_probe(seen: &[u8]) -> bool {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(length)) = request.parse(seen) else {
        return false;
    };
    let has = |name: &str| {
        let mut names = request.headers.iter();
        names.any(|field| field.name.eq_ignore_ascii_case(name))
    };
    let agents = request.headers.iter();
    let mut agents = agents.filter(|field| field.name.eq_ignore_ascii_case("user-agent"));
    let is_kubelet = agents
        .next()
        .is_some_and(|field| idle::is_probe(field.value));
    length == seen.len()
        && request.method == Some("GET")
        && request.version == Some(1)
        && is_kubelet
        && agents.next().is_none()
        && !["content-length", "transfer-encoding", "upgrade", "expect"]
            .into_iter()
            .any(has)
}

/// Takes the head of `bytes` from the socket and answers. Errors: the client is gone.
fn answer(stream: &mut TcpStream, bytes: usize) -> io::Result<()> {
    // What is left unread would have the kernel reset the connection.
    stream.read_exact(&mut [0; HEAD][..bytes])?;
    // A new connection's buffer is empty, and has room for this.
    stream.write_all(ASLEEP)?;
    stream.shutdown(std::net::Shutdown::Write)
}

fn is_readable(fd: BorrowedFd<'_>) -> Result<bool> {
    let now = Timespec::default();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&now)) {
        Ok(found) => Ok(found > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(e) => Err(e).during(|| "look for a stop signal".into()),
    }
}

/// Waits until somebody connects or says something, at most for `left`.
fn wait(
    listener: BorrowedFd<'_>,
    stop: BorrowedFd<'_>,
    silent: &[(Instant, TcpStream)],
    left: Duration,
) -> Result<()> {
    let on = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut fds = vec![on(listener), on(stop)];
    fds.extend(silent.iter().map(|(_, stream)| on(stream.as_fd())));
    let left = Timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => {
            Err(e).during(|| "wait for those who have connected to a sleeping function".into())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use std::net::{Shutdown, SocketAddr, TcpListener};
    use std::thread::{self, JoinHandle};

    use rustix::event::{EventfdFlags, eventfd};

    /// As kubelet 1.37 sends it.
    const PROBE: &[u8] = b"GET /ready HTTP/1.1\r\nHost: 10.1.2.3:8080\r\nUser-Agent: kube-probe/1.37\r\nAccept: */*\r\nConnection: close\r\n\r\n";

    fn probe(from: &str, to: &str) -> Vec<u8> {
        let text = std::str::from_utf8(PROBE).unwrap();
        assert!(text.contains(from));
        text.replace(from, to).into_bytes()
    }

    #[test]
    fn only_the_whole_head_of_a_probe_is_one() {
        assert!(is_probe(PROBE));
        assert!(is_probe(&probe("Accept: */*", "X-Of-The-Pod: 1")));
        for (from, to) in [
            ("GET", "POST"),
            ("GET", "HEAD"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("kube-probe/", "curl/"),
            ("kube-probe/", "my-kube-probe/"),
            ("Accept: */*", "Content-Length: 1"),
            ("Accept: */*", "Transfer-Encoding: chunked"),
            ("Accept: */*", "Upgrade: websocket"),
            ("Accept: */*", "Expect: 100-continue"),
            ("Accept: */*", "User-Agent: curl/8"),
            ("Accept: */*", "Accept : */*"),
            ("\r\n\r\n", "\r\n"),
            ("\r\n\r\n", "\r\n\r\nGET / HTTP/1.1\r\n"),
            ("Accept: */*", &"a: 1\r\n".repeat(FIELDS)),
        ] {
            let other = probe(from, to);
            assert!(!is_probe(&other), "{}", String::from_utf8_lossy(&other));
        }
        assert!(!is_probe(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    }

    /// Nobody is silent for so long here, on however slow a machine.
    const LONG: Duration = Duration::from_secs(600);

    /// A doorman at an address of its own, and what has it stop.
    fn doorman(patience: Duration) -> (SocketAddr, OwnedFd, JoinHandle<Vec<TcpStream>>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let first = TcpStream::connect(at).unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let own = stop.try_clone().unwrap();
        let thread = thread::spawn(move || {
            receive_unless_silent(listener.as_fd(), own.as_fd(), patience).unwrap()
        });
        (at, stop, thread, first)
    }

    fn answer_to(mut stream: &TcpStream, head: &[u8]) -> String {
        stream.write_all(head).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn probes_are_answered_and_then_it_ends() {
        let (at, _stop, thread, first) = doorman(LONG);
        let others: Vec<_> = (0..20).map(|_| TcpStream::connect(at).unwrap()).collect();
        // As a tcpSocket probe: one that has said nothing is not waited for.
        others[0].shutdown(Shutdown::Both).unwrap();
        for stream in others[1..].iter().chain([&first]) {
            let text = answer_to(stream, PROBE);
            assert!(
                text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nasleep\n"),
                "{text}"
            );
        }
        assert_eq!(thread.join().unwrap().len(), 0);
    }

    #[test]
    fn whoever_wants_the_guest_is_handed_on_with_every_byte_and_so_is_who_is_silent() {
        let (at, _stop, thread, mut first) = doorman(LONG);
        let mut silent = TcpStream::connect(at).unwrap();
        thread::sleep(Duration::from_millis(100));
        first.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        let handed = thread.join().unwrap();
        assert_eq!(handed.len(), 2);
        // The rest comes when it likes.
        first.write_all(b"\r\n").unwrap();
        silent.write_all(b"late").unwrap();
        for (stream, said) in [(&first, "GET / HTTP/1.1\r\n\r\n"), (&silent, "late")] {
            stream.shutdown(Shutdown::Write).unwrap();
            let of = |own: &&TcpStream| own.peer_addr().unwrap() == stream.local_addr().unwrap();
            let mut own = handed.iter().find(of).unwrap();
            own.set_nonblocking(false).unwrap();
            let mut text = String::new();
            own.read_to_string(&mut text).unwrap();
            assert_eq!(text, said);
        }
    }

    #[test]
    fn however_many_connect_the_kernel_keeps_those_who_are_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let _clients: Vec<_> = (0..100).map(|_| TcpStream::connect(at).unwrap()).collect();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let handed = receive_unless_silent(listener.as_fd(), stop.as_fd(), LONG).unwrap();
        assert_eq!(handed.len(), MAX_SILENT + 1);
        assert!(listener.accept().is_ok());
    }

    #[test]
    fn nobody_is_silent_for_long_or_beyond_a_stop() {
        let begun = Instant::now();
        let (_, _stop, thread, _first) = doorman(SILENCE);
        assert_eq!(thread.join().unwrap().len(), 1);
        assert!(begun.elapsed() >= SILENCE);
        let (_, stop, thread, _first) = doorman(LONG);
        rustix::io::write(&stop, &1_u64.to_ne_bytes()).unwrap();
        assert_eq!(thread.join().unwrap().len(), 1);
        assert!(begun.elapsed() < LONG);
    }
}
