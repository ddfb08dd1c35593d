//! An image's layers seen as overlayfs would show them: the plan for a mount, and a read-only view that needs
//! no mount.
//!
//! Place in the flow: the pull uses [`Merged`] to find the module of an image; the daemon hands
//! [`lower_dirs`] to whoever mounts, and reads an image's users by [`open_file`].
//! Invariants: a lookup never leaves the layers: each name is opened without following links; links are resolved
//! here, from the image's root; whiteouts and opaque directories are applied; each lookup and each search is
//! bounded, because the image controls directories and links.
//! Not here: mount calls, upper directories, users.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::magic::Magic;
use crate::unpack::OPAQUE;

/// Symlinks followed in one lookup, as the kernel's own limit.
const MAX_LINKS: usize = 40;
/// Directories that a search for modules descends into.
const MAX_SEARCH_DEPTH: usize = 64;
/// Entries that a search for modules looks at.
const MAX_SEARCH_ENTRIES: usize = 20_000;
/// Names that the kernel looks up for one [`Merged`]: enough for 256 layers of deep paths, about a second of work.
const MAX_LOOKUPS: u64 = 1_000_000;

/// The value of overlayfs's `lowerdir` option for these layers (lowest first), escaped as it wants it.
pub fn lower_dirs(layers: &[PathBuf]) -> Vec<u8> {
    let mut option = Vec::new();
    for layer in layers.iter().rev() {
        if !option.is_empty() {
            option.push(b':');
        }
        for byte in layer.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\' | b',') {
                option.push(b'\\');
            }
            option.push(*byte);
        }
    }
    option
}

/// The regular file that `path` names in an image of `layers` (lowest first), links followed inside the image, as an
/// overlay of them would show it. `None`: there is none, or something else. Blocking.
///
/// Errors: the disk fails; [`Error::Limit`] for a path whose lookup takes too long.
pub fn open_file(layers: &[PathBuf], path: &str) -> Result<Option<std::fs::File>, Error> {
    let found = Merged::open(layers)?.find_file(path)?;
    Ok(found.map(ImageFile::into_file))
}

/// The stacked layers of one image.
pub(crate) struct Merged<'a> {
    /// Topmost first.
    layers: Vec<(OwnedFd, &'a Path)>,
    /// Names that may still be looked up.
    lookups_left: Cell<u64>,
}

/// A regular file of an image.
pub(crate) struct ImageFile {
    /// Absolute path in the image, links resolved.
    pub guest_path: String,
    /// Its path on this node; no component below the layer is a symlink.
    pub host_path: PathBuf,
    file: OwnedFd,
}

impl ImageFile {
    /// Its type, by its first bytes.
    pub(crate) fn magic(&self) -> Result<Magic, Error> {
        let mut first = [0; 4];
        let count = rustix::io::pread(&self.file, &mut first, 0)
            .map_err(|e| Error::io("read", &self.host_path, e.into()))?;
        Ok(Magic::of(&first[..count]))
    }

    /// The file, to read it whole.
    pub(crate) fn into_file(self) -> std::fs::File {
        self.file.into()
    }
}

/// The type of a name, in the topmost layer that has it.
enum Seen {
    Nothing,
    Directory,
    Link(Vec<u8>),
    File(usize, OwnedFd),
}

