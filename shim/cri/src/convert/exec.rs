//! ExecSync: converts the request into a command and a time limit.
//!
//! Called by `exec`. Invariant: the command has at least one argument, and none contains a NUL.
//! Must not know: whether the container runs.

use std::time::Duration;

use coracle_proto::runtime::v1 as cri;

use super::BadRequest;

/// Reads ExecSync: the command, and how long it may take; `None` is for ever.
///
/// Errors: [`BadRequest`] that names the field.
pub(crate) fn exec_config(
    request: cri::ExecSyncRequest,
) -> Result<(Vec<String>, Option<Duration>), BadRequest> {
    check_command(&request.cmd)?;
    let limit = match u64::try_from(request.timeout) {
        Ok(0) => None,
        Ok(seconds) => Some(Duration::from_secs(seconds.min(u64::from(u32::MAX)))),
        Err(_) => {
            let problem = format!("is {}, less than 0", request.timeout);
            return Err(BadRequest::invalid("timeout", problem));
        }
    };
    Ok((request.cmd, limit))
}

/// Program and arguments, as execve takes them.
pub(super) fn check_command(cmd: &[String]) -> Result<(), BadRequest> {
    if cmd.first().is_none_or(String::is_empty) {
        return Err(BadRequest::invalid("cmd", "names no program"));
    }
    if let Some(index) = cmd.iter().position(|argument| argument.contains('\0')) {
        return Err(BadRequest::invalid(format!("cmd[{index}]"), "holds a NUL"));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn ask(cmd: &[&str], timeout: i64) -> Result<(Vec<String>, Option<Duration>), BadRequest> {
        exec_config(cri::ExecSyncRequest {
            container_id: "c".into(),
            cmd: cmd.iter().map(|argument| (*argument).to_owned()).collect(),
            timeout,
        })
    }

    #[test]
    fn command_and_limit_are_as_given_and_0_is_for_ever() {
        let (command, limit) = ask(&["sh", "-c", ""], 3).unwrap();
        assert_eq!(command, ["sh", "-c", ""]);
        assert_eq!(limit, Some(Duration::from_secs(3)));
        assert_eq!(ask(&["true"], 0).unwrap().1, None);
    }

    #[test]
    fn an_empty_command_and_odd_arguments_are_refused_by_field() {
        for (cmd, timeout, field) in [
            (&[][..], 0, "cmd"),
            (&[""][..], 0, "cmd"),
            (&["a", "b\0"][..], 0, "cmd[1]"),
            (&["a"][..], -1, "timeout"),
        ] {
            let text = ask(cmd, timeout).unwrap_err().to_string();
            assert!(text.starts_with(field), "{text}");
        }
    }
}
