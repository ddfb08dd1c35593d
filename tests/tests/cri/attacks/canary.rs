//! The proof that nothing on the host was touched: a tree beside the daemon's directories, and what attacks aim at.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use coracle_tests::linux::{self, Layer};
use coracle_tests::push::Image;
use serde_json::json;

use crate::linux::shell::{fresh, program, push};
use crate::site::{Pod, SOON};

/// What is in the secret file of the tree; no container may ever see it.
pub const SECRET: &str = "canary-1f6b02c9";

/// Files of the host that the known attacks write to.
const TARGETS: [&str; 6] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/etc/passwd",
    "/etc/hosts",
    "/etc/resolv.conf",
];

/// The host as it was before the attack.
pub struct Canary {
    dir: PathBuf,
    before: BTreeMap<String, String>,
    pid: i32,
}

impl Canary {
    /// Plants a tree in the daemon's corner of the machine, outside its own directories, and remembers the host.
    pub fn plant(daemon: &Daemon) -> Self {
        let dir = daemon.scratch().dir().join("canary");
        fs::create_dir_all(dir.join("x/mnt")).unwrap();
        fs::create_dir_all(dir.join("shm")).unwrap();
        for name in [
            "secret",
            "ptmx",
            "null",
            "core",
            "mtab",
            "passwd",
            "group",
            "hosts",
            "resolv.conf",
            "hostname",
        ] {
            fs::write(dir.join(name), SECRET).unwrap();
        }
        let before = look(&dir);
        let pid = daemon.pid();
        Self { dir, before, pid }
    }

    /// The tree on the host.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its path with enough `..` before it to lead there from anywhere, without a leading slash.
    pub fn climbing(&self) -> String {
        format!("../../../../../../../..{}", self.dir.display())
    }

    /// Holds the host to how it was, and the daemon to answering soon as the process it was.
    pub async fn is_untouched(&self, daemon: &Daemon) {
        let after = look(&self.dir);
        for (path, was) in &self.before {
            assert_eq!(after.get(path), Some(was), "{path} on the host changed");
        }
        let new: Vec<_> = after
            .keys()
            .filter(|path| !self.before.contains_key(*path))
            .collect();
        assert!(new.is_empty(), "new on the host: {new:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.dir.display().to_string();
        assert!(!mounts.contains(&here), "something is mounted in {here}");
        let cri = daemon.cri();
        let version = tokio::time::timeout(SOON, cri.wait_ready(SOON)).await;
        version.expect("it does not answer").unwrap();
        assert_eq!(daemon.pid(), self.pid);
        assert!(coracle_tests::procs::is_alive(self.pid));
    }
}

/// Everything of the tree but access times, and the targets' contents.
fn look(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(dir, &mut found);
    for target in TARGETS {
        let text = fs::read_to_string(target).unwrap_or_default();
        found.insert(target.to_owned(), text);
    }
    found
}

fn walk(path: &Path, found: &mut BTreeMap<String, String>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let owner = format!(
        "{:o} {}:{} inode {}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.ino()
    );
    let time = format!("{}.{}", meta.mtime(), meta.mtime_nsec());
    let text = if meta.is_file() {
        fs::read_to_string(path).unwrap_or_default()
    } else {
        String::new()
    };
    found.insert(path.display().to_string(), format!("{owner} {time} {text}"));
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap().flatten() {
            walk(&entry.path(), found);
        }
    }
}

/// Pulls an image of a shell, the probe and whatever `change` adds, under a base that has none of `/dev`, `/proc`,
/// `/sys`, `/etc`, `/run` and `/tmp`, so that the image can bring its own. Gives its reference.
pub async fn hostile(daemon: &Daemon, change: impl FnOnce(Layer) -> Layer) -> String {
    hostile_with(daemon, json!({"Env": ["PATH=/bin"]}), change).await
}

/// The same with a config of its own.
pub async fn hostile_with(
    daemon: &Daemon,
    config: serde_json::Value,
    change: impl FnOnce(Layer) -> Layer,
) -> String {
    pulled(daemon, config, change).await.unwrap()
}

/// The same, if the pull is not refused already.
pub async fn pulled(
    daemon: &Daemon,
    config: serde_json::Value,
    change: impl FnOnce(Layer) -> Layer,
) -> Result<String, tonic::Status> {
    let layers = [
        linux::bare_layer().unwrap(),
        change(Layer::default()).tar().unwrap(),
    ];
    let image: Image = linux::image(&layers, config).unwrap();
    let reference = push(&fresh("hostile"), &image).reference;
    daemon.cri().pull(&reference).await?;
    Ok(reference)
}

/// A container of that image that runs this script.
pub fn script(reference: &str, script: &str) -> cri::ContainerConfig {
    let mut config = program(&fresh("c"), &["/bin/busybox", "sh", "-c", script]);
    config.image = Some(coracle_tests::client::image(reference));
    config
}

/// What became of a container: the refusal's text, or exit code and both streams.
#[derive(Debug)]
pub enum Fate {
    Refused(String),
    Ran(i32, String),
}

impl Fate {
    /// What there is to read of it.
    pub fn text(&self) -> &str {
        match self {
            Self::Refused(text) | Self::Ran(_, text) => text,
        }
    }

    /// Holds it to having been refused, with these words in the refusal.
    #[track_caller]
    pub fn is_refused(&self, expected: &[&str]) {
        let Self::Refused(text) = self else {
            panic!("it ran: {self:?}")
        };
        for part in expected {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
}

/// Creates, starts and awaits a container that may be refused at either step, and removes it.
pub async fn attempt(daemon: &Daemon, pod: &Pod, config: &cri::ContainerConfig) -> Fate {
    let id = match pod.create(config).await {
        Ok(id) => id,
        Err(refusal) => return Fate::Refused(refusal.message().to_owned()),
    };
    let fate = match pod.cri.start(&id).await {
        Err(refusal) => Fate::Refused(refusal.message().to_owned()),
        Ok(()) => {
            let status = pod.cri.wait_exit(&id).await.unwrap();
            let name = &config.metadata.as_ref().unwrap().name;
            let of = |stream: &str| {
                let pod = &pod.config.metadata.as_ref().unwrap().name;
                daemon.output(pod, name, stream).unwrap()
            };
            Fate::Ran(status.exit_code, of("stdout") + &of("stderr"))
        }
    };
    pod.cri.remove(&id).await.unwrap();
    assert!(
        !fate.text().contains(SECRET),
        "the canary was seen: {fate:?}"
    );
    fate
}
