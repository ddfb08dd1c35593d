//! Linux images for the tests: Debian's static busybox with its applets, users and groups, set-id programs and layers,
//! and the probe of `guests/probe.c`.
//!
//! Called by: the tests of Linux containers. [`Layer`] writes any tar entry, also those that no honest image has;
//! [`base`] is the honest image that most tests start from. Nothing is fetched: busybox comes from the package
//! `busybox-static`, the probe from the C compiler.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::push::Image;
use crate::{Outcome, guests};

/// Where the package busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";
/// Seconds since 1970 of every entry.
const MTIME: u64 = 1_700_000_000;

/// The users of [`base`]: name, uid, gid, home.
pub const USERS: &str = "root:x:0:0:root:/root:/bin/sh\n\
                         app:x:1000:1001:an application:/home/app:/bin/sh\n\
                         web:x:1003:1003::/:/bin/false\n\
                         0777:x:0:0:a name that is a number:/:/bin/sh\n";
/// The groups of [`base`].
pub const GROUPS: &str =
    "root:x:0:\napp:x:1001:\nextra:x:1002:app\nweb:x:1003:\nmore:x:1004:web,app\n";

/// A layer that is being written: a tar archive, entry by entry.
pub struct Layer(tar::Builder<Vec<u8>>);

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({} bytes)", self.0.get_ref().len())
    }
}

impl Default for Layer {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Layer {
    /// A regular file of root's.
    pub fn file(self, path: &str, mode: u32, bytes: &[u8]) -> Outcome<Self> {
        self.owned(path, mode, (0, 0), bytes)
    }

    /// A regular file of a user and a group.
    pub fn owned(
        mut self,
        path: &str,
        mode: u32,
        owner: (u64, u64),
        bytes: &[u8],
    ) -> Outcome<Self> {
        let mut header = header(tar::EntryType::Regular, mode, owner);
        header.set_size(bytes.len() as u64);
        self.0.append_data(&mut header, path, bytes)?;
        Ok(self)
    }

    /// A directory.
    pub fn dir(mut self, path: &str, mode: u32, owner: (u64, u64)) -> Outcome<Self> {
        let mut header = header(tar::EntryType::Directory, mode, owner);
        self.0.append_data(&mut header, path, &[][..])?;
        Ok(self)
    }

    /// A symbolic link to whatever the text says.
    pub fn symlink(mut self, path: &str, target: &str) -> Outcome<Self> {
        let mut header = header(tar::EntryType::Symlink, 0o777, (0, 0));
        self.0.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// A hard link to an earlier entry.
    pub fn hardlink(mut self, path: &str, target: &str) -> Outcome<Self> {
        let mut header = header(tar::EntryType::Link, 0o755, (0, 0));
        self.0.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// A whiteout of a file of a lower layer, in OCI's writing.
    pub fn whiteout(self, path: &str) -> Outcome<Self> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.file(&format!("{dir}/.wh.{name}"), 0o644, b"")
    }

    /// The finished archive.
    pub fn tar(self) -> Outcome<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn header(kind: tar::EntryType, mode: u32, (uid, gid): (u64, u64)) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_size(0);
    header.set_mtime(MTIME);
    header
}

/// An image of these layers, lowest first, whose `config` is this object. Errors: the archive cannot be packed.
pub fn image(layers: &[Vec<u8>], config: Value) -> Outcome<Image> {
    let mut image = Image::linux(&[], &[])?;
    image.layers.clear();
    image.config["rootfs"]["diff_ids"] = json!([]);
    image.config["config"] = config;
    for layer in layers {
        image.add_tar(layer)?;
    }
    Ok(image)
}

/// The layers of the base image: programs and users; then a layer that changes, removes and adds.
/// Errors: no busybox or no C compiler.
pub fn base_layers() -> Outcome<Vec<Vec<u8>>> {
    let busybox =
        fs::read(BUSYBOX).map_err(|e| format!("{BUSYBOX}: {e}; apt-get install busybox-static"))?;
    let probe = guests::probe()?;
    let mut layer = Layer::default();
    for dir in ["bin", "etc", "proc", "sys", "dev", "usr", "home", "run"] {
        layer = layer.dir(dir, 0o755, (0, 0))?;
    }
    layer = layer
        .dir("tmp", 0o1777, (0, 0))?
        .dir("root", 0o700, (0, 0))?
        .dir("home/app", 0o755, (1000, 1001))?
        .file("bin/busybox", 0o755, &busybox)?
        .hardlink("bin/sh", "bin/busybox")?
        .file("bin/probe", 0o755, &probe)?
        .file("bin/set-uid-probe", 0o4755, &probe)?
        .file("etc/passwd", 0o644, USERS.as_bytes())?
        .file("etc/group", 0o644, GROUPS.as_bytes())?
        .file("etc/motd", 0o644, b"lower\n")?
        .file("etc/gone", 0o644, b"a lower layer's\n")?
        .file("etc/not-a-program", 0o644, b"text\n")?;
    for applet in applets()? {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    let upper = Layer::default()
        .file("etc/motd", 0o644, b"upper\n")?
        .whiteout("etc/gone")?
        .dir("data", 0o750, (1000, 1001))?
        .owned("data/from-image", 0o640, (1000, 1001), b"of the image\n")?
        .symlink("etc/link-to-data", "/data")?;
    Ok(vec![layer.tar()?, upper.tar()?])
}

/// The layer of a hostile image: busybox and the probe, and not one of the directories that a runtime mounts over.
/// Errors: no busybox or no C compiler.
pub fn bare_layer() -> Outcome<Vec<u8>> {
    let busybox = fs::read(BUSYBOX).map_err(|e| format!("{BUSYBOX}: {e}"))?;
    let layer = Layer::default()
        .dir("bin", 0o755, (0, 0))?
        .file("bin/busybox", 0o755, &busybox)?
        .file("bin/probe", 0o755, &guests::probe()?)?;
    layer.tar()
}

/// The base image: `PATH=/bin`, a shell by default, nothing else set.
pub fn base() -> Outcome<Image> {
    image(
        &base_layers()?,
        json!({"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["/bin/sh"]}),
    )
}

/// The base image with all that an image's config can say: user `app`, a working directory, a volume, an entry point
/// whose argument is a script, a stop signal.
pub fn dressed() -> Outcome<Image> {
    image(
        &base_layers()?,
        json!({
            "Env": ["PATH=/bin", "HOME=/home/app"], "User": "app", "WorkingDir": "/home/app/work",
            "Volumes": {"/data": {}}, "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo by default"],
            "StopSignal": "SIGUSR1",
        }),
    )
}

/// A small image to be mounted, not run: two files and a directory.
pub fn content() -> Outcome<Image> {
    let layer = Layer::default()
        .file("top", 0o644, b"top of the image\n")?
        .dir("sub", 0o755, (0, 0))?
        .file("sub/inner", 0o644, b"inside\n")?
        .symlink("out", "/etc")?;
    image(&[layer.tar()?], json!({}))
}

/// The applets that busybox has, without the ones the layer makes itself.
fn applets() -> Outcome<Vec<String>> {
    let list = Command::new(BUSYBOX).arg("--list").output()?;
    let names = String::from_utf8(list.stdout)?;
    let own = |name: &&str| !["busybox", "sh"].contains(name);
    Ok(names.lines().filter(own).map(str::to_owned).collect())
}
