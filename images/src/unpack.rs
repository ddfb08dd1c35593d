//! Unpacks layers, each in a jailed process of its own (the unpacker), and checks the result.
//!
//! Called by: the pull, for a blob whose digest is verified, with a temporary directory that it renames on success; and by
//! the import, for an archive of images, whose files it then reads.
//! Invariants: no byte of a layer is decompressed or parsed in this process; the unpacker has ended before its output
//! is used; its verdict affects this pull alone, and its numbers are not believed where there is more than they say.
//! Not here: archives (`coracle-unpack`), the process and its jail (the daemon's runtime), where layers are kept.

mod files;
mod measure;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use coracle_unpack::{
    Bounds, Compression, INODE_BYTES, IoOperation, Job, Limit, Unpacked, Verdict,
};
use futures_util::future::BoxFuture;

use crate::blocking::{blocking, supervising};
use crate::config::Limits;
use crate::error::{Cause, Error};
use crate::reference::Digest;
use crate::tenants::OPERATOR;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use coracle_unpack::fuzzing::{list, unpack_here};

use files::Files;
pub(crate) use files::compression_of;

pub(crate) use coracle_unpack::{OPAQUE, RATIO_FLOOR_BYTES};
pub(crate) use measure::measure;

/// Uncompressed bytes per second of CPU time that an unpacker gets; far below the speed of any machine.
const BYTES_A_SECOND: u64 = 16 << 20;
/// Minimum CPU time of a layer. Seconds.
const LEAST_CPU_S: u64 = 60;
/// What a small blob may unpack to in any case. Bytes.
const LEAST_BYTES: u64 = 64 << 20;
/// Wall-clock time of an unpacker, as a multiple of its CPU time: the disk may be slow and the node busy.
const PATIENCE: u32 = 10;

/// Starts unpackers. Implemented by the daemon, which builds the jail.
pub trait UnpackerLauncher: Send + Sync {
    /// Waits until an unpacker may run and starts it.
    ///
    /// Errors: it cannot be started.
    fn start(
        &self,
        unpacker: Unpacker,
    ) -> BoxFuture<'static, Result<Box<dyn RunningUnpacker>, Cause>>;
}

/// An unpacker that was started; dropping it kills it.
pub trait RunningUnpacker: Send {
    /// Waits for its end, after its verdict or without one; kills it if it lingers.
    ///
    /// Errors: how it ended, if not well.
    fn end(self: Box<Self>) -> BoxFuture<'static, Result<(), Cause>>;
}

/// What an unpacker gets; it calls [`coracle_unpack::serve`] with it.
#[derive(Debug)]
pub struct Unpacker {
    /// The blob, readable.
    pub blob: OwnedFd,
    /// The directory that it fills.
    pub directory: OwnedFd,
    /// The socket on which it finds its job.
    pub socket: OwnedFd,
    /// CPU time that it may take. Seconds.
    pub cpu_s: u64,
    /// The largest file that it may write. Bytes.
    pub file_bytes: u64,
    /// For whom it is: unpackers wait for their turns by this.
    pub tenant: String,
}

/// The remaining budget of an image; shared by its layers.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    tenant: String,
    bytes_left: u64,
    entries_left: u64,
}

impl Budget {
    /// That of an image of `tenant`.
    pub(crate) fn new(limits: &Limits, tenant: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            bytes_left: limits.max_unpacked_bytes,
            entries_left: limits.max_entries,
            limits: limits.clone(),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            bytes: self.bytes_left,
            entries: self.entries_left,
            ratio: self.limits.max_ratio,
            path_bytes: self.limits.max_path_bytes,
            path_depth: self.limits.max_path_depth,
            zstd_window_log: self.limits.max_zstd_window_log,
        }
    }

    /// What an unpacker gets that unpacks `blob` into `directory` and has its job from `socket`.
    fn unpacker(
        &self,
        blob: File,
        packed_bytes: u64,
        directory: OwnedFd,
        socket: OwnedFd,
    ) -> Unpacker {
        Unpacker {
            blob: blob.into(),
            directory,
            socket,
            cpu_s: self.cpu_s(packed_bytes),
            file_bytes: self.bytes_left,
            tenant: self.tenant.clone(),
        }
    }

    /// The CPU time for a blob of `packed_bytes`: for those, and for what it may unpack to. Seconds.
    fn cpu_s(&self, packed_bytes: u64) -> u64 {
        let most = packed_bytes
            .saturating_mul(self.limits.max_ratio)
            .max(LEAST_BYTES);
        let bytes = most.min(self.bytes_left).saturating_add(packed_bytes);
        LEAST_CPU_S + bytes / BYTES_A_SECOND
    }
}

