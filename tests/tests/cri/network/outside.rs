//! A world outside the node: a network namespace behind a link, which the node routes to.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use coracle_tests::client::TIMEOUT;
use coracle_tests::daemon::Daemon;
use rustix::net::{Shutdown, shutdown};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The number of a daemon's scratch directory.
pub fn number(daemon: &Daemon) -> u16 {
    let cgroup = daemon.scratch().cgroup();
    cgroup.rsplit('-').next().unwrap().parse().unwrap()
}

/// The world of one daemon; dropping it takes it away.
pub struct Outside {
    name: String,
    link: String,
    number: u16,
}

impl Outside {
    pub fn new(daemon: &Daemon) -> Self {
        let number = number(daemon);
        let world = Self {
            name: format!("coracle-test-{number}"),
            link: format!("outside{number}"),
            number,
        };
        world.clear();
        let (name, link) = (&world.name, &world.link);
        for line in [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name eth0 netns {name}"),
            format!("addr add {}/30 dev {link}", world.node()),
            format!("link set {link} up"),
            format!("-n {name} link set lo up"),
            format!("-n {name} addr add {}/30 dev eth0", world.own()),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {}", world.node()),
        ] {
            assert!(ip(&line), "ip {line}");
        }
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/forwarding"), "1").unwrap();
        world
    }

    /// The node's address on the link.
    pub fn node(&self) -> String {
        self.address(1)
    }

    /// The world's own.
    pub fn own(&self) -> String {
        self.address(2)
    }

    fn address(&self, host: u16) -> String {
        let first = self.number % 64 * 4;
        format!("198.51.100.{}", first + host)
    }

    /// Gives the node another address, which only this test has.
    pub fn node_gets(&self) -> String {
        let address = format!("192.0.2.{}", 100 + self.number % 64);
        assert!(ip(&format!("addr add {address}/32 dev {}", self.link)));
        address
    }

    /// Gives the world another address, and the node the way there.
    pub fn also(&self, address: &str) {
        assert!(ip(&format!(
            "-n {} addr add {address}/32 dev lo",
            self.name
        )));
        assert!(ip(&format!(
            "route replace {address}/32 via {}",
            self.own()
        )));
    }

    /// What a web server at `target` says to somebody out there.
    pub fn fetch(&self, target: &str) -> Option<String> {
        self.inside(|| fetch(target))
    }

    /// Answers every connection to `port` with a page that says `outside`, as long as the tests run.
    pub fn serve(&self, port: u16) {
        let listener = self.inside(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut request = [0; 1024];
                let answer = |mut stream: TcpStream| {
                    let _ = stream.read(&mut request)?;
                    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\noutside\n")
                };
                if stream.and_then(answer).is_err() {
                    continue;
                }
            }
        });
    }

    /// What `work` gives out there; programs that it starts are there too.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let connection = scope.spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            connection.join().unwrap()
        })
    }

    fn clear(&self) {
        // Absent unless a test was killed.
        let _ = ip(&format!("link del {}", self.link));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.clear();
    }
}

fn ip(line: &str) -> bool {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    output.status.success()
}

/// A server that says `open` to whoever connects, until it is dropped: the next test may have the same address.
pub struct Greeter(Arc<TcpListener>);

impl Greeter {
    pub fn listen(address: &str, port: u16) -> Self {
        let listener = Arc::new(TcpListener::bind((address, port)).unwrap());
        let own = Arc::clone(&listener);
        thread::spawn(move || {
            // The client may have closed the connection.
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"open\n");
            }
        });
        Self(own)
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        // Which wakes whoever accepts.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

/// What a web server at `target` says to this machine; nothing where nobody listens.
pub fn fetch(target: &str) -> Option<String> {
    let target: SocketAddr = target.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.rsplit("\r\n\r\n").next()?.trim().to_owned())
}
