//! Checks the signature policies: whether pulls can read them, and what of them this node cannot verify.
//!
//! Called by: `check::examine`, last, and the daemon at its start. Invariant: files are read by the code that pulls use.
//! Must not know: the format of policies.

use std::path::{Path, PathBuf};

use coracle_config::Config;
use coracle_images::check_signature_policy;

use super::Finding;

const SUBJECT: &str = "signature policy";
/// Most policies of namespaces that are looked at.
const MOST: usize = 10_000;

/// Every finding about them: at least one.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let images = &config.images;
    let mut findings = Vec::new();
    if let Some(path) = &images.signature_policy {
        findings.push(of_policy(path));
    }
    if let Some(dir) = &images.signature_policy_dir {
        findings.extend(of_namespaces(dir));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(SUBJECT, "none: every image is accepted"));
    }
    findings
}

fn of_policy(path: &Path) -> Finding {
    match check_signature_policy(path) {
        Ok(unsupported) if unsupported.is_empty() => {
            Finding::ok(SUBJECT, format!("{} is readable", path.display()))
        }
        Ok(unsupported) => Finding::warning(
            SUBJECT,
            format!("{}: {}", path.display(), unsupported.join("; ")),
            "use keys of cosign (sigstoreSigned with keyPath), or accept that images of these scopes are refused",
        ),
        Err(error) => Finding::missing(
            SUBJECT,
            format!("every pull is refused: {error}"),
            "correct the file; containers-policy.json(5) describes it",
        ),
    }
}

/// One finding for each policy that is not as it should be, or one for all.
fn of_namespaces(dir: &Path) -> Vec<Finding> {
    let paths = match policies(dir) {
        Ok(paths) => paths,
        Err(error) => {
            let found = format!(
                "every pull and container is refused: images.signature_policy_dir {}: {error}",
                dir.display()
            );
            return vec![Finding::missing(
                SUBJECT,
                found,
                format!("ls -ld {}", dir.display()),
            )];
        }
    };
    let count = paths.len();
    let judged = paths.iter().map(|path| of_policy(path));
    let mut findings: Vec<Finding> = judged.filter(|one| one.remedy.is_some()).collect();
    if findings.is_empty() {
        let found = format!("{}: {count} policies of namespaces", dir.display());
        findings.push(Finding::ok(SUBJECT, found));
    }
    findings
}

fn policies(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)?.take(MOST) {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Logs what is wrong with the policies, for the daemon's start. Blocking.
pub fn log_problems(config: &Config) {
    for finding in findings(config) {
        if let Some(remedy) = finding.remedy {
            tracing::error!(found = finding.found, remedy, "signature policy");
        }
    }
}