/// One layer to unpack.
pub(crate) struct Source<'a> {
    /// The blob's file.
    pub path: &'a Path,
    pub digest: &'a Digest,
    pub media_type: &'a str,
    /// The digest of the uncompressed archive.
    pub diff_id: &'a Digest,
}

/// What an unpacked layer occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Unpacks `source` into the existing, empty directory `into`.
///
/// Dropping the future kills the unpacker. On any error `into` holds part of the layer; the caller removes it. Returns what
/// it occupies, and what stands for its tree.
pub(crate) async fn unpack(
    launcher: &dyn UnpackerLauncher,
    source: &Source<'_>,
    into: &Path,
    budget: &mut Budget,
) -> Result<(Usage, u64), Error> {
    let files = Files::of_layer(source.path, source.compression()?, into);
    let packed = Packed {
        what: source.what(),
        path: source.path,
    };
    let (unpacked, tree) = run(launcher, &packed, files.await?, into, budget).await?;
    source.check(&unpacked)?;
    budget.bytes_left = budget.bytes_left.saturating_sub(unpacked.archive_bytes);
    budget.entries_left = budget.entries_left.saturating_sub(unpacked.entries);
    let usage = Usage {
        bytes: unpacked.bytes,
        inodes: unpacked.inodes,
    };
    Ok((usage, tree))
}

/// Unpacks `archive`, a tar of any compression that an unpacker knows, into the existing, empty directory `into`, within
/// the limits of one image. `path` names it in errors.
///
/// Dropping the future kills the unpacker. On any error `into` holds part of the archive; the caller removes it.
pub(crate) async fn unpack_archive(
    launcher: &dyn UnpackerLauncher,
    archive: File,
    path: &Path,
    into: &Path,
    limits: &Limits,
) -> Result<(), Error> {
    let files = Files::of_archive(archive, path, into);
    let packed = Packed {
        what: format!("archive {}", path.display()),
        path,
    };
    let budget = Budget::new(limits, OPERATOR);
    run(launcher, &packed, files.await?, into, &budget).await?;
    Ok(())
}

/// A file to unpack.
struct Packed<'a> {
    /// For messages.
    what: String,
    path: &'a Path,
}

/// Runs one unpacker to its end. Returns what stands for the tree, too. Errors: its verdict, if it is not that all was unpacked.
async fn run(
    launcher: &dyn UnpackerLauncher,
    packed: &Packed<'_>,
    files: Files,
    into: &Path,
    budget: &Budget,
) -> Result<(Unpacked, u64), Error> {
    let failed = |error| Error::io("unpack into", into, error);
    let job = Job {
        compression: files.compression,
        packed_bytes: files.packed_bytes,
        bounds: budget.bounds(),
    };
    let (ours, socket) = coracle_unpack::begin(&job).map_err(failed)?;
    let directory = files.directory;
    let own = directory.try_clone().map_err(failed)?;
    let unpacker = budget.unpacker(files.blob, job.packed_bytes, own, socket);
    let allowed = Duration::from_secs(unpacker.cpu_s) * PATIENCE;
    let died = |cause: Cause| Error::Unpacker {
        what: packed.what.clone(),
        problem: cause.to_string(),
    };
    let running = launcher.start(unpacker).await.map_err(died)?;
    let most = budget.entries_left;
    let verdict = verdict(ours, directory, most, allowed, died).await?;
    let ended = running.end().await;
    match (verdict, ended) {
        (Ok(Verdict::Unpacked(unpacked)), _) => {
            let unpacked = plausible(unpacked, &job.bounds).map_err(&died)?;
            let (tree, bounds) = (into.to_owned(), job.bounds);
            let measured = blocking("measuring a layer", move || {
                let opened = File::open(&tree).map_err(|error| Error::io("open", &tree, error))?;
                Ok(corrected(unpacked, &opened.into(), &bounds))
            });
            measured.await?.map_err(died)
        }
        (Ok(refused), _) => Err(packed.refused(refused, into, &budget.limits)),
        (Err(_), Err(cause)) => Err(died(cause)),
        (Err(error), Ok(())) => Err(failed(error)),
    }
}

