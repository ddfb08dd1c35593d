//! The demo's resources on the machine: a directory, a cgroup, a subnet, host ids and interface names that nothing else uses.
//!
//! Called by: the demo. Invariant: two demos at once never share anything: each holds a slot for its lifetime, and the
//! kernel frees the slot however its holder ends.
//! Must not know: processes; what is left (`leak_check`).

use std::fs::{self, DirBuilder};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use super::error::Error;

/// Slots; as many /20 subnets as fit into 198.18.0.0/15, which is reserved for tests and not routed.
const SLOTS: u8 = 32;
/// The parent of the directory. Short: keepers' sockets lie deep in it, and the kernel allows 107 bytes.
const PARENT: &str = "/tmp";
/// First host id of the pods of all demos: after those of a daemon with the default configuration.
const ID_BASE: u32 = 0x9000_0000;
/// Most pods of a demo.
const PODS: u32 = 64;
/// Host ids of a pod: the default of `sandbox.id_count`.
const POD_IDS: u32 = 65_536;

/// One demo's directory and names.
#[derive(Debug)]
pub struct Scratch {
    directory: PathBuf,
    slot: u8,
    /// Bound to the slot's abstract name; without connections.
    _held: UnixListener,
}

impl Scratch {
    /// Takes a free slot and creates the directory. Errors: not root, no free slot, or the directory.
    pub fn take() -> Result<Scratch, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(
                "making pods takes root; run it as root: sudo coracle demo",
            ));
        }
        let (slot, held) = free_slot()?;
        let directory = Path::new(PARENT).join(format!("coracle-{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(|error| Error::file("make directory", &directory, error))?;
        Ok(Scratch {
            directory,
            slot,
            _held: held,
        })
    }

    /// The directory of everything that the demo writes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The CRI socket of the demo's daemon.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("run/coracle.sock")
    }

    /// Parent of all cgroups of the demo, as a path inside every hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/coracle-demo-{}", std::process::id())
    }

    /// The beginning of the names of the demo's network interfaces on this machine.
    pub fn interface_prefix(&self) -> String {
        let letter = |number: u8| char::from(b'a' + number);
        format!("dm{}{}", letter(self.slot / 26), letter(self.slot % 26))
    }

    /// Writes the daemon's configuration; other settings have their defaults. Returns the file.
    pub fn write_config(&self) -> Result<PathBuf, Error> {
        let file = self.directory.join("config.toml");
        let text = format!(
            "root = {:?}\nrun = {:?}\nsocket = {:?}\n\n[cgroup]\npod_parent = {:?}\n\n[network]\nsubnet = {:?}\n\
             interface_prefix = {:?}\n\n[sandbox]\nid_base = {}\nmax_pods = {PODS}\n",
            self.directory.join("root"),
            self.directory.join("run"),
            self.socket(),
            self.cgroup(),
            format!("198.{}.{}.0/20", 18 + self.slot / 16, self.slot % 16 * 16),
            self.interface_prefix(),
            ID_BASE + u32::from(self.slot) * PODS * POD_IDS,
        );
        fs::write(&file, text).map_err(|error| Error::file("write", &file, error))?;
        Ok(file)
    }

    /// Creates a directory of the demo, for example for logs. Returns its path.
    pub fn make(&self, name: &str) -> Result<PathBuf, Error> {
        let directory = self.directory.join(name);
        let made = fs::create_dir_all(&directory);
        made.map_err(|error| Error::file("make directory", &directory, error))?;
        Ok(directory)
    }

    /// Removes the directory with its contents. Errors: the disk's.
    pub fn remove(&self) -> Result<(), Error> {
        let removed = coracle_tree::remove(&self.directory);
        removed.map_err(|error| Error::file("remove", &self.directory, error))
    }
}

fn free_slot() -> Result<(u8, UnixListener), Error> {
    let bind = |slot: u8| {
        let address = SocketAddr::from_abstract_name(format!("coracle-demo-slot-{slot}"))?;
        UnixListener::bind_addr(&address)
    };
    for slot in 0..SLOTS {
        match bind(slot) {
            Ok(held) => return Ok((slot, held)),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(Error::because(format!("take demo slot {slot}"), error)),
        }
    }
    Err(Error::new(format!(
        "all {SLOTS} demo slots are taken; other demos are running"
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;
    use coracle_config::{self as config, Overrides};

    #[test]
    fn every_slot_has_a_valid_configuration_its_own_subnet_and_ids() {
        let temp = crate::test_scratch::Scratch::new("demo-scratch");
        let directory = temp.0.clone();
        let mut subnets = std::collections::BTreeSet::new();
        let usual = config::Config::default().sandbox;
        let mut ids_end = usual.id_base + usual.max_pods * usual.id_count;
        for slot in 0..SLOTS {
            let held = UnixListener::bind_addr(
                &SocketAddr::from_abstract_name(format!("{}-{slot}", directory.display())).unwrap(),
            );
            let scratch = Scratch {
                directory: directory.clone(),
                slot,
                _held: held.unwrap(),
            };
            let config = config::load(
                Some(&scratch.write_config().unwrap()),
                &Overrides::default(),
            )
            .unwrap();
            subnets.insert(config.network.subnet.to_string());
            assert_eq!(config.socket, scratch.socket());
            let ids = config.sandbox;
            assert!(ids.id_base >= ids_end, "{ids:?}");
            ids_end = ids.id_base + ids.max_pods * ids.id_count;
        }
        assert_eq!(subnets.len(), usize::from(SLOTS));
    }

    #[test]
    fn two_demos_at_once_have_different_slots() {
        let (one, held) = free_slot().unwrap();
        let (other, _also_held) = free_slot().unwrap();
        assert_ne!(one, other);
        drop(held);
    }
}
