//! Claims the resources of the node that no two daemons may share: directories, the default parent of cgroups, host ids,
//! subnets, names of interfaces, a share of the SELinux categories.
//!
//! ```text
//! ROOT/instance      the identity of this root: a random id, created once, durable; locked while a daemon uses it
//! RUN/instance       the root that the run directory belongs to, until it is emptied (by a reboot)
//! CLAIMS/KIND-VALUE  the claimer of a resource: instance, root and pid; locked while that daemon lives
//! ```
//! Called by: `serve`, before anything is read or swept; held until the daemon ends. The kernel releases the locks with
//! the process, however it ends; children do not inherit them (close-on-exec).
//! Invariants: when two daemons would share something, the second one stops before it touches anything, and names the
//! resource, the holder, and what to change; host ids, interfaces, subnets and categories stay claimed while the claimer has
//! pods, even without its daemon. Claims are checked only at the start of a daemon.
//! Must not know: cgroup parents that a kubelet names, which are shared (a sweep recognises its own cgroups by their
//! ids).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_config::Config;
use coracle_spec::id::PodId;
use rustix::fs::{FlockOperation, flock};

use self::file::{Claimer, lock, open, read, write};
use self::resources::{Resource, overlap, resources};

mod file;
mod resources;
mod share;

/// The directory of claims: the same for all daemons of the node, whatever their configuration; gone after a reboot.
const CLAIMS: &str = "/run/coracle.claims";
const INSTANCE: &str = "instance";
/// How long the last holder of a claim may take to exit.
const TIMEOUT: Duration = Duration::from_millis(300);

/// Why a daemon cannot have its configured resources.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another live daemon holds the resource.
    #[error("{what} belongs to the daemon with pid {pid} and root {}; {hint}", root.display())]
    Held {
        /// The resource, with its configuration key.
        what: String,
        /// The holder's pid.
        pid: u32,
        /// The holder's root directory.
        root: PathBuf,
        /// What to change.
        hint: &'static str,
    },
    /// Pods of a daemon that does not run use the resource.
    #[error("{what} belongs to {pods} pods of the root {}, whose daemon does not run; {hint}", root.display())]
    InUse {
        /// The resource, with its configuration key.
        what: String,
        /// The number of pods.
        pods: usize,
        /// The root directory with their records.
        root: PathBuf,
        /// What to change.
        hint: &'static str,
    },
    /// The run directory contains the sockets of another root's pods.
    #[error("the run directory {} belongs to the root {}; give each root a run directory of its own (run), or empty this one when nothing of that root runs", run.display(), root.display())]
    ForeignRun {
        /// The run directory.
        run: PathBuf,
        /// The root it belongs to.
        root: PathBuf,
    },
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The claims of this daemon; dropping it releases them.
#[derive(Debug)]
pub struct Claims {
    _root: File,
    held: Vec<(PathBuf, File)>,
    category_share: Option<u32>,
    pods: PathBuf,
}

impl Claims {
    /// Claims the resources of `config`. Both directories must exist. Errors: a resource is in use, or a file operation
    /// failed.
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
            let file = claim(&path, &resource, &own, TIMEOUT)?;
            held.push((path, file));
            // A daemon that started meanwhile sees our claim, or we see its.
            refuse_overlap(claims, &resource, &own)?;
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

    /// The share of the node's SELinux categories that this daemon hands out; `None` when other daemons hold all.
    pub fn category_share(&self) -> Option<u32> {
        self.category_share
    }

    /// Removes the claims at the end of a daemon without pods. Failures are ignored: the locks end with the process.
    pub fn release(self) {
        if count(&self.pods) > 0 {
            return;
        }
        for (path, _held) in self.held {
            let _ = fs::remove_file(path);
        }
    }
}

/// Locks the root and returns its identity, which is created once. Errors: a daemon uses the root.
fn lock_root(root: &Path) -> Result<(File, Claimer), Error> {
    let path = root.join(INSTANCE);
    let mut file = open(&path)?;
    let known: Option<Claimer> = read(&mut file, &path)?;
    if !lock(&file, TIMEOUT) {
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

/// Marks the run directory as this root's. If its root was deleted and created again, the new root takes it over.
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
    timeout: Duration,
) -> Result<File, Error> {
    loop {
        let mut file = open(path)?;
        let is_free = lock(&file, timeout);
        let known: Option<Claimer> = read(&mut file, path)?;
        let other = known.filter(|known| known.instance != own.instance);
        match (is_free, other) {
            (false, other) => {
                // A holder that has not written yet has no known name.
                let nobody = Claimer {
                    pid: 0,
                    ..own.clone()
                };
                return Err(resource.held(&other.unwrap_or(nobody)));
            }
            (true, Some(other)) => refuse_in_use(resource, other)?,
            (true, None) => {}
        }
        // The last holder may have removed the file between open and lock.
        let mine = file.metadata().map(|mine| mine.ino());
        let there = fs::metadata(path).map(|there| there.ino());
        if matches!((mine, there), (Ok(mine), Ok(there)) if mine == there) {
            write(&mut file, path, own)?;
            return Ok(file);
        }
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

/// Refuses a subnet or a range of host ids that overlaps one of another daemon: equal ones share a file, others are
/// compared here.
fn refuse_overlap(claims: &Path, resource: &Resource, own: &Claimer) -> Result<(), Error> {
    let listed = fs::read_dir(claims).map_err(|source| failed("list", claims, source))?;
    for entry in listed.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((kind, value)) = name.split_once('-') else {
            continue;
        };
        let value = value.replace("%2F", "/").replace("%25", "%");
        let is_other = kind != resource.kind || value == resource.value;
        if is_other || !overlap(kind, &value, &resource.value) {
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

fn count(pods: &Path) -> usize {
    fs::read_dir(pods).map_or(0, |entries| entries.flatten().count())
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
    use coracle_config::Subnet;

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
        config.sandbox.max_pods = 100;
        config.sandbox.id_base = u32::from(number) * 100 * config.sandbox.id_count;
        for directory in [&config.root, &config.run] {
            fs::create_dir_all(directory).unwrap();
        }
        config
    }

    fn take(dir: &Scratch, config: &Config) -> Result<Claims, Error> {
        Claims::take_in(&dir.0.join("claims"), config)
    }

    #[test]
    fn each_resource_of_another_daemon_is_refused_by_name() {
        let _alone = crate::forking::held();
        let dir = Scratch::new("claims-each");
        let first = config(&dir, 1);
        let held = take(&dir, &first).unwrap();
        type Change = fn(&mut Config, &Config);
        let changes: [(&str, Change); 8] = [
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
            ("sandbox.id_base", |second, first| {
                second.sandbox = first.sandbox.clone();
            }),
            ("sandbox.id_base", |second, _| second.sandbox.id_base -= 1),
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
    fn pods_keep_subnet_interfaces_and_ids_while_their_daemon_is_away() {
        let _alone = crate::forking::held();
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
        // The pod has its ids, whatever else they are now divided into.
        let mut second = config(&dir, 2);
        second.sandbox.id_base -= 65_536;
        second.sandbox.id_count *= 2;
        let refused = take(&dir, &second);
        assert!(
            matches!(&refused, Err(Error::InUse { what, .. }) if what.contains("sandbox.id_base")),
            "{refused:?}"
        );
        // Cgroups are recognised by their names.
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
        let _alone = crate::forking::held();
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