/// What an unpacker reports, or more where it has written more than that; and what stands for the tree. Blocks.
///
/// Errors: it has written more than a job with `bounds` can have; what it has written cannot be read.
fn corrected(
    unpacked: Unpacked,
    tree: &OwnedFd,
    bounds: &Bounds,
) -> Result<(Unpacked, u64), Cause> {
    let measured = measure(tree, bounds.entries)?;
    let measured = measured.filter(|measured| measured.bytes <= bounds.bytes);
    let Some(measured) = measured else {
        let problem = format!(
            "it reports {} bytes of {} entries, has written more than its job allows: {} entries in {} bytes",
            unpacked.archive_bytes, unpacked.entries, bounds.entries, bounds.bytes
        );
        return Err(problem.into());
    };
    let bytes = measured
        .bytes
        .saturating_add(measured.inodes.saturating_mul(INODE_BYTES));
    let corrected = Unpacked {
        bytes: unpacked.bytes.max(bytes),
        inodes: unpacked.inodes.max(measured.inodes),
        archive_bytes: unpacked.archive_bytes.max(measured.bytes),
        entries: unpacked.entries.max(measured.names),
        ..unpacked
    };
    Ok((corrected, measured.tree))
}

/// What an unpacker reports, if a job with `bounds` can have given it. Errors: it cannot.
fn plausible(unpacked: Unpacked, bounds: &Bounds) -> Result<Unpacked, Cause> {
    let Unpacked {
        bytes,
        inodes,
        archive_bytes,
        entries,
        ..
    } = unpacked;
    // The directory of the layer itself has no entry.
    let most_inodes = entries.saturating_add(1);
    let most_bytes = archive_bytes.saturating_add(most_inodes.saturating_mul(INODE_BYTES));
    let fits = archive_bytes <= bounds.bytes && entries <= bounds.entries;
    if fits && inodes <= most_inodes && bytes <= most_bytes {
        return Ok(unpacked);
    }
    let problem = format!(
        "it reports {bytes} bytes and {inodes} inodes of {entries} entries in {archive_bytes} bytes, and its job allows {} entries in {} bytes",
        bounds.entries, bounds.bytes
    );
    Err(problem.into())
}

/// Waits for the verdict of an unpacker that runs, at most for `allowed`. Errors: it is too slow; the daemon ends.
async fn verdict(
    ours: OwnedFd,
    directory: OwnedFd,
    most: u64,
    allowed: Duration,
    died: impl Fn(Cause) -> Error,
) -> Result<std::io::Result<Verdict>, Error> {
    let supervise = move || coracle_unpack::supervise(&ours, &directory, most);
    let verdict = supervising("unpacking a layer", move || Ok(supervise()));
    // The caller then drops what runs: that ends it, and with it the supervision.
    let Ok(verdict) = tokio::time::timeout(allowed, verdict).await else {
        let allowed = allowed.as_secs();
        let problem =
            format!("not unpacked within {allowed} s: the disk is slow, or the node busy");
        return Err(died(problem.into()));
    };
    verdict
}

