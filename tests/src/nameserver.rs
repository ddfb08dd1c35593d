//! A name server for tests: it listens in the network namespace of a process, answers from a function, and records the
//! names in queries.
//!
//! Called by tests of name lookups. Each answer depends on the name and on the number of earlier lookups, so that a name can
//! have another address the second time. A long answer is truncated over UDP and complete over TCP.
//! Not here: recursion, zones.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use crate::Outcome;

/// What a name has.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These addresses, of whichever family.
    Addresses(Vec<IpAddr>),
    /// The same, but too long for UDP.
    Long(Vec<IpAddr>),
    /// No such name.
    Absent,
    /// The server does not say.
    Failure,
    /// Nothing comes back.
    Silence,
}

/// The answer for a name in its n-th lookup, from 0; both families of one lookup count as one.
type Zone = dyn Fn(&str, usize) -> Answer + Send + Sync;

/// How often the server looks whether it is to end: its sockets keep the namespace alive.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running server. It ends, and lets go of the namespace, when this is dropped.
pub struct NameServer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queries: Mutex<HashMap<(String, bool), usize>>,
    zone: Box<Zone>,
    ending: AtomicBool,
}

impl std::fmt::Debug for NameServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NameServer({:?})", self.queries())
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl NameServer {
    /// Listens at port 53 of 127.0.0.1 in the network namespace of process `pid`.
    /// Errors: the process is gone, the port is taken.
    pub fn start(
        pid: i32,
        zone: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> Outcome<Self> {
        let shared = Arc::new(Shared {
            queries: Mutex::default(),
            zone: Box::new(zone),
            ending: AtomicBool::new(false),
        });
        let (udp, tcp) = in_netns(pid, || {
            let at = (Ipv4Addr::LOCALHOST, 53);
            let (udp, tcp) = (UdpSocket::bind(at)?, TcpListener::bind(at)?);
            udp.set_read_timeout(Some(POLL_INTERVAL))?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        })?;
        let (one, two) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            thread::spawn(move || one.serve_datagrams(&udp)),
            thread::spawn(move || two.serve_streams(&tcp)),
        ];
        Ok(Self { shared, threads })
    }

    /// Every name that was looked up, sorted.
    pub fn queries(&self) -> Vec<String> {
        let queries = self.shared.queries();
        let mut names: Vec<String> = queries.keys().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Shared {
    fn queries(&self) -> MutexGuard<'_, HashMap<(String, bool), usize>> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_datagrams(&self, socket: &UdpSocket) {
        let mut question = [0; 512];
        while !self.ending.load(Ordering::Relaxed) {
            let Ok((got, from)) = socket.recv_from(&mut question) else {
                continue;
            };
            if let Some(answer) = self.answer(&question[..got], true) {
                let _ = socket.send_to(&answer, from);
            }
        }
    }

    fn serve_streams(&self, socket: &TcpListener) {
        while !self.ending.load(Ordering::Relaxed) {
            match socket.accept() {
                Ok((stream, _)) => drop(self.talk(stream)),
                Err(_) => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    fn talk(&self, mut stream: TcpStream) -> Outcome<()> {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        if let Some(answer) = self.answer(&question, false) {
            let length = u16::try_from(answer.len())?;
            stream.write_all(&length.to_be_bytes())?;
            stream.write_all(&answer)?;
        }
        Ok(())
    }

    fn answer(&self, question: &[u8], by_datagram: bool) -> Option<Vec<u8>> {
        let query = Packet::parse(question).ok()?;
        let one = query.questions.first()?;
        let v6 = one.qtype == QTYPE::TYPE(TYPE::AAAA);
        let name = one.qname.clone();
        let answer = (self.zone)(
            &name.to_string(),
            self.count(&name.to_string(), v6, by_datagram),
        );
        let mut reply = query.clone().into_reply();
        let addresses = match answer {
            Answer::Silence => return None,
            Answer::Long(_) if by_datagram => {
                reply.set_flags(PacketFlag::TRUNCATION);
                Vec::new()
            }
            Answer::Addresses(addresses) | Answer::Long(addresses) => addresses,
            Answer::Absent => {
                *reply.rcode_mut() = RCODE::NameError;
                Vec::new()
            }
            Answer::Failure => {
                *reply.rcode_mut() = RCODE::ServerFailure;
                Vec::new()
            }
        };
        for address in addresses {
            if address.is_ipv6() == v6 {
                let record = ResourceRecord::new(name.clone(), CLASS::IN, 0, data(address));
                reply.answers.push(record);
            }
        }
        reply.build_bytes_vec().ok()
    }

    /// How often this query came before; the same question over TCP is not another one.
    fn count(&self, name: &str, v6: bool, by_datagram: bool) -> usize {
        let mut queries = self.queries();
        let count = queries.entry((name.to_owned(), v6)).or_default();
        *count += usize::from(by_datagram);
        *count - 1
    }
}

/// Does `work` on a thread in the network namespace of process `pid`; sockets made there stay there.
/// Errors: the process is gone, or the work failed.
pub fn in_netns<T: Send + 'static>(
    pid: i32,
    work: impl FnOnce() -> Outcome<T> + Send + 'static,
) -> Outcome<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let thread = thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    });
    thread
        .join()
        .map_err(|_| "the thread in the namespace panicked")?
}

/// The record data of an address.
fn data(address: IpAddr) -> RData<'static> {
    match address {
        IpAddr::V4(v4) => RData::A(A {
            address: v4.to_bits(),
        }),
        IpAddr::V6(v6) => RData::AAAA(AAAA {
            address: v6.to_bits(),
        }),
    }
}
