//! Reads the report that critest writes as JSON and renders it as text.
//!
//! The format is that of ginkgo 2 (`types.Report`); only the fields used here are named. Benchmarks, which critest
//! carries along and always skips, are not counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use crate::Outcome;

/// Lines of a failure's message that are shown.
const MESSAGE_LINES: usize = 12;

/// What became of one spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It does not: where in critest, and what critest said.
    Failed {
        /// `file.go:line`
        place: String,
        /// Critest's words.
        message: String,
    },
    /// It was not tried: critest's reason, empty when it was not selected.
    Skipped(String),
}

/// The verdicts of one run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Full name and verdict of every spec, in critest's order.
    pub specs: Vec<(String, Verdict)>,
    /// What went wrong after the last spec: leaks, mounts that stay.
    pub aftermath: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
    location: Location,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Location {
    file_name: String,
    line_number: u64,
}

impl Report {
    /// Reads ginkgo's JSON report. Errors: it is none, or holds no spec.
    pub fn parse(json: &[u8]) -> Outcome<Self> {
        let suites: Vec<Suite> = serde_json::from_slice(json)?;
        let all = suites
            .into_iter()
            .flat_map(|suite| suite.spec_reports.unwrap_or_default());
        let specs: Vec<_> = all.filter(Spec::counts).map(Spec::verdict).collect();
        if specs.is_empty() {
            return Err("critest's report holds no spec".into());
        }
        Ok(Self {
            specs,
            aftermath: Vec::new(),
        })
    }

    /// How many passed, failed and were skipped.
    pub fn counts(&self) -> (usize, usize, usize) {
        self.specs.iter().fold(
            (0, 0, 0),
            |(passed, failed, skipped), (_, verdict)| match verdict {
                Verdict::Passed => (passed + 1, failed, skipped),
                Verdict::Failed { .. } => (passed, failed + 1, skipped),
                Verdict::Skipped(_) => (passed, failed, skipped + 1),
            },
        )
    }

    /// True if nothing failed, neither a spec nor the clean-up.
    pub fn is_clean(&self) -> bool {
        self.counts().1 == 0 && self.aftermath.is_empty()
    }

    /// Every failed spec, why specs were skipped, what was left behind, and the closing line of counts.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, verdict) in &self.specs {
            match verdict {
                Verdict::Passed => {}
                Verdict::Failed { place, message } => {
                    let _ = writeln!(text, "FAILED {name}\n    {place}");
                    for line in message.lines().take(MESSAGE_LINES) {
                        let _ = writeln!(text, "    {line}");
                    }
                }
                Verdict::Skipped(reason) => *reasons.entry(reason.as_str()).or_default() += 1,
            }
        }
        for (reason, count) in reasons {
            let reason = if reason.is_empty() {
                "not selected"
            } else {
                reason
            };
            let _ = writeln!(text, "skipped {count}: {reason}");
        }
        for problem in &self.aftermath {
            let _ = writeln!(text, "AFTERWARDS {problem}");
        }
        let (passed, failed, skipped) = self.counts();
        let _ = writeln!(text, "{passed} passed, {failed} failed, {skipped} skipped");
        text
    }
}

impl Spec {
    /// Set-up and tear-down of the suite count only when they fail.
    fn counts(&self) -> bool {
        let failed = !matches!(self.state.as_str(), "passed" | "skipped" | "pending");
        let is_spec = self.leaf_node_type == "It";
        (is_spec || failed)
            && !self.name().contains("[Feature:Benchmark]")
            && !self.name().contains("benchmark")
    }

    fn name(&self) -> String {
        let mut texts = self.container_hierarchy_texts.clone().unwrap_or_default();
        texts.push(self.leaf_node_text.clone());
        texts.join(" ").trim_start_matches("[k8s.io] ").to_owned()
    }

    fn verdict(self) -> (String, Verdict) {
        let name = match self.name() {
            name if name.is_empty() => self.leaf_node_type.clone(),
            name => name,
        };
        let verdict = match self.state.as_str() {
            "passed" => Verdict::Passed,
            "skipped" | "pending" => Verdict::Skipped(self.failure.message),
            state => Verdict::Failed {
                place: self.failure.location.place(),
                message: match self.failure.message {
                    message if message.is_empty() => state.to_owned(),
                    message => message,
                },
            },
        };
        (name, verdict)
    }
}

impl Location {
    fn place(&self) -> String {
        let file = self.file_name.rsplit('/').next().unwrap_or_default();
        format!("{file}:{}", self.line_number)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    const REPORT: &str = r#"[{"SpecReports": [
        {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
        {"ContainerHierarchyTexts": ["[k8s.io] Pod", "runtime"], "LeafNodeType": "It", "LeafNodeText": "runs", "State": "passed"},
        {"ContainerHierarchyTexts": ["[k8s.io] Pod"], "LeafNodeType": "It", "LeafNodeText": "stops", "State": "failed",
         "Failure": {"Message": "Expected\n    true", "Location": {"FileName": "/x/validate/pod.go", "LineNumber": 7}}},
        {"ContainerHierarchyTexts": ["[k8s.io] Pod"], "LeafNodeType": "It", "LeafNodeText": "hangs", "State": "timedout"},
        {"ContainerHierarchyTexts": ["[k8s.io] SELinux"], "LeafNodeType": "It", "LeafNodeText": "labels", "State": "skipped",
         "Failure": {"Message": "SELinux is off"}},
        {"ContainerHierarchyTexts": ["[k8s.io] X"], "LeafNodeType": "It", "LeafNodeText": "unselected", "State": "skipped"},
        {"ContainerHierarchyTexts": ["[k8s.io] benchmark"], "LeafNodeType": "It", "LeafNodeText": "b", "State": "skipped"}
    ]}]"#;

    #[test]
    fn a_report_closes_on_its_counts_and_names_every_failure() {
        let report = Report::parse(REPORT.as_bytes()).unwrap();
        assert_eq!((report.counts(), report.is_clean()), ((1, 2, 2), false));
        let text = report.render();
        assert!(
            text.contains("FAILED Pod stops\n    pod.go:7\n    Expected\n"),
            "{text}"
        );
        assert!(
            text.contains("FAILED Pod hangs\n    :0\n    timedout\n"),
            "{text}"
        );
        assert!(text.contains("skipped 1: SELinux is off\n"), "{text}");
        assert!(text.contains("skipped 1: not selected\n"), "{text}");
        assert!(text.ends_with("1 passed, 2 failed, 2 skipped\n"), "{text}");
    }

    #[test]
    fn a_suite_that_failed_to_start_is_a_failure_and_an_empty_one_is_none() {
        let broken = REPORT.replacen("\"passed\"", "\"panicked\"", 1);
        let report = Report::parse(broken.as_bytes()).unwrap();
        assert_eq!(report.counts(), (1, 3, 2));
        assert!(report.render().contains("FAILED BeforeSuite\n"));
        assert!(Report::parse(b"[{\"SpecReports\": null}]").is_err());
    }

    #[test]
    fn what_is_left_behind_spoils_a_run_in_which_all_passed() {
        let mut report = Report {
            specs: vec![("a".into(), Verdict::Passed)],
            ..Report::default()
        };
        assert!(report.is_clean());
        report.aftermath.push("a mount stays".into());
        assert!(!report.is_clean());
        assert!(report.render().contains("AFTERWARDS a mount stays\n"));
    }
}