impl Source<'_> {
    fn what(&self) -> String {
        format!("layer {}", self.digest)
    }

    /// The job for its unpacker; the blob has `packed_bytes`. Errors: the layer's media type is unknown.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn job(&self, packed_bytes: u64, budget: &Budget) -> Result<Job, Error> {
        Ok(Job {
            compression: self.compression()?,
            packed_bytes,
            bounds: budget.bounds(),
        })
    }

    /// The one place that knows layer media types.
    fn compression(&self) -> Result<Compression, Error> {
        let media_type = self.media_type;
        let family = media_type.starts_with("application/vnd.oci.image.layer.")
            || media_type.starts_with("application/vnd.docker.image.rootfs.");
        match media_type.rsplit(['.', '+']).next() {
            Some("gzip") if family => Ok(Compression::Gzip),
            Some("zstd") if family => Ok(Compression::Zstd),
            Some("tar") if family => Ok(Compression::None),
            _ => {
                let problem = format!("media type {media_type:?} is not a tar, gzip or zstd layer");
                Err(Error::invalid(self.what(), problem))
            }
        }
    }

    /// The archive is the one that the image's config names.
    fn check(&self, unpacked: &Unpacked) -> Result<(), Error> {
        let got: Result<Digest, _> = format!("sha256:{}", unpacked.digest).parse();
        let got = got.map_err(|_| Error::invalid(self.what(), "its unpacker gave no digest"))?;
        if got == *self.diff_id {
            return Ok(());
        }
        Err(Error::DigestMismatch {
            what: format!("uncompressed layer {}", self.digest),
            want: self.diff_id.clone(),
            got,
        })
    }
}

