//! Looks up names as libc does: `/etc/hosts`, then the servers of `/etc/resolv.conf` with its search list.
//!
//! Called by [`super::Guard`]. libc's resolver is no option: it loads libraries that an image could bring, and needs
//! daemons and netlink, which the jail does not reach. Where names decide what a guest may reach, the files in its root
//! are not used, because a container may be able to write them.
//! Invariants: every wait has a timeout; each query has a random id and its own port; no query leaves the pod for a
//! name that may not be looked up.
//! It must not know the wire format, or which answers are remembered.

use std::cmp::Reverse;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::Failure;
use super::message::{Family, Query, Reply};
use super::settings::{self, LOCALHOST, Settings};

/// The port of name servers.
const PORT: u16 = 53;
/// Longest name. Source: RFC 1035, section 2.3.4.
const MAX_NAME: usize = 253;
/// Largest answer over UDP that is read.
const MAX_DATAGRAM: usize = 4096;

/// The result of a lookup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The full name that has these addresses.
    pub(super) name: String,
    /// Its addresses, the best first.
    pub(super) addresses: Vec<IpAddr>,
}

/// Where hosts and servers are read from.
pub(super) enum Sources<'a> {
    /// The files in the guest's root, read at each lookup.
    Files,
    /// This text of resolv.conf(5), and no hosts.
    Settings(&'a str),
}

impl<'a> Sources<'a> {
    /// The text if there is one, else the files.
    pub(super) fn of(text: Option<&'a str>) -> Self {
        text.map_or(Self::Files, Self::Settings)
    }

    fn hosts(&self) -> String {
        match self {
            Self::Files => settings::text_of("/etc/hosts"),
            Self::Settings(_) => String::new(),
        }
    }

    fn settings(&self) -> Settings {
        match self {
            Self::Files => Settings::parse(&settings::text_of("/etc/resolv.conf")),
            Self::Settings(text) => Settings::parse(text),
        }
    }
}

/// Looks up `name`, or parses it if it is an address. `may_resolve` says whether a full name may be looked up; each of the
/// names that the search list makes of `name` is one, because the pod chooses that list.
pub(super) async fn resolve(
    name: &str,
    sources: &Sources<'_>,
    may_resolve: impl Fn(&str) -> bool,
) -> Result<Found, Failure> {
    if let Some(address) = literal(name) {
        return Ok(found(name, vec![address]));
    }
    let name = ascii(name)?;
    if settings::is_localhost(&name) {
        return Ok(found(&name, LOCALHOST.to_vec()));
    }
    let known = match may_resolve(&name) {
        true => settings::hosts(&sources.hosts(), &name),
        false => Vec::new(),
    };
    if !known.is_empty() {
        return Ok(found(&name, ordered(known).await));
    }
    let settings = sources.settings();
    let mut failure = Failure::Denied;
    for candidate in settings.candidates(&name) {
        if !may_resolve(&candidate) {
            continue;
        }
        match query_servers(&settings, &candidate).await {
            Ok(addresses) => return Ok(found(&candidate, ordered(addresses).await)),
            // Of several failures, report the temporary one.
            Err(reason) if failure != Failure::Unanswered => failure = reason,
            Err(_) => {}
        }
    }
    Err(failure)
}

fn found(name: &str, addresses: Vec<IpAddr>) -> Found {
    Found {
        name: name.to_owned(),
        addresses,
    }
}

/// The address that `name` spells, with or without the brackets that IPv6 has in URLs.
fn literal(name: &str) -> Option<IpAddr> {
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(inside) => inside.parse().ok().map(IpAddr::V6),
        None => name.parse().ok(),
    }
}

/// The name in ASCII (Punycode). Errors: it is not a valid name.
fn ascii(name: &str) -> Result<String, Failure> {
    let name = match name.is_ascii() {
        true => name.to_owned(),
        false => match url::Host::parse(name) {
            Ok(url::Host::Domain(domain)) => domain,
            _ => return Err(Failure::Invalid),
        },
    };
    let bare = name.strip_suffix('.').unwrap_or(&name);
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = bare.len() <= MAX_NAME && bare.bytes().all(letters);
    // Some encoders skip an empty label, so that the query would be for another name than the allowed one.
    if !is_name || bare.split('.').any(str::is_empty) {
        return Err(Failure::Invalid);
    }
    Ok(name)
}

/// Queries one server after the other, as often as the settings say, for both families at once.
async fn query_servers(settings: &Settings, name: &str) -> Result<Vec<IpAddr>, Failure> {
    for _ in 0..settings.attempts {
        for server in &settings.servers {
            let query = |family| exchange(*server, name, family, settings.timeout);
            let (v4, v6) = tokio::join!(query(Family::V4), query(Family::V6));
            let complete = v4.is_ok() && v6.is_ok();
            let mut addresses = v4.unwrap_or_default();
            addresses.extend(v6.unwrap_or_default());
            if !addresses.is_empty() {
                return Ok(addresses);
            }
            if complete {
                return Err(Failure::Absent);
            }
        }
    }
    Err(Failure::Unanswered)
}

