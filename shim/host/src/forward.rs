//! Port-forward: a connection to a pod's loopback, from inside its network namespace.
//!
//! Called by: `Pods`. Invariant: this daemon stays in its own namespace; a socket belongs to the one it was created in.
//! Must not know: streams, whether the pod is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use coracle_lifecycle::{Error, Kind};
use coracle_network as network;
use coracle_spec::id::PodId;
use tokio::net::{TcpSocket, TcpStream};

use super::{Host, blocking, io_error};

/// What the kernel holds of a connection in each direction; it takes it twice. Bytes.
const KERNEL_BUFFER: u32 = 64 << 10;
/// How long a pod's loopback may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Host {
    /// Connects to `port` of 127.0.0.1, else of ::1, in the network namespace of the pod or, with `on_node`, of the
    /// node.
    ///
    /// Errors: Io when both refuse the connection; it names both reasons.
    pub async fn dial(
        self: &Arc<Self>,
        pod: &PodId,
        on_node: bool,
        port: u16,
    ) -> Result<TcpStream, Error> {
        let what = || format!("connect to port {port} of sandbox {pod}");
        let mut refusals = Vec::new();
        for ip in [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            match self.dial_at(pod, on_node, SocketAddr::new(ip, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => refusals.push(format!("{ip}: {error}")),
            }
        }
        let text = format!("{}: {}", what(), refusals.join("; "));
        Err(Error::new(Kind::Io, text))
    }

    async fn dial_at(
        self: &Arc<Self>,
        pod: &PodId,
        on_node: bool,
        to: SocketAddr,
    ) -> std::io::Result<TcpStream> {
        let socket = match on_node {
            true => network::tcp_socket(None, to.is_ipv6())?,
            false => self
                .socket_of(pod, to.is_ipv6())
                .await
                .map_err(std::io::Error::other)?,
        };
        let socket = TcpSocket::from_std_stream(socket.into());
        // Otherwise the kernel holds up to 6 MiB for a client that does not read, in this daemon's account.
        socket.set_recv_buffer_size(KERNEL_BUFFER)?;
        socket.set_send_buffer_size(KERNEL_BUFFER)?;
        let connected = tokio::time::timeout(TIMEOUT, socket.connect(to)).await;
        connected.map_err(|_| std::io::ErrorKind::TimedOut)?
    }

    async fn socket_of(self: &Arc<Self>, pod: &PodId, v6: bool) -> Result<OwnedFd, Error> {
        let pin = self.pin(pod);
        blocking("making a socket of a pod", move || {
            let netns = network::open_pin(&pin).map_err(|error| {
                Error::because(Kind::Io, "enter the pod's network namespace", error)
            })?;
            network::tcp_socket(Some(netns.as_fd()), v6)
                .map_err(|error| io_error("make a socket of a pod", error))
        })
        .await
    }
}
