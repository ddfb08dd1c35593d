//! Tells systemd how the daemon is. Source: sd_notify(3): datagrams of `KEY=VALUE` lines to the socket in NOTIFY_SOCKET.
//!
//! Called by `serve`. Invariants: without systemd nothing happens; a message that cannot be sent is no failure of the daemon.
//! Must not know: pods.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Every listener stands, and recovery is over.
pub const READY: &str = "READY=1\nSTATUS=serving the container runtime interface\n";
/// The configuration is read again; to be followed by [`READY`].
pub fn reloading() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=reading the configuration again\n")
}

/// The daemon ends; pods do not.
pub const STOPPING: &str = "STOPPING=1\nSTATUS=shutting down; pods keep running\n";

/// Sends `message`, if systemd waits for any.
pub fn notify(message: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&name.to_string_lossy(), message) {
        tracing::warn!(%error, "systemd was not told how the daemon is");
    }
}

fn send(name: &str, message: &str) -> io::Result<()> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A full queue must not hold the daemon up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_by_path_and_by_abstract_name() {
        let scratch = crate::scratch::Scratch::new("notify");
        let path = scratch.0.join("socket");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("coracle-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (name, socket) in [
            (path.to_str().unwrap().to_owned(), by_path),
            (format!("@{name}"), by_name),
        ] {
            send(&name, READY).unwrap();
            let mut message = [0; 256];
            let length = socket.recv(&mut message).unwrap();
            assert_eq!(&message[..length], READY.as_bytes());
        }
        assert!(send("/nowhere/socket", READY).is_err());
    }
}