impl<'a> Merged<'a> {
    /// Opens the layers, given lowest first.
    pub(crate) fn open(layers: &'a [PathBuf]) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |path: &'a PathBuf| match fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => Ok((fd, path.as_path())),
            Err(errno) => Err(Error::io("open layer", path, errno.into())),
        };
        Ok(Self {
            layers: layers.iter().rev().map(open).collect::<Result<_, _>>()?,
            lookups_left: Cell::new(MAX_LOOKUPS),
        })
    }

    /// The regular file that `path` names, links followed inside the image. `None`: there is none.
    pub(crate) fn find_file(&self, path: &str) -> Result<Option<ImageFile>, Error> {
        let mut ahead = names(path.as_bytes());
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == b".." {
                at.pop();
                continue;
            }
            at.push(name);
            match self.look(&at)? {
                Seen::Nothing => return Ok(None),
                Seen::Directory => {}
                Seen::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    at.pop();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    let mut target = names(&target);
                    target.append(&mut ahead);
                    ahead = target;
                }
                Seen::File(layer, file) if ahead.is_empty() => {
                    return Ok(Some(self.image_file(&at, layer, file)));
                }
                Seen::File(..) => return Ok(None),
            }
        }
        Ok(None)
    }

    fn image_file(&self, at: &[Vec<u8>], layer: usize, file: OwnedFd) -> ImageFile {
        let relative = at.join(&b'/');
        let host_path = self.layers[layer]
            .1
            .join(std::ffi::OsStr::from_bytes(&relative));
        ImageFile {
            guest_path: format!("/{}", String::from_utf8_lossy(&relative)),
            host_path,
            file,
        }
    }

    fn spend(&self, lookups: usize) -> Result<(), Error> {
        let left = self.lookups_left.get().checked_sub(lookups as u64);
        let left = left.ok_or_else(|| Error::Limit {
            what: "a path through the image".to_owned(),
            limit: "lookups",
            allowed: MAX_LOOKUPS,
        })?;
        self.lookups_left.set(left);
        Ok(())
    }

    /// Looks up one path whose parents are known to be directories.
    fn look(&self, at: &[Vec<u8>]) -> Result<Seen, Error> {
        let path = at.join(&b'/');
        for (index, (root, host)) in self.layers.iter().enumerate() {
            self.spend(at.len())?;
            let failed = |errno: Errno| Error::io("look into layer", host, errno.into());
            match open_beneath(root, &path, OFlags::PATH | OFlags::NOFOLLOW) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {}
                Err(errno) => return Err(failed(errno)),
                Ok(found) => {
                    let stat = fs::fstat(&found).map_err(failed)?;
                    return Ok(match FileType::from_raw_mode(stat.st_mode) {
                        FileType::Directory => Seen::Directory,
                        FileType::Symlink => Seen::Link(
                            fs::readlinkat(&found, "", Vec::new())
                                .map_err(failed)?
                                .into_bytes(),
                        ),
                        FileType::RegularFile => Seen::File(
                            index,
                            open_beneath(root, &path, OFlags::RDONLY | OFlags::NOFOLLOW)
                                .map_err(failed)?,
                        ),
                        _ => Seen::Nothing,
                    });
                }
            }
            // Each directory above is looked up from the root.
            self.spend(at.len() * at.len())?;
            if hides_below(root, at).map_err(failed)? {
                return Ok(Seen::Nothing);
            }
        }
        Ok(Seen::Nothing)
    }

    /// Up to `most` regular files whose name ends in `.wasm`, by path in the image.
    ///
    /// Errors: the disk's; Invalid for an image with more to search than is searched.
    pub(crate) fn find_modules(&self, most: usize) -> Result<Vec<ImageFile>, Error> {
        let mut found: Vec<ImageFile> = Vec::new();
        let mut left = MAX_SEARCH_ENTRIES;
        for (root, host) in &self.layers {
            let failed = |errno: Errno| Error::io("search layer", host, errno.into());
            let mut stack = vec![(0, b".".to_vec())];
            while let Some((depth, directory)) = stack.pop() {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                let opened = open_beneath(root, &directory, flags).map_err(failed)?;
                for entry in fs::Dir::new(opened).map_err(failed)? {
                    let entry = entry.map_err(failed)?;
                    let name = entry.file_name().to_bytes();
                    if matches!(name, b"." | b"..") {
                        continue;
                    }
                    left = left.checked_sub(1).ok_or_else(too_many_files)?;
                    let inner = [directory.as_slice(), name].join(&b'/');
                    if entry.file_type() == FileType::RegularFile && name.ends_with(b".wasm") {
                        self.add_module(&inner, &mut found)?;
                    } else if entry.file_type() == FileType::Directory && depth < MAX_SEARCH_DEPTH {
                        stack.push((depth + 1, inner));
                    }
                    if found.len() >= most {
                        return Ok(found);
                    }
                }
            }
        }
        found.sort_by(|a, b| a.guest_path.cmp(&b.guest_path));
        Ok(found)
    }

    /// Adds the file at `path`, unless a layer above hides it or it was added before.
    fn add_module(&self, path: &[u8], found: &mut Vec<ImageFile>) -> Result<(), Error> {
        let Ok(path) = std::str::from_utf8(path) else {
            return Ok(());
        };
        let Some(file) = self.find_file(path)? else {
            return Ok(());
        };
        if found
            .iter()
            .all(|known| known.guest_path != file.guest_path)
        {
            found.push(file);
        }
        Ok(())
    }
}

/// True if this layer has a whiteout, another file or an opaque directory on the way to `at`.
fn hides_below(root: &OwnedFd, at: &[Vec<u8>]) -> Result<bool, Errno> {
    for length in 0..=at.len() {
        let path = if length == 0 {
            b".".to_vec()
        } else {
            at[..length].join(&b'/')
        };
        let found = match open_beneath(root, &path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(false),
            other => other?,
        };
        let stat = fs::statat(&found, "", AtFlags::EMPTY_PATH)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(true);
        }
        let readable = open_beneath(root, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut value = [0; 8];
        match fs::fgetxattr(&readable, OPAQUE, &mut value) {
            Ok(count) if &value[..count] == b"y" => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}

fn too_many_files() -> Error {
    let problem = format!("it holds more than {MAX_SEARCH_ENTRIES} files to search for a module");
    Error::invalid("image without entrypoint", problem)
}

fn open_beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
        // A symlink on the way: this layer has replaced the directory.
        Err(Errno::LOOP) => Err(Errno::NOTDIR),
        other => other,
    }
}

