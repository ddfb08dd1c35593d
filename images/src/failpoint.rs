//! Named places where a test makes a pull fail half way; whoever builds the daemon says what happens at them.
//!
//! Place in the flow: [`pass`] stands between the steps of a pull whose half-done state the next start must handle.
//! Invariant: without the feature `failpoints`, which no release has, [`pass`] is nothing and nobody can set anything.
//! Not here: which places are to fail, and how; this crate knows nobody who could tell.

use crate::error::Error;

#[cfg(feature = "failpoints")]
static HIT: std::sync::OnceLock<fn(&str) -> std::io::Result<()>> = std::sync::OnceLock::new();

/// Says what happens at each failpoint of a pull; `hit` gets the site's name and its error fails the pull.
///
/// The sites are `pull.manifest`, `pull.blob`, `pull.unpack`, `pull.commit` and `pull.record`. The first call counts,
/// later ones change nothing.
#[cfg(feature = "failpoints")]
pub fn set_failpoints(hit: fn(&str) -> std::io::Result<()>) {
    let _ = HIT.set(hit);
}

/// Passes the failpoint `site`. Errors: the test asks for one.
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
    fn a_site_fails_as_it_was_told_and_the_others_pass() {
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
