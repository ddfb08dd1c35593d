//! `coracle check`: what the node lacks, and a command that fixes it.
//!
//! Called by: the command line, which loads the configuration, calls [`examine`] and prints the [`Report`]. The daemon
//! need not run.
//! Invariants: what can be tried is tried rather than derived from a version number; whatever a probe creates (a
//! namespace, a veth inside it, a detached mount) is gone when it returns; every finding other than ok has a remedy.
//! Must not know: how to fix anything itself.

mod directories;
mod host;
mod kernel;
mod network;
mod probe;
mod processes;
mod signatures;

use std::io::{self, Write};

use coracle_config::{Config, Proxy};
use coracle_spec::error::chain;
use serde::Serialize;

use crate::registries;
pub use kernel::maps_users;
pub use network::unused as unused_cni;
pub use signatures::log_problems as log_signature_policies;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Pods run, but not all or not as well as they could.
    Warning,
    /// Pods do not run.
    Missing,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// The subject: `overlayfs`.
    pub subject: &'static str,
    /// What was found.
    pub found: String,
    /// A command or a change that fixes it; always set unless the level is ok.
    #[serde(rename = "mend", skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            subject,
            found: found.into(),
            remedy: None,
        }
    }

    fn warning(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            subject,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn missing(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Missing,
            subject,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// All findings, in a fixed order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

/// Examines the node for this configuration.
pub fn examine(config: &Config) -> Report {
    let mut findings = kernel::findings(config);
    findings.extend(host::findings(config));
    findings.push(processes::finding(config));
    findings.extend(network::findings(config));
    findings.extend(directories::findings(config));
    findings.push(proxies(config));
    findings.extend(signatures::findings(config));
    findings.push(traces(config));
    Report { findings }
}

/// Whether the proxies for registries can be used; the daemon does not start with others.
fn proxies(config: &Config) -> Finding {
    let subject = "registry proxy";
    match (
        registries::check_proxies(&config.images),
        &config.images.proxy,
    ) {
        (Err(error), _) => Finding::missing(
            subject,
            format!("the daemon does not start: {}", chain(&error)),
            "correct images.proxy and images.no_proxy in the configuration",
        ),
        (Ok(()), Proxy::None) => Finding::ok(subject, "none"),
        (Ok(()), Proxy::Url(_)) => Finding::ok(subject, "images.proxy"),
        (Ok(()), Proxy::Environment) => Finding::ok(subject, "that of the daemon's environment"),
    }
}

/// Whether traces can be sent at all; the collector itself is not asked.
fn traces(config: &Config) -> Finding {
    let subject = "traces";
    let Some(to) = &config.tracing.collector else {
        return Finding::ok(subject, "none: tracing.endpoint names no collector");
    };
    match crate::traces::collector(to) {
        Ok(_) => Finding::ok(subject, format!("sent to {}", to.endpoint)),
        Err(error) => Finding::missing(
            subject,
            format!("the daemon does not start: {}", chain(error.as_ref())),
            "correct tracing.ca, or empty tracing.endpoint",
        ),
    }
}

impl Report {
    /// 0 when nothing is missing, else 1. Warnings are not failures.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.count(Level::Missing) > 0)
    }

    fn count(&self, level: Level) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    }

    /// Aligned text, one line a finding, with its remedy below it.
    pub fn print_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = self
            .findings
            .iter()
            .map(|finding| finding.subject.len())
            .max()
            .unwrap_or(0);
        for finding in &self.findings {
            let Finding {
                level,
                subject,
                found,
                remedy,
            } = finding;
            writeln!(out, "{:<7}  {subject:<width$}  {found}", level.name())?;
            if let Some(remedy) = remedy {
                writeln!(out, "{:<7}  {:<width$}  -> {remedy}", "", "")?;
            }
        }
        let (missing, warnings) = (self.count(Level::Missing), self.count(Level::Warning));
        writeln!(
            out,
            "\n{} checked, {missing} missing, {warnings} warnings",
            self.findings.len()
        )
    }

    /// One JSON object: `{"missing": N, "warnings": N, "findings": [...]}`.
    pub fn print_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let object = serde_json::json!({
            "missing": self.count(Level::Missing),
            "warnings": self.count(Level::Warning),
            "findings": self.findings,
        });
        writeln!(out, "{object:#}")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            findings: vec![
                Finding::ok("kernel", "6.1.0"),
                Finding::warning(
                    "resolv.conf",
                    "no nameserver",
                    "name one in /etc/resolv.conf",
                ),
                Finding::missing("overlayfs", "unknown to the kernel", "modprobe overlay"),
            ],
        }
    }

    #[test]
    fn text_is_aligned_and_has_remedies() {
        let mut out = Vec::new();
        report().print_text(&mut out).unwrap();
        let wanted = "\
ok       kernel       6.1.0
warning  resolv.conf  no nameserver
                      -> name one in /etc/resolv.conf
missing  overlayfs    unknown to the kernel
                      -> modprobe overlay

3 checked, 1 missing, 1 warnings
";
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }

    #[test]
    fn json_holds_the_same_findings() {
        let mut out = Vec::new();
        report().print_json(&mut out).unwrap();
        let object: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(object["missing"], 1);
        assert_eq!(object["findings"][2]["level"], "missing");
        assert_eq!(object["findings"][2]["mend"], "modprobe overlay");
        assert!(object["findings"][0].get("mend").is_none());
    }

    #[test]
    fn only_what_is_missing_fails() {
        let mut report = report();
        assert_eq!(report.exit_code(), 1);
        report.findings.pop();
        assert_eq!(report.exit_code(), 0);
    }

    #[test]
    fn the_real_node_is_examined_and_every_complaint_has_a_remedy() {
        let report = examine(&Config::default());
        assert!(report.findings.len() >= 15, "{report:#?}");
        for finding in &report.findings {
            assert_eq!(
                finding.level == Level::Ok,
                finding.remedy.is_none(),
                "{finding:?}"
            );
        }
        let mut subjects: Vec<_> = report
            .findings
            .iter()
            .map(|finding| finding.subject)
            .collect();
        subjects.sort_unstable();
        subjects.dedup();
        assert_eq!(
            subjects.len(),
            report.findings.len(),
            "a subject appears twice"
        );
    }
}
