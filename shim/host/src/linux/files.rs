//! A pod's own `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`, bound into its containers.
//!
//! Called by: CreateContainer. Created once for each container, in its directory on disk: whatever it writes to them is
//! its own, counts as its writable layer does, is removed with it, and never uses the node's memory.
//! Invariants: an existing file is complete and never replaced, because the container may have it mounted; users of
//! containers reach it only through a mount, as the directories above are root's alone.
//! Must not know: mounts of the kubelet at the same paths; those win.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use coracle_lifecycle::{Dns, Error, NamespaceMode, PodRecord};
use coracle_spec::Mount;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{io_error, make_private, relabel};

/// A file: name in our directory, path in the container.
type PodFile = (&'static str, &'static str);

/// The files of a container.
const ALL: [PodFile; 3] = [
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
];

/// The pod, and the directory for its files.
pub(crate) struct PodFiles<'a> {
    /// The pod.
    pub(crate) pod: &'a PodRecord,
    /// The container's directory for them, on the root directory's disk.
    pub(crate) directory: &'a Path,
}

/// Largest file of the node that is copied. Bytes.
const MAX_NODE_FILE_BYTES: u64 = 1 << 20;

/// The facts that a pod's files contain.
struct Facts<'a> {
    hostname: String,
    dns: &'a Dns,
    ips: Vec<IpAddr>,
    on_node_network: bool,
}

impl PodFiles<'_> {
    /// Adds a mount of each file at a path that `mounts` leave free; [`Self::write`] creates the files.
    pub(crate) fn add(&self, readonly: bool, mounts: &mut Vec<Mount>) {
        let free = |target: &str| !mounts.iter().any(|mount| covers(&mount.target, target));
        let wanted: Vec<_> = ALL.iter().filter(|(_, target)| free(target)).collect();
        mounts.extend(wanted.into_iter().map(|(name, target)| Mount {
            source: self.directory.join(name),
            target: (*target).to_owned(),
            readonly,
            ..Mount::default()
        }));
    }

    /// Creates the files that are sources of `mounts`, unless they exist, with SELinux label `label`. Blocks on the
    /// disk.
    pub(crate) fn write(&self, mounts: &[Mount], label: Option<&str>) -> Result<(), Error> {
        let is_wanted = |name: &str| {
            let path = self.directory.join(name);
            mounts.iter().any(|mount| mount.source == path) && !path.exists()
        };
        let wanted: Vec<_> = ALL.iter().filter(|(name, _)| is_wanted(name)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        make_private(self.directory)?;
        let facts = facts(self.pod);
        for (name, _) in wanted {
            put(self.directory, name, &text(name, &facts)?, label)?;
        }
        Ok(())
    }
}

/// Bytes of disk that the files in `directory` occupy: the container may have written to them.
pub(crate) fn usage(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let facts = ALL
        .iter()
        .filter_map(|(name, _)| std::fs::symlink_metadata(directory.join(name)).ok());
    facts.map(|facts| facts.blocks() * 512).sum()
}

/// Whether a mount at `target` covers `path`.
fn covers(target: &str, path: &str) -> bool {
    path.strip_prefix(target)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn facts(pod: &PodRecord) -> Facts<'_> {
    let live = pod.phase.live();
    let attachment = live.and_then(|live| live.attachment.as_ref());
    Facts {
        hostname: hostname(pod),
        dns: &pod.config.dns,
        ips: attachment
            .map(|at| at.addresses.clone())
            .unwrap_or_default(),
        on_node_network: pod.config.namespaces.network == NamespaceMode::Node,
    }
}

/// The host name that a pod's containers see: its own, else the node's.
pub(super) fn hostname(pod: &PodRecord) -> String {
    if !pod.config.hostname.is_empty() {
        return pod.config.hostname.clone();
    }
    let node = rustix::system::uname();
    node.nodename().to_string_lossy().into_owned()
}

fn text(name: &str, facts: &Facts<'_>) -> Result<String, Error> {
    match name {
        "hostname" => Ok(format!("{}\n", facts.hostname)),
        "hosts" if facts.on_node_network => of_node("/etc/hosts"),
        "hosts" => Ok(hosts(facts)),
        _ => resolver(facts.dns),
    }
}

/// The text of a pod's resolv.conf: its own settings, else the node's.
pub(crate) fn resolver(dns: &Dns) -> Result<String, Error> {
    match *dns == Dns::default() {
        true => of_node("/etc/resolv.conf"),
        false => Ok(resolv_conf(dns)),
    }
}

