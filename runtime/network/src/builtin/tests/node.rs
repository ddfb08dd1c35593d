//! A node of its own: a network namespace with the built-in network in it, a world outside, pods that answer.
//!
//! ```text
//! outside 198.51.100.2, 2001:db8:1::2 --- node 198.51.100.1, 192.0.2.1, 2001:db8:1::1 --- pods
//! ```

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::HostPort;

/// The node's addresses that are not loopback ones.
pub(super) const NODE: &str = "198.51.100.1";
pub(super) const NODE_OTHER: &str = "192.0.2.1";
pub(super) const NODE_V6: &str = "2001:db8:1::1";
const SOURCES: &str = "table inet coracle-caab-in {";
const COUNTS: &str = "table inet coracle-caab-count {";
/// How long a packet that leads nowhere is waited for. What must arrive is waited for with [`PATIENCE`].
const TIMEOUT: Duration = Duration::from_millis(900);

pub(super) struct World {
    pub(super) node: OwnedFd,
    pub(super) outside: OwnedFd,
    pub(super) network: Builtin,
    _temp: tempfile::TempDir,
}

pub(super) fn netns() -> OwnedFd {
    let config = NamespaceConfig {
        net: true,
        ..NamespaceConfig::default()
    };
    create_namespaces(config, None).unwrap().net.unwrap()
}

/// Runs `program` in `netns` and returns what it prints; panics if it fails.
pub(super) fn run(netns: &OwnedFd, line: &str) -> String {
    let mut args = line.split_whitespace();
    let mut command = Command::new(args.next().unwrap());
    command.args(args);
    let output = inside(netns, move || command.output().unwrap());
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Sets a kernel setting of `netns`, by its path below `/proc/sys/net`.
pub(super) fn set(netns: &OwnedFd, path: &str, value: &str) {
    let file = Path::new("/proc/sys/net").join(path);
    inside(netns, || std::fs::write(file, value).unwrap());
}

/// Waits until whoever has this address takes packets: the kernel puts an IPv6 address to use by a worker of its own,
/// late by a second where a link has just come up.
fn meet(node: &OwnedFd, address: IpAddr) {
    let target = SocketAddr::new(address, 9);
    let is_refused = || {
        let connected = TcpStream::connect_timeout(&target, Duration::from_millis(100));
        connected.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    wait_for(
        || format!("{address} does not answer"),
        || inside(node, is_refused),
    );
}

/// Has what is tracked here outlast the test: some entries expire after ten seconds, which a test may take.
fn keep_tracked() {
    let settings = std::fs::read_dir("/proc/sys/net/netfilter").unwrap();
    for setting in settings.map(|setting| setting.unwrap().path()) {
        if setting.to_string_lossy().contains("conntrack")
            && setting.to_string_lossy().contains("_timeout")
        {
            std::fs::write(setting, "3600").unwrap();
        }
    }
}

impl World {
    pub(super) fn new() -> Self {
        let (node, outside) = (netns(), netns());
        let peer = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&outside)
        );
        // Without addresses of their own, and for a second with them, neighbours are not looked up.
        for netns in [&node, &outside] {
            set(netns, "ipv6/conf/default/accept_dad", "0");
        }
        for line in [
            format!("ip link add up0 type veth peer name eth0 netns {peer}"),
            format!("ip addr add {NODE}/24 dev up0"),
            format!("ip addr add {NODE_OTHER}/32 dev lo"),
            format!("ip addr add {NODE_V6}/64 dev up0 nodad"),
            "ip link set up0 up".to_owned(),
        ] {
            run(&node, &line);
        }
        for line in [
            "ip addr add 198.51.100.2/24 dev eth0",
            "ip addr add 2001:db8:1::2/64 dev eth0 nodad",
            "ip link set eth0 up",
            "ip route add default via 198.51.100.1",
            "ip route add default via 2001:db8:1::1",
        ] {
            run(&outside, line);
        }
        set(&node, "ipv4/ip_forward", "1");
        set(&node, "ipv6/conf/all/forwarding", "1");
        inside(&node, keep_tracked);
        let temp = tempfile::tempdir().unwrap();
        let network = Builtin::open(config(1, temp.path())).unwrap();
        meet(&node, "2001:db8:1::2".parse().unwrap());
        Self {
            node,
            outside,
            network,
            _temp: temp,
        }
    }

    /// Puts another daemon in the place of this one, which has seen nothing before [`World::sweep`].
    pub(super) fn restart(&mut self) {
        self.network = Builtin::open(self.network.config.clone()).unwrap();
    }

    pub(super) fn sweep(&self, live: &[Attachment]) -> Vec<String> {
        inside(&self.node, || self.network.sweep(live, &Default::default())).unwrap()
    }

    /// Waits until the ruleset is `expected`.
    pub(super) fn waits_for(&self, expected: &str) {
        wait_for(|| self.ruleset(), || self.ruleset() == expected);
    }

    pub(super) fn attach(&self, pod: &OwnedFd, id: &str, ports: &[HostPort]) -> Attachment {
        let attachment = self.try_attach(pod, id, ports).unwrap();
        meet(&self.node, attachment.addresses[1]);
        attachment
    }

    pub(super) fn try_attach(
        &self,
        pod: &OwnedFd,
        id: &str,
        ports: &[HostPort],
    ) -> Result<Attachment, Error> {
        let config = NetworkConfig {
            ports: ports.to_vec(),
            ..pod_config(id)
        };
        inside(&self.node, || self.network.attach(&config, pod.as_fd()))
    }

    pub(super) fn detach(&self, attachment: &Attachment) {
        inside(&self.node, || self.network.detach(attachment)).unwrap();
    }

    /// The ruleset of the node, as nft prints it, without the tables of sources and counts, which are there with the first pod.
    pub(super) fn ruleset(&self) -> String {
        let tables = run(&self.node, "nft list ruleset");
        let others = tables
            .split_inclusive("\n}\n")
            .filter(|table| !table.starts_with(SOURCES) && !table.starts_with(COUNTS));
        others.collect()
    }

    /// The table of sources.
    pub(super) fn sources(&self) -> String {
        let tables = run(&self.node, "nft list ruleset");
        let own = tables
            .split_inclusive("\n}\n")
            .filter(|table| table.starts_with(SOURCES));
        own.collect()
    }
}

