//! Ends the interfaces of pods that are gone, also where somebody still holds the pod's network namespace open: a socket of it,
//! which another pod was sent, keeps it alive, its veth and its address with it.
//!
//! ```text
//! detach -> host's end down: no route leads to the pod, nothing from it passes
//!        -> some seconds later, by a thread: what has not gone with its namespace is deleted
//! ```
//! Called by: [`Builtin::detach`], and by the sweep for what a daemon left that ended before the thread was done.
//! Invariants: an interface is taken down only by the pod that has it, and deleted only while it is down, ours by name, kind and
//! MAC, and its address nobody's; the thread ends when nothing is left to look at. Not here: leases, ports.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::error::Error;
use super::super::lease::Leases;
use super::super::netlink::{Link, Netlink};
use super::super::{Attachment, veth};
use super::{Builtin, BuiltinConfig, ignore_gone, lock};

/// How long an interface may go with its namespace, which costs nothing.
const PAUSE: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 256 << 10;
/// The first number tried for the interface group in which interfaces are deleted together.
const GROUP: u32 = 0x000c_04ac;

/// The interfaces that were taken down.
#[derive(Debug)]
pub(super) struct Detached(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: BuiltinConfig,
    leases: Arc<Mutex<Leases>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Names; those that were added since the thread has looked last.
    added: Vec<String>,
    is_alive: bool,
}

impl Builtin {
    /// Takes the host's end of a pod down. Returns its name; `None` if the pod was detached before.
    pub(super) fn shut(&self, attachment: &Attachment) -> Result<Option<String>, Error> {
        let host = Netlink::open()?;
        let leased = self.lock_leases().index_of(&attachment.pod);
        let name = match leased {
            Some(index) => Some(self.config.interface(index)),
            None => self.without_lease(&host, attachment)?,
        };
        let Some(name) = name else {
            return Ok(None);
        };
        let Some(index) = host.index(&name)? else {
            return Ok(None);
        };
        ignore_gone(host.run(vec![veth::down(index, &name)]))?;
        Ok(Some(name))
    }

    /// The interface of a pod that has an address of an earlier subnet, and so no lease. An address of this subnet without a
    /// lease was given back, and may be another pod's.
    fn without_lease(&self, host: &Netlink, gone: &Attachment) -> Result<Option<String>, Error> {
        let v4 = gone.addresses.iter().find_map(|address| match address {
            std::net::IpAddr::V4(v4) => Some(*v4),
            std::net::IpAddr::V6(_) => None,
        });
        let Some(v4) = v4.filter(|v4| self.config.subnet_v4.index(*v4).is_none()) else {
            return Ok(None);
        };
        let is_it = |link: &Link| {
            link.is_veth && link.name == gone.host_interface && link.mac == veth::host_mac(v4)
        };
        let found = host.links()?.into_iter().find(is_it);
        Ok(found.map(|link| link.name))
    }
}

impl BuiltinConfig {
    /// The name of the host's end of the pod with address `index`.
    pub(super) fn interface(&self, index: u32) -> String {
        format!("{}{index:x}", self.interface_prefix)
    }

    /// The index in the name of a veth, if name, kind and MAC show that it is ours.
    pub(super) fn index_of(&self, link: &Link) -> Option<u32> {
        let digits = link.name.strip_prefix(&self.interface_prefix)?;
        let index = u32::from_str_radix(digits, 16).ok()?;
        if !(1..=self.subnet_v4.size()).contains(&index) {
            return None;
        }
        let mac = veth::host_mac(self.subnet_v4.address(index));
        let is_ours = link.is_veth && link.name == self.interface(index) && link.mac == mac;
        is_ours.then_some(index)
    }
}

impl Detached {
    pub(super) fn new(config: &BuiltinConfig, leases: &Arc<Mutex<Leases>>) -> Self {
        Self(Arc::new(Inner {
            config: config.clone(),
            leases: Arc::clone(leases),
            state: Mutex::default(),
        }))
    }

    /// Deletes the interface `name` some seconds later, if it is still there.
    pub(super) fn delete_later(&self, name: Option<String>) {
        let mut state = self.0.lock();
        state.added.extend(name);
        if state.is_alive || state.added.is_empty() {
            return;
        }
        let inner = Arc::clone(&self.0);
        let thread = thread::Builder::new()
            .name("detached".to_owned())
            .stack_size(STACK_BYTES);
        match thread.spawn(move || inner.run()) {
            Ok(_) => state.is_alive = true,
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread to delete interfaces of pods that are gone; the next pod's end tries again");
            }
        }
    }
}

impl Inner {
    fn run(&self) {
        while let Some(names) = self.next() {
            if let Err(error) = self.delete(&names) {
                tracing::warn!(error = %error, "cannot delete interfaces of pods that are gone; trying again");
                self.lock().added.extend(names);
            }
        }
    }

    /// What was detached at least a pause ago, after one. `None` when there is nothing: the thread is to end.
    fn next(&self) -> Option<Vec<String>> {
        let names = {
            let mut state = self.lock();
            state.is_alive = !state.added.is_empty();
            std::mem::take(&mut state.added)
        };
        if names.is_empty() {
            return None;
        }
        thread::sleep(PAUSE);
        Some(names)
    }

    /// Deletes those of `names` that are there.
    fn delete(&self, names: &[String]) -> Result<(), Error> {
        let host = Netlink::open()?;
        let mut is_left = false;
        for name in names {
            is_left |= host.index(name)?.is_some();
        }
        if !is_left {
            return Ok(());
        }
        let links = host.links()?;
        let is_over = |link: &&Link| {
            let index = self.config.index_of(link);
            !link.is_up && index.is_some_and(|index| !lock(&self.leases).is_leased(index))
        };
        let over: Vec<&Link> = links.iter().filter(is_over).collect();
        for link in &over {
            tracing::info!(interface = %link.name, "deleting the interface of a pod that is gone; something still holds its network namespace");
        }
        delete_together(&host, &links, &over)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes `some` of `links`. Deleting one interface takes the kernel 40 ms, deleting a group hardly more.
pub(super) fn delete_together(host: &Netlink, links: &[Link], some: &[&Link]) -> Result<(), Error> {
    if some.is_empty() {
        return Ok(());
    }
    let mut group = GROUP;
    while links.iter().any(|link| link.group == group) {
        group += 1;
    }
    for link in some {
        ignore_gone(host.run(vec![veth::set_group(link.index, &link.name, group)]))?;
    }
    ignore_gone(host.run(vec![veth::delete_group(group)]))
}
