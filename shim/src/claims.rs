//! What of the node this daemon has for itself, so that no second one takes it: its directories, the default parent of
//! cgroups, its subnets, the names of its interfaces, a share of the SELinux categories.
//!
//! ```text
//! ROOT/instance      who this root is: a random id, made once, durable; locked while a daemon lives on it
//! RUN/instance       the root that the run directory belongs to, until it is emptied (by a reboot)
//! CLAIMS/KIND-VALUE  who has a resource of the node: instance, root and pid; locked while that daemon lives
//! ```
//! Called by: `serve`, before anything is read or swept; held until the daemon ends. The kernel drops the locks with the
//! process, however it ends; no child has them (close-on-exec).
//! Invariants: of two daemons that would share something, the second one stops before it touches anything, and says
//! which, whose, and what to change; interfaces, subnets and categories stay claimed while the claimer has pods, also without its
//! daemon. A claim is looked at once at a start, never on a pod's way.
//! Not here: cgroup parents that a kubelet names, which are shared (a sweep knows its own cgroups by their ids).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_spec::id::PodId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Family, NetworkMode, Subnet};

mod share;

/// Where claims lie: the same for all daemons of the node, whatever their configuration; gone after a reboot.
const CLAIMS: &str = "/run/coracle.claims";
const INSTANCE: &str = "instance";
/// How long the last holder of a claim may take to be gone.
const PATIENCE: Duration = Duration::from_millis(300);

/// Why a daemon cannot have what it is configured to have.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another live daemon has it.
    #[error("{what} belongs to the daemon with pid {pid} and root {}; {hint}", root.display())]
    Held {
        /// What, with its configuration key.
        what: String,
        /// The holder's pid.
        pid: u32,
        /// The holder's root directory.
        root: PathBuf,
        /// What to change.
        hint: &'static str,
    },
    /// No daemon has it now, but pods that another one has left.
    #[error("{what} belongs to {pods} pods of the root {}, whose daemon does not run; {hint}", root.display())]
    InUse {
        /// What, with its configuration key.
        what: String,
        /// How many.
        pods: usize,
        /// The root directory that has their records.
        root: PathBuf,
        /// What to change.
        hint: &'static str,
    },
    /// The run directory has the sockets of another root's pods.
    #[error("the run directory {} belongs to the root {}; give each root a run directory of its own (run), or empty this one when nothing of that root runs", run.display(), root.display())]
    ForeignRun {
        /// The run directory.
        run: PathBuf,
        /// The root it belongs to.
        root: PathBuf,
    },
    /// The disk.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Who claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claimer {
    instance: String,
    root: PathBuf,
    pid: u32,
}

/// What is claimed; dropped, it is free.
#[derive(Debug)]
pub struct Claims {
    _root: File,
    held: Vec<(PathBuf, File)>,
    category_share: Option<u32>,
    pods: PathBuf,
}

/// One resource of the node.
struct Resource {
    kind: &'static str,
    value: String,
    what: String,
    hint: &'static str,
    /// It is in use while the claimer has pods, also without a daemon.
    outlives_daemon: bool,
}

impl Claims {
    /// Claims what `config` names. Both directories must exist. Errors: somebody has it, or the disk.
    pub fn take(config: &Config) -> Result<Claims, Error> {
        Claims::take_in(Path::new(CLAIMS), config)
    }

    fn take_in(claims: &Path, config: &Config) -> Result<Claims, Error> {
        let (root, own) = lock_root(&config.root)?;
        claim_run(&config.run, &own)?;
        let mut made = fs::DirBuilder::new();
        let made = made.recursive(true).mode(0o700).create(claims);
        made.map_err(|source| failed("make directory", claims, source))?;
        let mut held = Vec::new();
        for resource in resources(config) {
            refuse_overlap(claims, &resource, &own)?;
            let path = claims.join(resource.file());
            let file = claim(&path, &resource, &own, PATIENCE)?;
            held.push((path, file));
        }
        let share = share::claim_one(claims, &own)?;
        let category_share = share.as_ref().map(|share| share.number);
        held.extend(share.map(|share| (share.path, share.file)));
        Ok(Claims {
            _root: root,
            held,
            category_share,
            pods: config.root.join("pods"),
        })
    }