fn hosts(facts: &Facts<'_>) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
        .to_owned();
    for ip in &facts.ips {
        text.push_str(&format!("{ip}\t{}\n", facts.hostname));
    }
    text
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// The servers in the node's own resolv.conf, for pods that get a copy of it.
pub(crate) fn node_resolvers() -> Result<Vec<IpAddr>, Error> {
    let text = of_node("/etc/resolv.conf")?;
    let servers = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    Ok(servers
        .filter_map(|token| token.trim().parse().ok())
        .collect())
}

/// A file of the node; empty when absent.
fn of_node(path: &str) -> Result<String, Error> {
    use std::io::Read as _;
    let failed = |error| io_error(format!("read the node's {path}"), error);
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        other => other.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    let read = file.take(MAX_NODE_FILE_BYTES).read_to_end(&mut bytes);
    read.map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a complete file under another name, then renames it unless the name is taken.
fn put(directory: &Path, name: &str, text: &str, label: Option<&str>) -> Result<(), Error> {
    let half: PathBuf = directory.join(format!("{name}.new"));
    let written =
        write_new(&half, text, label).and_then(|()| publish(&half, &directory.join(name)));
    if let Err(error) = written {
        // It is in the container's own directory, and removed with it.
        let _ = std::fs::remove_file(&half);
        return Err(io_error(format!("write a pod's {name}"), error));
    }
    Ok(())
}

fn write_new(path: &Path, text: &str, label: Option<&str>) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    // Independent of the daemon's umask: users of containers must be able to read it.
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::fchmod(&file, mode)?;
    label.map_or(Ok(()), |label| relabel::set(&file, label).map(drop))
}

fn publish(half: &Path, whole: &Path) -> std::io::Result<()> {
    match renameat_with(CWD, half, CWD, whole, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => std::fs::remove_file(half),
        other => Ok(other?),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn facts_of(dns: &Dns) -> Facts<'_> {
        Facts {
            hostname: "web-0".to_owned(),
            dns,
            ips: vec!["10.88.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            on_node_network: false,
        }
    }

    #[test]
    fn files_contain_the_pods_settings() {
        let dns = Dns {
            servers: vec!["10.96.0.10".into(), "fd00::a".into()],
            searches: vec!["default.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        let facts = facts_of(&dns);
        assert_eq!(text("hostname", &facts).unwrap(), "web-0\n");
        let hosts = text("hosts", &facts).unwrap();
        assert!(
            hosts.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost"),
            "{hosts}"
        );
        assert!(
            hosts.ends_with("10.88.0.7\tweb-0\nfd00::7\tweb-0\n"),
            "{hosts}"
        );
        assert_eq!(
            text("resolv.conf", &facts).unwrap(),
            "search default.svc svc\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
    }

    #[test]
    fn without_a_resolver_and_on_the_nodes_network_files_are_the_nodes() {
        let dns = Dns::default();
        let mut facts = facts_of(&dns);
        assert_eq!(
            text("resolv.conf", &facts).unwrap(),
            of_node("/etc/resolv.conf").unwrap()
        );
        facts.on_node_network = true;
        assert_eq!(
            text("hosts", &facts).unwrap(),
            of_node("/etc/hosts").unwrap()
        );
        assert_eq!(of_node("/no/such/file").unwrap(), "");
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let scratch = crate::scratch::Scratch::new("files");
        let root = scratch.0.join("new");
        make_private(&root).unwrap();
        put(&root, "hosts", "first", None).unwrap();
        put(&root, "hosts", "second", None).unwrap();
        assert_eq!(
            std::fs::read_to_string(root.join("hosts")).unwrap(),
            "first"
        );
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
        let mode = std::fs::metadata(root.join("hosts")).unwrap();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
            0o644
        );
    }

    #[test]
    fn a_mount_at_or_above_a_path_covers_it() {
        for (target, path, expected) in [
            ("/etc/hosts", "/etc/hosts", true),
            ("/etc", "/etc/hosts", true),
            ("/et", "/etc/hosts", false),
            ("/etc/host", "/etc/hosts", false),
            ("/etc/hosts/x", "/etc/hosts", false),
        ] {
            assert_eq!(covers(target, path), expected, "{target}");
        }
    }
}
