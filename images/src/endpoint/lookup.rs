//! Addresses of names, as the node's C library finds them, on threads of its own.
//!
//! Called by: [`super::address_policy`]. A pod's author chooses the name and often its name servers, and a lookup whose
//! server does not answer cannot be ended: on the daemon's pool it would keep a thread from pods.
//! Invariants: at most [`MAX_LOOKUPS`] threads wait for answers, and at most [`MAX_OF_ZONE`] for names of one zone; a lookup
//! that nobody waits for any more keeps its place until it ends. The caller's timeout of connections includes the wait.
//! Not here: which addresses are allowed.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use tokio::sync::{Semaphore, oneshot};

/// Lookups at a time.
const MAX_LOOKUPS: usize = 32;
/// Lookups at a time of names with the same last two labels.
const MAX_OF_ZONE: usize = 4;

static LOOKUPS: LazyLock<Lookups> = LazyLock::new(Lookups::new);

struct Lookups {
    all: Arc<Semaphore>,
    zones: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// The addresses of `host`, with port 0. Errors: there are none; the name servers do not answer.
pub(super) async fn addresses(host: &str) -> io::Result<Vec<SocketAddr>> {
    let look_up = |host: &str| (host, 0).to_socket_addrs().map(Iterator::collect);
    LOOKUPS.run(host, look_up).await
}

impl Lookups {
    fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            zones: Mutex::default(),
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        host: &str,
        look_up: impl FnOnce(&str) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        // The zone first: nobody holds a place of all while waiting for one of a zone.
        let of_zone = self.zone(host).acquire_owned().await;
        let of_all = self.all.clone().acquire_owned().await;
        let permits = (
            of_zone.map_err(io::Error::other)?,
            of_all.map_err(io::Error::other)?,
        );
        let (done, found) = oneshot::channel();
        let host = host.to_owned();
        let thread = std::thread::Builder::new().name("names".to_owned());
        thread.spawn(move || {
            let found = look_up(&host);
            drop(permits);
            // An error means that nobody waits any more.
            let _ = done.send(found);
        })?;
        found.await.map_err(io::Error::other)?
    }

    fn zone(&self, host: &str) -> Arc<Semaphore> {
        let zone = zone_of(host);
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = zones.get(&zone).and_then(Weak::upgrade) {
            return known;
        }
        zones.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Semaphore::new(MAX_OF_ZONE));
        zones.insert(zone, Arc::downgrade(&new));
        new
    }
}

/// The last two labels of a name, lower case.
fn zone_of(host: &str) -> String {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let start = host.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
    host[start..].to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_zone_of_a_name_is_its_last_two_labels() {
        for (host, zone) in [
            ("a1.EVIL.example", "evil.example"),
            ("x.y.evil.example.", "evil.example"),
            ("evil.example", "evil.example"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(zone_of(host), zone);
        }
    }

    /// Its pool has one thread, as if pods had taken the others.
    #[test]
    fn servers_that_never_answer_keep_neither_the_pool_nor_other_zones() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let lookups = Arc::new(Lookups::new());
        runtime.block_on(async {
            let mut waiting = Vec::new();
            for number in 0..64 {
                let (lookups, hang) = (lookups.clone(), hang.clone());
                waiting.push(tokio::spawn(async move {
                    let host = format!("a{number}.evil.example");
                    let look_up = move |_: &str| Ok(hang.lock().unwrap().recv().is_err());
                    lookups.run(&host, look_up).await
                }));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            let busy = MAX_LOOKUPS - lookups.all.available_permits();
            assert_eq!(busy, MAX_OF_ZONE);
            let soon = Duration::from_secs(5);
            let other = lookups.run("registry.example", |host| Ok(host.to_owned()));
            let other = tokio::time::timeout(soon, other).await.unwrap();
            assert_eq!(other.unwrap(), "registry.example");
            let pool = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(soon, pool).await.unwrap().unwrap();
            // Whoever gives up does not free the place of a lookup that runs.
            waiting.iter().for_each(tokio::task::JoinHandle::abort);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(MAX_LOOKUPS - lookups.all.available_permits(), busy);
        });
        drop(release);
    }

    #[tokio::test]
    async fn the_node_finds_addresses() {
        let found = addresses("localhost").await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert!(!found.is_empty());
    }
}
