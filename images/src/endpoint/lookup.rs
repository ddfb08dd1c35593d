//! Addresses of names, as the node's C library finds them, on threads of its own.
//!
//! Called by: [`super::address_policy`]. A pod's author chooses the name and often its name servers, and a lookup whose
//! server does not answer cannot be ended: on the daemon's pool it would keep a thread from pods.
//! Invariants: a bounded number of threads waits for answers, shared by tenants and zones of names ([`crate::shares`]); a
//! lookup that nobody waits for any more keeps its place until it ends. The caller's timeout of connections includes the
//! wait. Not here: which addresses are allowed.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, LazyLock};

use tokio::sync::oneshot;

use crate::shares::{Most, Shares};
use crate::tenants::zone_of;

/// Lookups at a time. Of one zone, a tenant has at most half of what others leave.
const MOST: Most = Most {
    all: 64,
    of_tenant: 16,
    of_group: 8,
};

static LOOKUPS: LazyLock<Lookups> = LazyLock::new(Lookups::new);

struct Lookups(Arc<Shares>);

/// The addresses of `host`, with port 0, for `tenant`. Errors: there are none; the name servers do not answer.
pub(super) async fn addresses(tenant: &str, host: &str) -> io::Result<Vec<SocketAddr>> {
    let look_up = |host: &str| (host, 0).to_socket_addrs().map(Iterator::collect);
    LOOKUPS.run(tenant, host, look_up).await
}

impl Lookups {
    fn new() -> Self {
        Self(Shares::new(MOST))
    }

    async fn run<T: Send + 'static>(
        &self,
        tenant: &str,
        host: &str,
        look_up: impl FnOnce(&str) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let place = self.0.place(tenant, &zone_of(host)).await;
        let place = place.map_err(io::Error::other)?;
        let (done, found) = oneshot::channel();
        let host = host.to_owned();
        let thread = std::thread::Builder::new().name("names".to_owned());
        thread.spawn(move || {
            let found = look_up(&host);
            drop(place);
            // An error means that nobody waits any more.
            let _ = done.send(found);
        })?;
        found.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use std::sync::{Mutex, mpsc};
    use std::time::Duration;

    use super::*;

    /// Its pool has one thread, as if pods had taken the others.
    #[test]
    fn servers_that_never_answer_keep_neither_the_pool_nor_other_zones_and_tenants() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let lookups = Arc::new(Lookups::new());
        let waits = |host: String| {
            let (lookups, hang) = (lookups.clone(), hang.clone());
            async move {
                let look_up = move |_: &str| Ok(hang.lock().unwrap().recv().is_err());
                lookups.run("evil", &host, look_up).await
            }
        };
        // Long on however slow a machine, and whoever hangs hangs for ever.
        let soon = Duration::from_secs(60);
        let hold = async |places: usize| {
            let held = async {
                while lookups.0.taken() < places {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(soon, held).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(lookups.0.taken(), places);
        };
        let answered = async |tenant: &str, host: &str| {
            let other = lookups.run(tenant, host, |host| Ok(host.to_owned()));
            let found = tokio::time::timeout(soon, other).await.unwrap();
            assert_eq!(found.unwrap(), host);
        };
        runtime.block_on(async {
            let hosts = (0..64).map(|number| format!("a{number}.co.example"));
            let mut waiting: Vec<_> = hosts.map(|host| tokio::spawn(waits(host))).collect();
            hold(4).await;
            // Another zone; the same zone for somebody else.
            answered("evil", "registry.example").await;
            answered("honest", "registry.co.example").await;
            // Many zones.
            let hosts = (0..64).map(|number| format!("registry.evil{number}.example"));
            waiting.extend(hosts.map(|host| tokio::spawn(waits(host))));
            hold(MOST.of_tenant).await;
            answered("honest", "registry.example").await;
            let pool = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(soon, pool).await.unwrap().unwrap();
            // Whoever gives up does not free the place of a lookup that runs.
            waiting.iter().for_each(tokio::task::JoinHandle::abort);
            hold(MOST.of_tenant).await;
        });
        drop(release);
    }

    #[tokio::test]
    async fn the_node_finds_addresses() {
        let found = addresses("", "localhost").await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert!(!found.is_empty());
    }
}