fn names(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .map(<[u8]>::to_vec)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Three layers, lowest first, with all that can hide something.
    fn layers(name: &str) -> (Scratch, Vec<PathBuf>) {
        let root =
            std::env::temp_dir().join(format!("images-merged-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let scratch = Scratch(root.clone());
        let layers: Vec<PathBuf> = (0..3).map(|index| root.join(index.to_string())).collect();
        let put = |layer: usize, path: &str, data: &str| {
            let path = layers[layer].join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        };
        put(0, "app/a.wasm", "\0asm low");
        put(0, "app/gone.wasm", "\0asm");
        put(0, "opaque/low.wasm", "\0asm");
        put(0, "shadow/x.wasm", "\0asm");
        put(0, "text", "hello");
        put(1, "app/a.wasm", "\0asm high");
        put(1, "opaque/high", "x");
        put(1, "shadow", "a file now");
        put(2, "top", "\x7fELF");
        let whiteout = layers[1].join("app/gone.wasm");
        rustix::fs::mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        rustix::fs::setxattr(layers[1].join("opaque"), OPAQUE, b"y", fs_flags()).unwrap();
        symlink("/app", layers[2].join("abs")).unwrap();
        symlink("../../../../../../app/a.wasm", layers[2].join("rel")).unwrap();
        symlink("loop", layers[2].join("loop")).unwrap();
        symlink(layers[0].join("text"), layers[2].join("host")).unwrap();
        (scratch, layers)
    }

    fn fs_flags() -> rustix::fs::XattrFlags {
        rustix::fs::XattrFlags::empty()
    }

    #[test]
    fn lookups_see_what_an_overlay_shows() {
        let (_scratch, layers) = layers("look");
        let merged = Merged::open(&layers).unwrap();
        let find = |path: &str| merged.find_file(path).unwrap().map(|file| file.host_path);
        let high = Some(layers[1].join("app/a.wasm"));
        for path in [
            "/app/a.wasm",
            "app/a.wasm",
            "/abs/a.wasm",
            "/rel",
            "//app/./a.wasm",
            "/../app/x/../a.wasm",
        ] {
            let expected = if path.contains("x/..") {
                None
            } else {
                high.clone()
            };
            assert_eq!(find(path), expected, "{path}");
        }
        assert_eq!(find("/text"), Some(layers[0].join("text")));
        assert_eq!(
            merged.find_file("/top").unwrap().unwrap().magic().unwrap(),
            Magic::Elf
        );
        for path in [
            "/app/gone.wasm",
            "/opaque/low.wasm",
            "/shadow/x.wasm",
            "/loop",
            "/host",
            "/app",
            "/",
            "",
            "/text/x",
        ] {
            assert_eq!(find(path), None, "{path}");
        }
        assert_eq!(find(&format!("/{}", "n".repeat(300))), None);
    }

    #[test]
    fn the_mount_plan_is_topmost_first_and_escaped() {
        let plan = lower_dirs(&[PathBuf::from("/a"), PathBuf::from("/b:c,d")]);
        assert_eq!(plan, br"/b\:c\,d:/a");
    }

    #[test]
    fn the_search_for_modules_respects_whiteouts() {
        let (_scratch, layers) = layers("search");
        let found = Merged::open(&layers).unwrap().find_modules(9).unwrap();
        let names: Vec<&str> = found.iter().map(|file| file.guest_path.as_str()).collect();
        assert_eq!(names, ["/app/a.wasm"]);
        assert_eq!(found[0].host_path, layers[1].join("app/a.wasm"));
    }

    #[test]
    fn lookups_and_searches_are_bounded() {
        let (scratch, layers) = layers("bounds");
        let deep = "d/".repeat(250);
        for layer in &layers {
            fs::create_dir_all(layer.join(&deep)).unwrap();
        }
        symlink(
            format!("/{deep}{}", "../".repeat(250)),
            layers[0].join("back"),
        )
        .unwrap();
        let climbing = "back/".repeat(39) + "text";
        let refused = open_file(&layers, &climbing).unwrap_err();
        assert!(matches!(refused, Error::Limit { .. }), "{refused}");
        assert!(open_file(&layers, &format!("{deep}x")).unwrap().is_none());
        let wide = scratch.0.join("wide");
        fs::create_dir(&wide).unwrap();
        for number in 0..=MAX_SEARCH_ENTRIES {
            fs::write(wide.join(number.to_string()), "").unwrap();
        }
        let many = [wide];
        let refused = Merged::open(&many).unwrap().find_modules(9);
        assert!(refused.is_err_and(|error| error.to_string().contains("20000 files")));
    }

    #[test]
    fn another_program_of_the_image_is_found_by_argv0() {
        let (_scratch, layers) = layers("argv0");
        let image = crate::image::WasmImage {
            module: crate::reference::Digest::of(b""),
            module_path: PathBuf::new(),
            layers: layers.clone(),
            guest_path: None,
            working_dir: "/app".to_owned(),
        };
        let high = Some(layers[1].join("app/a.wasm"));
        assert_eq!(image.module_for("a.wasm").unwrap(), high);
        assert_eq!(image.module_for("/rel").unwrap(), high);
        assert_eq!(image.module_for("/text").unwrap(), None, "not a module");
        assert_eq!(image.module_for("/none").unwrap(), None);
        assert_eq!(image.module_for("").unwrap(), None);
    }
}