/// A pod that answers on ports of both families and both protocols with its name and whom it sees.
pub(super) struct Server {
    pub(super) netns: OwnedFd,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Server {
    pub(super) fn new(name: &'static str, port: u16) -> Self {
        Self::within(netns(), name, port)
    }

    /// One in a namespace that is there.
    pub(super) fn within(netns: OwnedFd, name: &'static str, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = inside(&netns, || {
            (
                TcpListener::bind(("::", port)).unwrap(),
                UdpSocket::bind(("::", port)).unwrap(),
            )
        });
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(10)))
            .unwrap();
        let (tcp_stop, udp_stop) = (Arc::clone(&stop), Arc::clone(&stop));
        let answer = move |peer: SocketAddr| format!("{name} {}", peer.ip().to_canonical());
        let tcp = thread::spawn(move || {
            while !tcp_stop.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, peer)) => {
                        // The client may be gone; then nobody misses the answer.
                        let _ = stream.write_all(answer(peer).as_bytes());
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        let udp = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !udp_stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(answer(peer).as_bytes(), peer);
                }
            }
        });
        Self {
            netns,
            stop,
            threads: vec![tcp, udp],
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let joined = thread.join();
            assert!(joined.is_ok() || thread::panicking());
        }
    }
}

/// Connects somebody in `from` with `target`.
pub(super) fn connect(from: &OwnedFd, target: &str, limit: Duration) -> std::io::Result<TcpStream> {
    let target: SocketAddr = target.parse().unwrap();
    inside(from, || TcpStream::connect_timeout(&target, limit))
}

/// What a server at `target`, which must be there, answers to somebody in `from`.
pub(super) fn tcp(from: &OwnedFd, target: &str) -> Option<String> {
    let mut stream = connect(from, target, PATIENCE).ok()?;
    let mut answer = String::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Whether nobody takes a connection from `from` to `target`, by a refusal or by silence.
pub(super) fn is_silent(from: &OwnedFd, target: &str) -> bool {
    connect(from, target, TIMEOUT).is_err()
}

/// As [`tcp`], by UDP.
pub(super) fn udp(from: &OwnedFd, target: &str) -> Option<String> {
    udp_from(&udp_socket(from, target), target, PATIENCE)
}

/// As [`is_silent`], by UDP.
pub(super) fn is_silent_by_udp(from: &OwnedFd, target: &str) -> bool {
    let socket = udp_socket(from, target);
    is_silent_from(&socket, target)
}

/// The same, from a socket that is there.
pub(super) fn is_silent_from(socket: &UdpSocket, target: &str) -> bool {
    udp_from(socket, target, TIMEOUT).is_none()
}

pub(super) fn udp_socket(from: &OwnedFd, target: &str) -> UdpSocket {
    let any = if target.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    inside(from, || UdpSocket::bind(any).unwrap())
}

/// What a server at `target` answers to one datagram within `limit`.
pub(super) fn udp_from(socket: &UdpSocket, target: &str, limit: Duration) -> Option<String> {
    let mut buffer = [0; 64];
    socket.set_read_timeout(Some(limit)).unwrap();
    socket.send_to(b"ahoy", target).ok()?;
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
