//! What the error stream of an exec or attach says at its end.
//!
//! Used by: [`super::remote`]. Source: cri.md section 5: metav1.Status as JSON from protocol v4 on, plain text before it.
//! Invariant: pure. Not here: how it is sent.

use serde_json::json;

/// How an exec or attach ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The program ended with this exit code; an attach ends with 0.
    Exited(i32),
    /// There was no program, or it was lost; with the reason.
    Failed(String),
}

/// How the protocol wants it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// v4 and later: always an object.
    Json,
    /// Before: nothing, or the reason.
    Text,
}

impl Form {
    /// The whole content of the error stream.
    pub fn render(self, verdict: &Verdict) -> String {
        match (self, verdict) {
            (Form::Text, Verdict::Exited(0)) => String::new(),
            (Form::Text, Verdict::Exited(code)) => exited(*code),
            (Form::Text, Verdict::Failed(why)) => internal(why),
            (Form::Json, Verdict::Exited(0)) => json!({"metadata": {}, "status": "Success"}).to_string(),
            (Form::Json, Verdict::Exited(code)) => json!({
                "metadata": {}, "status": "Failure", "message": exited(*code), "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
            .to_string(),
            (Form::Json, Verdict::Failed(why)) => json!({
                "metadata": {}, "status": "Failure", "message": internal(why), "reason": "InternalError",
                "details": {"causes": [{"message": why}]}, "code": 500,
            })
            .to_string(),
        }
    }
}

fn exited(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit code {code}")
}

fn internal(why: &str) -> String {
    format!("Internal error occurred: {why}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn clients_find_the_exit_code_where_they_look_for_it() {
        let said: Value = serde_json::from_str(&Form::Json.render(&Verdict::Exited(137))).unwrap();
        assert_eq!(
            (&said["status"], &said["reason"]),
            (&json!("Failure"), &json!("NonZeroExitCode"))
        );
        assert_eq!(
            said["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "137"})
        );
        let said: Value = serde_json::from_str(&Form::Json.render(&Verdict::Exited(0))).unwrap();
        assert_eq!(said, json!({"metadata": {}, "status": "Success"}));
        let said: Value =
            serde_json::from_str(&Form::Json.render(&Verdict::Failed("no \"sh\"".into()))).unwrap();
        assert_eq!(
            (&said["reason"], &said["code"]),
            (&json!("InternalError"), &json!(500))
        );
        assert_eq!(said["message"], "Internal error occurred: no \"sh\"");
    }

    #[test]
    fn old_clients_read_text_and_silence_is_success() {
        assert_eq!(Form::Text.render(&Verdict::Exited(0)), "");
        assert!(
            Form::Text
                .render(&Verdict::Exited(3))
                .contains("exit code 3")
        );
        assert!(
            Form::Text
                .render(&Verdict::Failed("gone".into()))
                .contains("gone")
        );
    }
}
