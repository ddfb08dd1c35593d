//! Checks that the mount of a host path can have the propagation that its mount in a container requests.
//!
//! Called by: [`super::mounts`]. Source: mount_namespaces(7), proc(5) on mountinfo; rule and error texts are
//! containerd's.
//! Invariant: a propagation that the kernel would silently drop is refused. Must not know: mounting.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use coracle_lifecycle::Propagation;

/// Checks the mount that contains `path`. Errors: what is wrong, as the rest of a sentence.
pub(super) fn check(path: &Path, requested: Propagation) -> Result<(), String> {
    if requested == Propagation::Private {
        return Ok(());
    }
    let cannot = |error: std::io::Error| format!("its mount cannot be looked up: {error}");
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID);
    let id = stat.map_err(|errno| cannot(errno.into()))?.stx_mnt_id;
    let table = std::fs::read("/proc/self/mountinfo").map_err(cannot)?;
    check_mount(&String::from_utf8_lossy(&table), id, path, requested)
}

fn check_mount(table: &str, id: u64, path: &Path, requested: Propagation) -> Result<(), String> {
    let id = id.to_string();
    let line = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&id.as_str()));
    let Some(fields) = line else {
        return Err("its mount is not in this process's mount table".to_owned());
    };
    let mounted_on = fields.get(4).copied().unwrap_or_default();
    let tags = fields.iter().skip(6).take_while(|field| **field != "-");
    let (mut is_shared, mut is_slave) = (false, false);
    for tag in tags {
        is_shared |= tag.starts_with("shared:");
        is_slave |= tag.starts_with("master:");
    }
    let path = path.display();
    match requested {
        Propagation::Bidirectional if !is_shared => Err(format!(
            "path {path} is mounted on {mounted_on} but it is not a shared mount"
        )),
        Propagation::HostToContainer if !is_shared && !is_slave => Err(format!(
            "path {path} is mounted on {mounted_on} but it is not a shared or slave mount"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:5 / /shared rw shared:7 - tmpfs t rw
23 21 0:6 / /slave rw master:7 - tmpfs t rw
24 21 0:6 / /both rw shared:9 master:7 - tmpfs t rw
25 21 0:6 / /odd rw unbindable - tmpfs shared:1 rw
";

    #[test]
    fn rslave_needs_a_shared_or_slave_mount_and_rshared_a_shared_one() {
        let (down, both) = (Propagation::HostToContainer, Propagation::Bidirectional);
        for (id, requested, good) in [
            (21, down, false),
            (21, both, false),
            (22, down, true),
            (22, both, true),
            (23, down, true),
            (23, both, false),
            (24, down, true),
            (24, both, true),
            (25, down, false),
            (25, both, false),
            (99, down, false),
        ] {
            let judged = check_mount(TABLE, id, Path::new("/p"), requested);
            assert_eq!(judged.is_ok(), good, "{id} {requested:?}: {judged:?}");
        }
        let text = check_mount(TABLE, 23, Path::new("/slave/x"), both);
        assert_eq!(
            text,
            Err("path /slave/x is mounted on /slave but it is not a shared mount".to_owned())
        );
    }

    #[test]
    fn the_mount_of_a_path_is_found() {
        assert_eq!(check(Path::new("/proc"), Propagation::Private), Ok(()));
        let judged = check(Path::new("/proc/self"), Propagation::Bidirectional);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let line = table.lines().rfind(|line| line.contains(" /proc "));
        let is_shared = line.is_some_and(|line| line.contains(" shared:"));
        assert_eq!(judged.is_ok(), is_shared, "{judged:?}");
    }
}
