//! `[cdi]`: where the specifications of devices lie, and which programs they may have run.
//!
//! Called by: [`super::file`] and [`super::check`], for this table. Invariant: every path is absolute.
//! Must not know: what a specification is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{Invalid, directory, invalid, plain_absolute};

/// Most directories, and most programs.
const MOST: usize = 16;

/// `[cdi]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CdiFile {
    /// Directories of specifications; the later one wins.
    pub spec_dirs: Vec<PathBuf>,
    /// Programs that specifications may have run inside of containers.
    pub hooks: Vec<PathBuf>,
    /// Programs that specifications may have run on the node.
    pub node_hooks: Vec<PathBuf>,
}

impl Default for CdiFile {
    fn default() -> Self {
        Self {
            spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            hooks: Vec::new(),
            node_hooks: Vec::new(),
        }
    }
}

/// Devices by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cdi {
    /// Directories of specifications; the later one wins. Absolute; may be absent.
    pub spec_dirs: Vec<PathBuf>,
    /// Programs that specifications may have run inside of containers. Absolute.
    pub hooks: Vec<PathBuf>,
    /// Programs that specifications may have run on the node. Absolute.
    pub node_hooks: Vec<PathBuf>,
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
        hooks: programs("cdi.hooks", &file.hooks)?,
        node_hooks: programs("cdi.node_hooks", &file.node_hooks)?,
    })
}

fn programs(key: &'static str, paths: &[PathBuf]) -> Result<Vec<PathBuf>, Invalid> {
    if paths.len() > MOST {
        let why = format!("has {} programs, at most {MOST}", paths.len());
        return invalid(key, why);
    }
    let plain = |path: &PathBuf| match plain_absolute(path) {
        Some(path) => Ok(path),
        None => invalid(
            key,
            format!("has {path:?}, must be absolute paths of programs without `..`"),
        ),
    };
    paths.iter().map(plain).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn directories_are_absolute_and_few() {
        let with = |spec_dirs: Vec<PathBuf>| {
            check(&CdiFile {
                spec_dirs,
                ..CdiFile::default()
            })
        };
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

    #[test]
    fn hooks_are_absolute_paths_and_few() {
        let with = |hooks: Vec<PathBuf>| {
            check(&CdiFile {
                hooks,
                ..CdiFile::default()
            })
        };
        let on_node = |node_hooks: Vec<PathBuf>| {
            check(&CdiFile {
                node_hooks,
                ..CdiFile::default()
            })
        };
        let listed = with(vec!["/usr/bin/h".into()]).unwrap();
        assert_eq!((listed.hooks.len(), listed.node_hooks.len()), (1, 0));
        let listed = on_node(vec!["/usr/bin/h".into()]).unwrap();
        assert_eq!((listed.hooks.len(), listed.node_hooks.len()), (0, 1));
        for refused in [
            vec!["h".into()],
            vec!["/usr/../h".into()],
            vec!["/h".into(); MOST + 1],
        ] {
            assert_eq!(with(refused.clone()).unwrap_err().key, "cdi.hooks");
            assert_eq!(on_node(refused).unwrap_err().key, "cdi.node_hooks");
        }
    }
}
