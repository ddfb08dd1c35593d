//! `[cdi]`: where the specifications of devices lie.
//!
//! Called by: [`super::file`] and [`super::check`], for this table. Invariant: every directory is absolute.
//! Must not know: what a specification is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::directory;
use super::values::{Invalid, invalid};

/// Most directories.
const MOST: usize = 16;

/// `[cdi]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CdiFile {
    /// Directories of specifications; the later one wins.
    pub spec_dirs: Vec<PathBuf>,
}

impl Default for CdiFile {
    fn default() -> Self {
        Self {
            spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}

/// Devices by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cdi {
    /// Directories of specifications; the later one wins. Absolute; may be absent.
    pub spec_dirs: Vec<PathBuf>,
}

/// Checks the table.
pub(super) fn check(file: &CdiFile) -> Result<Cdi, Invalid> {
    let key = "cdi.spec_dirs";
    if file.spec_dirs.len() > MOST {
        let why = format!("has {} directories, at most {MOST}", file.spec_dirs.len());
        return invalid(key, why);
    }
    let checked = file.spec_dirs.iter().map(|path| directory(key, path));
    Ok(Cdi {
        spec_dirs: checked.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn directories_are_absolute_and_few() {
        let with = |spec_dirs: Vec<PathBuf>| check(&CdiFile { spec_dirs });
        assert_eq!(with(Vec::new()).unwrap().spec_dirs, Vec::<PathBuf>::new());
        assert_eq!(check(&CdiFile::default()).unwrap().spec_dirs.len(), 2);
        for refused in [
            vec!["etc/cdi".into()],
            vec!["/etc/../cdi".into()],
            vec!["/etc/cdi".into(); MOST + 1],
        ] {
            assert_eq!(with(refused).unwrap_err().key, "cdi.spec_dirs");
        }
    }
}