impl Packed<'_> {
    fn refused(&self, verdict: Verdict, into: &Path, limits: &Limits) -> Error {
        let (limit, allowed) = match verdict {
            Verdict::Limit(Limit::Bytes) => ("max_unpacked_bytes", limits.max_unpacked_bytes),
            Verdict::Limit(Limit::Entries) => ("max_entries", limits.max_entries),
            Verdict::Limit(Limit::Ratio) => ("max_ratio", limits.max_ratio),
            Verdict::Limit(Limit::PathBytes) => ("max_path_bytes", limits.max_path_bytes),
            Verdict::Limit(Limit::PathDepth) => ("max_path_depth", limits.max_path_depth),
            Verdict::Io(doing, errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                return match doing {
                    IoOperation::Read => Error::io("read", self.path, error),
                    IoOperation::Write => Error::io("unpack into", into, error),
                };
            }
            Verdict::Invalid(problem) => return Error::invalid(self.what.as_str(), problem),
            Verdict::Unpacked(_) => return Error::invalid(self.what.as_str(), "it was unpacked"),
        };
        Error::Limit {
            what: self.what.clone(),
            limit,
            allowed,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;

    #[test]
    fn a_small_blob_gets_little_cpu_time_and_the_largest_enough() {
        let budget = Budget::new(&Limits::default(), "");
        assert_eq!(budget.cpu_s(1000), 60 + 4);
        // 200 MiB and what they may unpack to at most.
        assert_eq!(budget.cpu_s(1 << 20), 60 + (201 << 20) / (16 << 20));
        assert_eq!(budget.cpu_s(8 << 30), 60 + (40 << 30) / (16 << 20));
    }

    #[test]
    fn media_types_of_layers_are_known_and_no_others() {
        let digest = Digest::of(b"");
        let of = |media_type: &str| {
            let source = Source {
                path: Path::new("/"),
                digest: &digest,
                media_type,
                diff_id: &digest,
            };
            source.compression().ok()
        };
        let oci = "application/vnd.oci.image.layer.v1.tar";
        let docker = "application/vnd.docker.image.rootfs.diff.tar";
        assert_eq!(of(oci), Some(Compression::None));
        assert_eq!(of(&format!("{oci}+gzip")), Some(Compression::Gzip));
        assert_eq!(of(&format!("{oci}+zstd")), Some(Compression::Zstd));
        assert_eq!(of(&format!("{docker}.gzip")), Some(Compression::Gzip));
        let others = ["application/octet-stream", "application/gzip", ""];
        for other in others
            .map(str::to_owned)
            .into_iter()
            .chain([format!("{oci}+xz")])
        {
            assert_eq!(of(&other), None, "{other}");
        }
    }
    /// Reports what it is told to, as one that its layer has taken over.
    struct Liar(Verdict);

    struct Gone;

    impl RunningUnpacker for Gone {
        fn end(self: Box<Self>) -> BoxFuture<'static, Result<(), Cause>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    impl UnpackerLauncher for Liar {
        fn start(
            &self,
            unpacker: Unpacker,
        ) -> BoxFuture<'static, Result<Box<dyn RunningUnpacker>, Cause>> {
            let verdict = serde_json::to_vec(&self.0).unwrap();
            let mut job = [0; 8192];
            let flags = rustix::net::RecvFlags::empty();
            rustix::net::recv(&unpacker.socket, &mut job, flags).unwrap();
            let flags = rustix::net::SendFlags::empty();
            rustix::net::send(&unpacker.socket, &verdict, flags).unwrap();
            let gone: Box<dyn RunningUnpacker> = Box::new(Gone);
            Box::pin(std::future::ready(Ok(gone)))
        }
    }

    /// An uncompressed layer.
    fn archive<'a>(path: &'a Path, digest: &'a Digest) -> Source<'a> {
        Source {
            path,
            digest,
            media_type: "application/vnd.oci.image.layer.v1.tar",
            diff_id: digest,
        }
    }

    #[tokio::test]
    async fn numbers_that_no_unpacker_can_have_are_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let blob = directory.path().join("blob");
        std::fs::write(&blob, "blob").unwrap();
        let digest = Digest::of(b"");
        let source = archive(&blob, &digest);
        let honest = Unpacked {
            digest: digest.hex().to_owned(),
            bytes: 1000 + 2 * 512,
            inodes: 2,
            archive_bytes: 10_240,
            entries: 1,
        };
        let lies: [fn(&mut Unpacked); 5] = [
            |lie| lie.bytes = u64::MAX,
            |lie| lie.bytes = 10_240 + 2 * 512 + 1,
            |lie| lie.inodes = 3,
            |lie| lie.entries = 2_000_001,
            |lie| lie.archive_bytes = (32 << 30) + 1,
        ];
        let unpack = async |unpacked: Unpacked| {
            let liar = Liar(Verdict::Unpacked(unpacked));
            let mut budget = Budget::new(&Limits::default(), "");
            super::unpack(&liar, &source, directory.path(), &mut budget).await
        };
        let (usage, _) = unpack(honest.clone()).await.unwrap();
        assert_eq!((usage.bytes, usage.inodes), (2024, 2));
        for lie in lies {
            let mut unpacked = honest.clone();
            lie(&mut unpacked);
            let refused = unpack(unpacked).await.unwrap_err();
            assert!(refused.to_string().contains("it reports"), "{refused}");
        }
    }

    #[tokio::test]
    async fn what_was_written_counts_whatever_its_unpacker_reports() {
        let scratch = tempfile::tempdir().unwrap();
        let (blob, tree) = (scratch.path().join("blob"), scratch.path().join("tree"));
        std::fs::write(&blob, "blob").unwrap();
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::write(tree.join("a/b/c/large"), vec![1; 1 << 20]).unwrap();
        let digest = Digest::of(b"");
        let source = archive(&blob, &digest);
        let low = Unpacked {
            digest: digest.hex().to_owned(),
            bytes: 512,
            inodes: 1,
            archive_bytes: 1024,
            entries: 0,
        };
        let liar = Liar(Verdict::Unpacked(low));
        let unpack = async |limits: &Limits| {
            let mut budget = Budget::new(limits, "");
            let unpacked = super::unpack(&liar, &source, &tree, &mut budget).await;
            unpacked.map(|(usage, _)| (usage, budget.entries_left, budget.bytes_left))
        };
        let enough = Limits {
            max_entries: 4,
            max_unpacked_bytes: 1 << 20,
            ..Limits::default()
        };
        let (usage, entries, bytes) = unpack(&enough).await.unwrap();
        assert_eq!((usage.bytes, usage.inodes), ((1 << 20) + 5 * 512, 5));
        assert_eq!(
            (entries, bytes),
            (0, 0),
            "the next layers of the image have the rest"
        );
        let few = Limits {
            max_entries: 3,
            ..enough.clone()
        };
        let short = Limits {
            max_unpacked_bytes: (1 << 20) - 1,
            ..enough
        };
        for limits in [few, short] {
            let refused = unpack(&limits).await.unwrap_err().to_string();
            assert!(
                refused.contains("has written more than its job allows"),
                "{refused}"
            );
        }
    }
}