    /// Which share of the node's SELinux categories this daemon hands out; none when other daemons have all.
    pub fn category_share(&self) -> Option<u32> {
        self.category_share
    }

    /// Gives everything back at the end of a daemon that leaves no pods. What cannot be removed is no matter: the
    /// lock goes with the process.
    pub fn release(self) {
        if count(&self.pods) > 0 {
            return;
        }
        for (path, _held) in self.held {
            let _ = fs::remove_file(path);
        }
    }
}

impl Resource {
    fn file(&self) -> String {
        let value = self.value.replace('%', "%25").replace('/', "%2F");
        format!("{}-{value}", self.kind)
    }

    fn held(&self, by: &Claimer) -> Error {
        Error::Held {
            what: self.what.clone(),
            pid: by.pid,
            root: by.root.clone(),
            hint: self.hint,
        }
    }
}

/// Everything that two daemons must not share. Nothing of the built-in network where plugins connect pods.
fn resources(config: &Config) -> Vec<Resource> {
    let mut all = of_any_daemon(config);
    if config.network.mode == NetworkMode::Builtin {
        all.extend(of_builtin_network(&config.network));
    }
    all
}

fn of_any_daemon(config: &Config) -> Vec<Resource> {
    let parent = format!("/{}", config.cgroup.pod_parent.trim_matches('/'));
    vec![
        Resource {
            kind: "run",
            value: config.run.display().to_string(),
            what: format!("the run directory {} (run)", config.run.display()),
            hint: "give this one another run",
            outlives_daemon: false,
        },
        Resource {
            kind: "netns",
            value: config.network.netns_dir.display().to_string(),
            what: format!(
                "the directory of network namespaces {} (network.netns_dir)",
                config.network.netns_dir.display()
            ),
            hint: "give this one another network.netns_dir",
            outlives_daemon: false,
        },
        Resource {
            kind: "cgroup",
            what: format!("the parent of cgroups {parent} (cgroup.pod_parent)"),
            value: parent,
            hint: "give this one another cgroup.pod_parent",
            outlives_daemon: false,
        },
    ]
}

fn of_builtin_network(network: &crate::config::Network) -> Vec<Resource> {
    let prefix = &network.interface_prefix;
    let mut all = vec![Resource {
        kind: "interfaces",
        value: prefix.clone(),
        what: format!("the interface prefix {prefix} (network.interface_prefix)"),
        hint: "give this one another network.interface_prefix",
        outlives_daemon: true,
    }];
    let mut subnets = vec![network.subnet.to_string()];
    subnets.extend(network.subnet_v6.map(|subnet| subnet.to_string()));
    all.extend(subnets.into_iter().map(|subnet| Resource {
        kind: "subnet",
        what: format!("the subnet {subnet} (network.subnet, network.subnet_v6)"),
        value: subnet,
        hint: "give this one a subnet that overlaps no other",
        outlives_daemon: true,
    }));
    all
}

/// Locks the root and gives who it is, which is decided once. Errors: a daemon lives on it.
fn lock_root(root: &Path) -> Result<(File, Claimer), Error> {
    let path = root.join(INSTANCE);
    let mut file = open(&path)?;
    let known: Option<Claimer> = read(&mut file, &path)?;
    if !lock(&file, PATIENCE) {
        return Err(Error::Held {
            what: format!("the root directory {} (root)", root.display()),
            pid: known.map_or(0, |known| known.pid),
            root: root.to_owned(),
            hint: "give this one another root, or run only one",
        });
    }
    let instance = match known {
        Some(known) => known.instance,
        None => PodId::random()
            .map_err(|source| failed("draw an id for", &path, source))?
            .to_string(),
    };
    let own = Claimer {
        instance,
        root: root.to_owned(),
        pid: std::process::id(),
    };
    write(&mut file, &path, &own)?;
    file.sync_all()
        .and_then(|()| File::open(root)?.sync_all())
        .map_err(|source| failed("sync", &path, source))?;
    Ok((file, own))
}

