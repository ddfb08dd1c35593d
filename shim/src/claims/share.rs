//! A share of the node's pairs of SELinux categories, so that pods of two daemons never have the same pair.
//!
//! Called by: [`super::Claims::take`]. Invariants: a daemon that starts again gets the share that it had when it left
//! pods; a share is free when its last daemon has ended and left none.
//! Must not know: which pairs a share contains.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_host::CATEGORY_SHARES;

use super::file::{Claimer, open, read};
use super::resources::Resource;
use super::{Error, claim};

const KIND: &str = "selinux-categories";

/// A claimed share.
pub(super) struct Share {
    /// Its number, from zero.
    pub number: u32,
    pub path: PathBuf,
    pub file: File,
}

/// Claims the share that `own` had, else the first free one; `None` when all are taken.
///
/// Errors: the disk.
pub(super) fn claim_one(claims: &Path, own: &Claimer) -> Result<Option<Share>, Error> {
    let mut order: Vec<u32> = (0..CATEGORY_SHARES).collect();
    order.sort_by_key(|number| !was_ours(claims, *number, own));
    for number in order {
        let resource = resource(number);
        let path = claims.join(resource.file());
        match claim(&path, &resource, own, Duration::ZERO) {
            Ok(file) => return Ok(Some(Share { number, path, file })),
            Err(Error::Held { .. } | Error::InUse { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn resource(number: u32) -> Resource {
    Resource {
        kind: KIND,
        value: number.to_string(),
        what: format!("share {number} of the SELinux categories"),
        hint: "another share is taken",
        outlives_daemon: true,
    }
}

fn was_ours(claims: &Path, number: u32, own: &Claimer) -> bool {
    let path = claims.join(resource(number).file());
    if !path.exists() {
        return false;
    }
    let known = open(&path).and_then(|mut file| read(&mut file, &path));
    matches!(known, Ok(Some(known)) if known.instance == own.instance)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;

    use super::*;
    use crate::scratch::Scratch;

    fn claimer(dir: &Scratch, name: &str) -> Claimer {
        let root = dir.0.join(name);
        fs::create_dir_all(root.join("pods")).unwrap();
        Claimer {
            instance: name.to_owned(),
            root,
            pid: 1,
        }
    }

    #[test]
    fn daemons_have_different_shares_and_keep_them_while_they_have_pods() {
        let _alone = crate::forking::held();
        let dir = Scratch::new("claims-share");
        let claims = dir.0.join("claims");
        fs::create_dir_all(&claims).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| claimer(&dir, name));
        let take = |who: &Claimer| claim_one(&claims, who).unwrap().unwrap();
        let (of_a, of_b) = (take(&a), take(&b));
        assert_eq!([of_a.number, of_b.number], [0, 1]);
        // Without their daemons, one with a pod and one without.
        fs::create_dir(b.root.join("pods/pod")).unwrap();
        drop((of_a, of_b));
        let of_c = take(&c);
        assert_eq!(of_c.number, 0);
        let of_a = take(&a);
        assert_eq!([take(&b).number, of_a.number], [1, 2]);
    }

    #[test]
    fn without_a_free_share_there_is_none() {
        let _alone = crate::forking::held();
        let dir = Scratch::new("claims-shares");
        let claims = dir.0.join("claims");
        fs::create_dir_all(&claims).unwrap();
        let mut held = Vec::new();
        for number in 0..CATEGORY_SHARES {
            let own = claimer(&dir, &format!("root{number}"));
            held.push(claim_one(&claims, &own).unwrap().unwrap());
        }
        let more = claimer(&dir, "more");
        assert!(claim_one(&claims, &more).unwrap().is_none());
        drop(held.remove(7));
        let freed = claim_one(&claims, &more).unwrap().unwrap();
        assert_eq!(freed.number, 7);
    }
}
