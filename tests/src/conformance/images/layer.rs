//! The layers of the substitute images: a root with its few files and directories, and programs in it.
//!
//! Invariant: commands are hard links of one file, because specs mask single ones.
//! Not here: which images there are.

use std::path::Path;
use std::process::Command;

use crate::Outcome;
use crate::push::{self, digest};

const MTIME: u64 = 1_700_000_000;
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    default-user:x:1000:1000:Linux User:/home/default-user:/bin/sh\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\ndefault-user:x:1000:\n\
    group-defined-in-image:x:50000:default-user\nnobody:x:65534:\n";

/// The directories of every image.
const DIRECTORIES: [&str; 13] = [
    "bin", "dev", "etc", "home", "proc", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var",
    "var/run",
];

type Tar = tar::Builder<Vec<u8>>;

/// A layer: the digest of its tar, and the tar packed.
pub struct Layer {
    /// `sha256:...` of what is packed.
    pub diff_id: String,
    /// The tar, by gzip.
    pub packed: Vec<u8>,
}

impl Layer {
    /// A layer of what `fill` puts into its tar.
    pub fn of(fill: impl FnOnce(&mut Tar) -> Outcome<()>) -> Outcome<Self> {
        let mut tar = Tar::new(Vec::new());
        fill(&mut tar)?;
        let tar = tar.into_inner()?;
        Ok(Self {
            diff_id: digest(&tar),
            packed: push::gzip(&tar)?,
        })
    }
}

/// Busybox under the names of all its commands. Errors: it does not run.
pub fn of_busybox(busybox: &Path) -> Outcome<Layer> {
    let listed = Command::new(busybox).arg("--list-full").output()?;
    let names = String::from_utf8(listed.stdout)?;
    let program = std::fs::read(busybox)?;
    Layer::of(|tar| {
        add_root(tar)?;
        add_file(tar, "bin/busybox", 0o755, &program)?;
        let others = names.lines().filter(|name| *name != "bin/busybox");
        add_links(tar, others, "bin/busybox")
    })
}

/// One program under these names in `/bin`.
pub fn of_links(program: &[u8], names: &[&str]) -> Outcome<Layer> {
    Layer::of(|tar| {
        add_root(tar)?;
        add_file(tar, "bin/box", 0o755, program)?;
        let names: Vec<String> = names.iter().map(|name| format!("bin/{name}")).collect();
        add_links(tar, names.iter().map(String::as_str), "bin/box")
    })
}

fn add_root(tar: &mut Tar) -> Outcome<()> {
    for dir in DIRECTORIES {
        add_directory(tar, dir, 0o755)?;
    }
    add_directory(tar, "root", 0o700)?;
    add_directory(tar, "tmp", 0o1777)?;
    add_file(tar, "etc/passwd", 0o644, PASSWD.as_bytes())?;
    add_file(tar, "etc/group", 0o644, GROUP.as_bytes())
}

fn add_links<'a>(tar: &mut Tar, names: impl Iterator<Item = &'a str>, target: &str) -> Outcome<()> {
    for name in names {
        let mut header = header(tar::EntryType::Link, 0o755, 0);
        tar.append_link(&mut header, name, target)?;
    }
    Ok(())
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(MTIME);
    header
}

fn add_directory(tar: &mut Tar, path: &str, mode: u32) -> Outcome<()> {
    let mut header = header(tar::EntryType::Directory, mode, 0);
    Ok(tar.append_data(&mut header, format!("{path}/"), &[][..])?)
}

/// Adds a file whose time is always the same.
pub fn add_file(tar: &mut Tar, path: &str, mode: u32, bytes: &[u8]) -> Outcome<()> {
    let mut header = header(tar::EntryType::Regular, mode, bytes.len() as u64);
    Ok(tar.append_data(&mut header, path, bytes)?)
}
