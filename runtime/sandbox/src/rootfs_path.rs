//! Opens and makes paths inside a container's root, and never leaves it, whatever links the image has.
//!
//! Called by everything that mounts into a root. It walks component by component with openat2(2), confined to the root,
//! so a container that replaces a directory by a link meanwhile affects only itself.
//! Invariant: no call here touches anything outside `root`.
//! It must not know what is mounted.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, mkdirat, open, openat, openat2,
    readlinkat, statat, statx,
};

/// Most links that one walk follows, the same as the kernel's.
const MAX_LINKS: usize = 40;

/// Opens `path` below `root` with `O_PATH`, following links as if `root` were `/`.
pub fn inside(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(openat2(root, path, flags, Mode::empty(), how)?)
}

/// Opens directory `name` directly below `root`, and makes it if it is missing.
///
/// Errors: `InvalidInput` if it is not a directory: through an image's link, a kernel filesystem would be mounted where
/// the image wants it.
pub fn plain_directory(root: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(root, name, flags, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => io::Error::new(
            io::ErrorKind::InvalidInput,
            "it must be mounted on an ordinary directory, and the image has something else there",
        ),
        e => e.into(),
    })
}

/// Opens `path` below `root` and makes what is missing: directories, and at the end a directory or an empty file. It
/// follows links, and makes the targets of dangling ones.
pub fn ensure(root: BorrowedFd<'_>, path: &str, dir: bool) -> io::Result<OwnedFd> {
    Ok(ensure_resolved(root, path, dir)?.0)
}

/// Like [`ensure`]; also gives the path without links. Errors: besides, a directory of it became a link meanwhile.
pub fn ensure_resolved(
    root: BorrowedFd<'_>,
    path: &str,
    dir: bool,
) -> io::Result<(OwnedFd, String)> {
    let mut left: Vec<String> = parts(path);
    let mut done: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            done.pop();
            continue;
        }
        let parent = inside(root, &joined(&done))?;
        match statat(&parent, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => {
                make(&parent, &name, dir || !left.is_empty())?;
                done.push(name);
            }
            Err(e) => return Err(e.into()),
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let link = readlinkat(&parent, &*name, Vec::new())?;
                let link = link.to_string_lossy().into_owned();
                if link.starts_with('/') {
                    done.clear();
                }
                left.extend(parts(&link));
            }
            Ok(_) => done.push(name),
        }
    }
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(root, joined(&done), flags, Mode::empty(), how)?;
    Ok((found, format!("/{}", done.join("/"))))
}

/// The components of a path, last first.
fn parts(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .rev()
        .map(str::to_owned)
        .collect()
}

fn joined(done: &[String]) -> String {
    format!("./{}", done.join("/"))
}

fn make(parent: &OwnedFd, name: &str, dir: bool) -> io::Result<()> {
    if dir {
        return Ok(mkdirat(parent, name, Mode::from_raw_mode(0o755))?);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)?;
    Ok(())
}

/// Opens a directory of the host with `O_PATH`.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Whether two open files are reached by the same mount. Errors: the kernel does not say.
pub fn is_same_mount(one: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    let mount = |file: &OwnedFd| {
        let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        match found.stx_mask & StatxFlags::MNT_ID.bits() {
            0 => Err(io::Error::from(io::ErrorKind::Unsupported)),
            _ => Ok(found.stx_mnt_id),
        }
    };
    Ok(mount(one)? == mount(other)?)
}

/// Whether the open `file` is a directory.
pub fn is_dir(file: &OwnedFd) -> io::Result<bool> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    Ok(FileType::from_raw_mode(mode) == FileType::Directory)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("coracle-place-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("root")).unwrap();
            fs::create_dir_all(path.join("canary")).unwrap();
            Self(path)
        }

        fn root(&self) -> OwnedFd {
            open_dir(&self.0.join("root")).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn links_of_an_image_lead_nowhere_but_into_it() {
        let tree = Tree::new("links");
        let root = tree.0.join("root");
        symlink("../../../../canary", root.join("up")).unwrap();
        symlink(tree.0.join("canary"), root.join("away")).unwrap();
        symlink("/run/systemd/resolve/stub.conf", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for path in ["/up/a", "/away/b", "/../../c"] {
            ensure(tree.root().as_fd(), path, true).unwrap();
        }
        ensure(tree.root().as_fd(), "/dangling", false).unwrap();
        assert!(root.join("canary/a").is_dir());
        assert!(root.join("c").is_dir());
        assert!(root.join("run/systemd/resolve/stub.conf").is_file());
        assert_eq!(fs::read_dir(tree.0.join("canary")).unwrap().count(), 0);
        let looped = ensure(tree.root().as_fd(), "/loop/x", true).unwrap_err();
        assert_eq!(looped.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_kernel_filesystem_goes_on_an_ordinary_directory_only() {
        let tree = Tree::new("plain");
        let root = tree.0.join("root");
        symlink("etc", root.join("proc")).unwrap();
        fs::write(root.join("sys"), "").unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        for name in ["proc", "sys"] {
            let refused = plain_directory(tree.root().as_fd(), name).unwrap_err();
            assert!(
                refused.to_string().contains("ordinary directory"),
                "{refused}"
            );
        }
        plain_directory(tree.root().as_fd(), "dev").unwrap();
        assert!(root.join("dev").is_dir());
    }
}
