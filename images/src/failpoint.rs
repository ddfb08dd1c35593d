//! Failpoints: named sites at which a test makes a pull fail; the daemon supplies the function that decides.
//!
//! Called between the steps of a pull whose half-done state the next start must handle.
//! Invariant: without the feature `failpoints`, which no release has, [`pass`] does nothing.
//! Not here: which sites fail, and how.

use crate::error::Error;

#[cfg(feature = "failpoints")]
static HIT: std::sync::OnceLock<fn(&str) -> std::io::Result<()>> = std::sync::OnceLock::new();

/// Sets the function that is called at each failpoint; `hit` gets the site's name, and its error fails the pull.
///
/// The sites are `pull.manifest`, `pull.blob`, `pull.unpack`, `pull.commit` and `pull.record`. The first call counts,
/// later ones change nothing.
#[cfg(feature = "failpoints")]
pub fn set_failpoints(hit: fn(&str) -> std::io::Result<()>) {
    let _ = HIT.set(hit);
}

/// Passes the failpoint `site`. Errors: as `hit` returns.
#[cfg(feature = "failpoints")]
pub(crate) fn pass(site: &'static str) -> Result<(), Error> {
    let passed = HIT.get().map_or(Ok(()), |hit| hit(site));
    passed.map_err(|error| Error::io("pass failpoint", std::path::Path::new(site), error))
}

/// Passes a failpoint: nothing in this build. Errors: none.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn pass(_site: &'static str) -> Result<(), Error> {
    Ok(())
}

#[cfg(all(test, feature = "failpoints"))]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn an_armed_site_fails_and_the_others_pass() {
        set_failpoints(|site| match site {
            "pull.commit" => Err(std::io::Error::from_raw_os_error(28)),
            _ => Ok(()),
        });
        let full = pass("pull.commit").unwrap_err();
        assert_eq!(full.kind(), Kind::Exhausted, "{full}");
        assert!(full.to_string().contains("pull.commit"), "{full}");
        pass("pull.record").unwrap();
    }
}
