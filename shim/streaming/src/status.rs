//! The content of the error stream at the end of an exec or attach.
//!
//! Called by: [`super::remote`]. Source: cri.md section 5: metav1.Status as JSON from protocol v4 on, plain text
//! before.
//! Invariant: pure. Must not know: how it is sent.

use serde_json::json;

/// How an exec or attach ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// The program ended with this exit code; an attach ends with 0.
    Exited(i32),
    /// The program did not start, or was lost; with the reason.
    Failed(String),
}

/// The format of the error stream, by protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFormat {
    /// v4 and later: always a JSON object.
    Json,
    /// Before v4: nothing on success, else the reason.
    Text,
}

impl StatusFormat {
    /// The complete content of the error stream.
    pub fn render(self, status: &ExitStatus) -> String {
        match (self, status) {
            (StatusFormat::Text, ExitStatus::Exited(0)) => String::new(),
            (StatusFormat::Text, ExitStatus::Exited(code)) => exited(*code),
            (StatusFormat::Text, ExitStatus::Failed(reason)) => internal(reason),
            (StatusFormat::Json, ExitStatus::Exited(0)) => json!({"metadata": {}, "status": "Success"}).to_string(),
            (StatusFormat::Json, ExitStatus::Exited(code)) => json!({
                "metadata": {}, "status": "Failure", "message": exited(*code), "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
            .to_string(),
            (StatusFormat::Json, ExitStatus::Failed(reason)) => json!({
                "metadata": {}, "status": "Failure", "message": internal(reason), "reason": "InternalError",
                "details": {"causes": [{"message": reason}]}, "code": 500,
            })
            .to_string(),
        }
    }
}

fn exited(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit code {code}")
}

fn internal(reason: &str) -> String {
    format!("Internal error occurred: {reason}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn clients_find_the_exit_code_where_they_look_for_it() {
        let status: Value =
            serde_json::from_str(&StatusFormat::Json.render(&ExitStatus::Exited(137))).unwrap();
        assert_eq!(
            (&status["status"], &status["reason"]),
            (&json!("Failure"), &json!("NonZeroExitCode"))
        );
        assert_eq!(
            status["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "137"})
        );
        let status: Value =
            serde_json::from_str(&StatusFormat::Json.render(&ExitStatus::Exited(0))).unwrap();
        assert_eq!(status, json!({"metadata": {}, "status": "Success"}));
        let status: Value = serde_json::from_str(
            &StatusFormat::Json.render(&ExitStatus::Failed("no \"sh\"".into())),
        )
        .unwrap();
        assert_eq!(
            (&status["reason"], &status["code"]),
            (&json!("InternalError"), &json!(500))
        );
        assert_eq!(status["message"], "Internal error occurred: no \"sh\"");
    }

    #[test]
    fn old_clients_read_text_and_an_empty_status_is_success() {
        assert_eq!(StatusFormat::Text.render(&ExitStatus::Exited(0)), "");
        assert!(
            StatusFormat::Text
                .render(&ExitStatus::Exited(3))
                .contains("exit code 3")
        );
        assert!(
            StatusFormat::Text
                .render(&ExitStatus::Failed("gone".into()))
                .contains("gone")
        );
    }
}