/// Marks the run directory as this root's. One of a root that was deleted and made again goes over to the new one.
fn claim_run(run: &Path, own: &Claimer) -> Result<(), Error> {
    let path = run.join(INSTANCE);
    let mut file = open(&path)?;
    let known: Option<Claimer> = read(&mut file, &path)?;
    if let Some(known) = known
        && known.instance != own.instance
        && known.root != own.root
        && known.root.join(INSTANCE).exists()
    {
        return Err(Error::ForeignRun {
            run: run.to_owned(),
            root: known.root,
        });
    }
    write(&mut file, &path, own)
}

fn claim(
    path: &Path,
    resource: &Resource,
    own: &Claimer,
    patience: Duration,
) -> Result<File, Error> {
    loop {
        let mut file = open(path)?;
        let is_free = lock(&file, patience);
        let known: Option<Claimer> = read(&mut file, path)?;
        let other = known.filter(|known| known.instance != own.instance);
        match (is_free, other) {
            (false, other) => {
                // A holder that has not written yet is not known by name.
                let nobody = Claimer {
                    pid: 0,
                    ..own.clone()
                };
                return Err(resource.held(&other.unwrap_or(nobody)));
            }
            (true, Some(other)) => refuse_in_use(resource, other)?,
            (true, None) => {}
        }
        // Its last holder may have removed it between the opening and the lock.
        let mine = file.metadata().map(|mine| mine.ino());
        let there = fs::metadata(path).map(|there| there.ino());
        if matches!((mine, there), (Ok(mine), Ok(there)) if mine == there) {
            write(&mut file, path, own)?;
            return Ok(file);
        }
    }
}

/// Whether the file is ours now. A daemon that has just been killed may hold it for a moment more.
fn lock(file: &File, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn refuse_in_use(resource: &Resource, other: Claimer) -> Result<(), Error> {
    let pods = count(&other.root.join("pods"));
    if !resource.outlives_daemon || pods == 0 {
        return Ok(());
    }
    Err(Error::InUse {
        what: resource.what.clone(),
        pods,
        root: other.root,
        hint: resource.hint,
    })
}

/// Subnets that are not equal may overlap: each claim of one is looked at.
fn refuse_overlap(claims: &Path, resource: &Resource, own: &Claimer) -> Result<(), Error> {
    if resource.kind != "subnet" {
        return Ok(());
    }
    let listed = fs::read_dir(claims).map_err(|source| failed("list", claims, source))?;
    for entry in listed.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(value) = name.strip_prefix("subnet-") else {
            continue;
        };
        let value = value.replace("%2F", "/").replace("%25", "%");
        if value == resource.value || !overlap(&value, &resource.value) {
            continue;
        }
        let mut file = open(&entry.path())?;
        let Some(other) = read(&mut file, &entry.path())? else {
            continue;
        };
        if other.instance == own.instance {
            continue;
        }
        let is_held = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        if is_held {
            return Err(resource.held(&other));
        }
        refuse_in_use(resource, other)?;
    }
    Ok(())
}

fn overlap(one: &str, other: &str) -> bool {
    fn both<A: Family>(one: &str, other: &str) -> bool {
        match (Subnet::<A>::parse(one), Subnet::<A>::parse(other)) {
            (Ok(one), Ok(other)) => one.contains(other.base) || other.contains(one.base),
            _ => false,
        }
    }
    both::<Ipv4Addr>(one, other) || both::<Ipv6Addr>(one, other)
}

fn count(pods: &Path) -> usize {
    fs::read_dir(pods).map_or(0, |entries| entries.flatten().count())
}

fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    // O_NOFOLLOW: the directory is root's alone, but a link in it would be nobody's doing of ours.
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
        .open(path)
        .map_err(|source| failed("open", path, source))
}

/// Who claims; `None` of a file that is new or was cut off.
fn read(file: &mut File, path: &Path) -> Result<Option<Claimer>, Error> {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    read.map_err(|source| failed("read", path, source))?;
    Ok(serde_json::from_str(&text).ok())
}