/// One query to one server, over TCP if its answer is truncated. Errors: it did not answer in time, or failed.
async fn exchange(
    server: IpAddr,
    name: &str,
    family: Family,
    limit: Duration,
) -> io::Result<Vec<IpAddr>> {
    let mut id = [0; 2];
    crate::random::fill(&mut id);
    let query = Query {
        id: u16::from_ne_bytes(id),
        name,
        family,
    };
    let bytes = query.bytes().ok_or(io::ErrorKind::InvalidInput)?;
    let server = SocketAddr::new(server, PORT);
    let talk = async {
        match by_datagram(server, query, &bytes).await? {
            Reply::Cut => by_stream(server, query, &bytes).await,
            reply => Ok(reply),
        }
    };
    match tokio::time::timeout(limit, talk).await?? {
        Reply::Addresses(addresses) => Ok(addresses),
        Reply::Foreign | Reply::Cut | Reply::Failed => Err(io::ErrorKind::Other.into()),
    }
}

async fn by_datagram(server: SocketAddr, query: Query<'_>, bytes: &[u8]) -> io::Result<Reply> {
    let socket = connected(server).await?;
    socket.send(bytes).await?;
    let mut answer = [0; MAX_DATAGRAM];
    loop {
        let got = socket.recv(&mut answer).await?;
        match query.reply(&answer[..got]) {
            Reply::Foreign => {}
            reply => return Ok(reply),
        }
    }
}

async fn by_stream(server: SocketAddr, query: Query<'_>, bytes: &[u8]) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(query.reply(&answer))
}

/// A UDP socket that sends to `target` and receives only from it.
async fn connected(target: SocketAddr) -> io::Result<UdpSocket> {
    let own: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// Sorts addresses with a route first, then by RFC 6724's precedence.
async fn ordered(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    if addresses.iter().all(IpAddr::is_ipv4) || addresses.iter().all(IpAddr::is_ipv6) {
        return addresses;
    }
    let mut reachable = Vec::new();
    for address in &addresses {
        // Connecting a UDP socket looks up the route and sends nothing.
        if connected(SocketAddr::new(*address, PORT)).await.is_ok() {
            reachable.push(*address);
        }
    }
    sort(&mut addresses, &reachable);
    addresses
}

fn sort(addresses: &mut [IpAddr], reachable: &[IpAddr]) {
    addresses.sort_by_key(|address| Reverse((reachable.contains(address), precedence(*address))));
}

/// Source: RFC 6724, section 2.1, the default policy table.
fn precedence(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 35,
        IpAddr::V6(v6) if v6.is_loopback() => 50,
        IpAddr::V6(v6) if v6.is_unique_local() => 3,
        IpAddr::V6(_) => 40,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_names_are_checked() {
        for text in ["192.0.2.1", "::1", "[::1]"] {
            assert!(literal(text).is_some(), "{text}");
        }
        // Spellings that only some libraries parse as an address are names here.
        for text in ["127.1", "0", "0x7f.1", "[192.0.2.1]", "192.0.2.1."] {
            assert_eq!(literal(text), None, "{text}");
        }
        assert_eq!(ascii("bücher.example").unwrap(), "xn--bcher-kva.example");
        assert_eq!(ascii("a_b.c-d.e.").unwrap(), "a_b.c-d.e.");
        for text in [
            "",
            ".",
            "a..b",
            ".a",
            "a b",
            "a/b",
            "a\n.b",
            &"x.".repeat(128),
        ] {
            assert_eq!(ascii(text), Err(Failure::Invalid), "{text:?}");
        }
    }

    #[tokio::test]
    async fn names_outside_the_policy_are_not_queried() {
        let queried = std::sync::Mutex::new(Vec::new());
        let denied = resolve("unlisted.example.", &Sources::Files, |name| {
            queried.lock().unwrap().push(name.to_owned());
            false
        });
        assert_eq!(denied.await, Err(Failure::Denied));
        assert!(
            queried
                .lock()
                .unwrap()
                .iter()
                .all(|name| name.starts_with("unlisted.example"))
        );
        let own = resolve("localhost", &Sources::Files, |_| false)
            .await
            .unwrap();
        assert_eq!(own.addresses, LOCALHOST);
    }

    #[test]
    fn addresses_without_a_route_come_last() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let [local, v4, v6] = ["fd00::1", "192.0.2.1", "2001:db8::1"].map(address);
        let mut all = [local, v4, v6];
        sort(&mut all, &[local, v4, v6]);
        assert_eq!(all, [v6, v4, local]);
        sort(&mut all, &[local, v4]);
        assert_eq!(all, [v4, local, v6]);
        sort(&mut all, &[]);
        assert_eq!(all, [v6, v4, local]);
    }
}
