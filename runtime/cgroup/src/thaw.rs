//! What the v1 freezer holds for a killing, and its mark.
//!
//! Whoever kills with the freezer may die between freezing and thawing, and the kernel keeps the state. So a cgroup that is to
//! be frozen first gets an empty cgroup of its own, [`MARK`], in the freezer's hierarchy alone, which goes when it is thawed:
//! it is gone with the cgroup, and tells what we froze from what an operator has.
//! Called by: [`super::kill`]; recovery, by [`Cgroup::thaw_left`]. Invariant: without a mark nothing is thawed.
//! Not here: killing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::error::Error;
use super::files;
use super::walk;
use super::{Cgroup, LEAF_PREFIX, Layout};

/// The name of the mark.
const MARK: &str = "coracle-killing";
/// Most cgroups below a container's that are looked at; a workload may have made any number.
const MOST: usize = 4096;
/// Steps in which what is left of a cancelled exec is killed, and how long each may wait.
const STEPS: (usize, Duration) = (4, Duration::from_millis(25));

/// Marks a cgroup that is about to be frozen. That it dies is more important than the mark.
pub(super) fn mark(freezer: &Path) {
    let _ = fs::create_dir(freezer.join(MARK));
}

fn is_marked(freezer: &Path) -> bool {
    freezer.join(MARK).is_dir()
}

/// Thaws a cgroup that is being killed and those below it, as a frozen v1 process does not die of SIGKILL, and removes the
/// mark.
pub(super) fn all(freezer: &Path) -> Result<(), Error> {
    walk::each(freezer, |cgroup| {
        match cgroup.write("freezer.state", "THAWED") {
            Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            written => written,
        }
    })?;
    unmark(freezer);
    Ok(())
}

/// A mark that stays costs a look at the next start.
fn unmark(freezer: &Path) {
    let _ = fs::remove_dir(freezer.join(MARK));
}

impl Cgroup {
    /// Thaws this cgroup, and the execs in it, if a killing froze them and died before it could thaw them; ends what was
    /// killed of those execs. Returns what was thawed. Whatever somebody else has frozen stays so.
    ///
    /// Errors: the kernel refuses.
    pub fn thaw_left(&self) -> Result<Vec<String>, Error> {
        let Layout::V1(v1) = self.layout() else {
            return Ok(Vec::new());
        };
        let mut thawed = Vec::new();
        let Some(freezer) = v1.dir("freezer", self.path()) else {
            return Ok(thawed);
        };
        // Only what is marked: those below it may be frozen by the workload.
        if is_marked(&freezer) {
            files::write(&freezer.join("freezer.state"), "THAWED")?;
            unmark(&freezer);
            thawed.push(self.path().to_owned());
        }
        let entries = fs::read_dir(&freezer).into_iter().flatten().flatten();
        for entry in entries.take(MOST) {
            let name = entry.file_name();
            let Some(name) = name
                .to_str()
                .and_then(|name| name.strip_prefix(LEAF_PREFIX))
            else {
                continue;
            };
            if is_marked(&entry.path()) {
                let leaf = self.exec_leaf(name)?;
                let mut killing = leaf.killing();
                for _ in 0..STEPS.0 {
                    if killing.step(STEPS.1)? {
                        break;
                    }
                }
                drop(killing);
                // Nothing was left to freeze.
                all(&entry.path())?;
                thawed.push(leaf.path().to_owned());
            }
        }
        Ok(thawed)
    }
}