fn write(file: &mut File, path: &Path, claimer: &Claimer) -> Result<(), Error> {
    let written = serde_json::to_vec(claimer)
        .map_err(io::Error::other)
        .and_then(|text| {
            file.rewind()?;
            file.write_all(&text)?;
            // After the text, so that a crash leaves the old one or this one with a tail, never nothing.
            file.set_len(text.len() as u64)
        });
    written.map_err(|source| failed("write", path, source))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// A configuration of its own below `dir`; `number` makes prefix, subnet and parent its own, too.
    fn config(dir: &Scratch, number: u8) -> Config {
        let mut config = Config {
            root: dir.0.join(format!("root{number}")),
            run: dir.0.join(format!("run{number}")),
            ..Config::default()
        };
        config.network.netns_dir = config.run.join("netns");
        config.network.interface_prefix = format!("co{}", char::from(b'a' + number));
        config.network.subnet = Subnet::parse(&format!("10.{number}.0.0/16")).unwrap();
        config.cgroup.pod_parent = format!("/co{number}");
        for directory in [&config.root, &config.run] {
            fs::create_dir_all(directory).unwrap();
        }
        config
    }

    fn take(dir: &Scratch, config: &Config) -> Result<Claims, Error> {
        Claims::take_in(&dir.0.join("claims"), config)
    }

    #[test]
    fn each_thing_that_two_daemons_would_share_is_refused_by_name() {
        let dir = Scratch::new("claims-each");
        let first = config(&dir, 1);
        let held = take(&dir, &first).unwrap();
        type Change = fn(&mut Config, &Config);
        let changes: [(&str, Change); 6] = [
            ("(root)", |second, first| {
                second.root.clone_from(&first.root)
            }),
            ("(run)", |second, first| second.run.clone_from(&first.run)),
            ("network.netns_dir", |second, first| {
                second
                    .network
                    .netns_dir
                    .clone_from(&first.network.netns_dir);
            }),
            ("cgroup.pod_parent", |second, first| {
                second.cgroup.pod_parent = format!("{}/", first.cgroup.pod_parent);
            }),
            ("network.interface_prefix", |second, first| {
                let prefix = &first.network.interface_prefix;
                second.network.interface_prefix.clone_from(prefix);
            }),
            ("network.subnet", |second, _| {
                second.network.subnet = Subnet::parse("10.1.16.0/20").unwrap();
            }),
        ];
        for (named, change) in changes {
            let mut second = config(&dir, 2);
            change(&mut second, &first);
            let text = match take(&dir, &second) {
                Err(error @ (Error::Held { .. } | Error::ForeignRun { .. })) => error.to_string(),
                other => panic!("{named}: {other:?}"),
            };
            assert!(text.contains(named), "{named}: {text}");
            assert!(text.contains(&first.root.display().to_string()), "{text}");
        }
        take(&dir, &config(&dir, 2)).unwrap();
        drop(held);
        take(&dir, &first).unwrap();
    }

    #[test]
    fn pods_keep_subnet_and_interfaces_while_their_daemon_is_away() {
        let dir = Scratch::new("claims-away");
        let first = config(&dir, 1);
        fs::create_dir_all(first.root.join("pods/a")).unwrap();
        drop(take(&dir, &first).unwrap());
        let mut second = config(&dir, 2);
        second.network.subnet = Subnet::parse("10.0.0.0/8").unwrap();
        let refused = take(&dir, &second);
        assert!(
            matches!(refused, Err(Error::InUse { pods: 1, .. })),
            "{refused:?}"
        );
        // Cgroups are told apart by their names.
        let mut second = config(&dir, 2);
        second
            .cgroup
            .pod_parent
            .clone_from(&first.cgroup.pod_parent);
        drop(take(&dir, &second).unwrap());
        fs::remove_dir_all(first.root.join("pods")).unwrap();
        let mut second = config(&dir, 2);
        second.network.subnet = first.network.subnet;
        take(&dir, &second).unwrap();
    }

    #[test]
    fn a_root_is_the_same_at_every_start_and_a_release_leaves_nothing() {
        let dir = Scratch::new("claims-same");
        let own = config(&dir, 1);
        let instance = |own: &Config| {
            let text = fs::read(own.root.join(INSTANCE)).unwrap();
            serde_json::from_slice::<Claimer>(&text).unwrap().instance
        };
        take(&dir, &own).unwrap().release();
        let first = instance(&own);
        take(&dir, &own).unwrap().release();
        assert_eq!(instance(&own), first);
        assert_eq!(count(&dir.0.join("claims")), 0);
    }
}
