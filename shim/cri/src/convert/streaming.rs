//! Exec, Attach and PortForward: converts requests into session configs.
//!
//! Called by `streaming`. Invariants: a session has at least one stream; a terminal has no separate error stream; ports
//! are in range. Must not know: whether the container runs.

use coracle_lifecycle::{AttachConfig, ExecConfig, PortForwardConfig};
use coracle_proto::runtime::v1 as cri;
use coracle_spec::id::{ContainerId, PodId};

use super::BadRequest;
use super::exec::check_command;

/// Reads Exec. Errors: [`BadRequest`] that names the field.
pub(crate) fn exec_session(
    request: cri::ExecRequest,
    container: ContainerId,
) -> Result<ExecConfig, BadRequest> {
    check_command(&request.cmd)?;
    let (stdin, stdout, stderr) = (request.stdin, request.stdout, request.stderr);
    check_streams(request.tty, stdin, stdout, stderr)?;
    Ok(ExecConfig {
        container,
        argv: request.cmd,
        tty: request.tty,
        stdin,
        stdout,
        stderr,
    })
}

/// Reads Attach. Errors: [`BadRequest`] that names the field.
pub(crate) fn attach_session(
    request: &cri::AttachRequest,
    container: ContainerId,
) -> Result<AttachConfig, BadRequest> {
    let (stdin, stdout, stderr) = (request.stdin, request.stdout, request.stderr);
    check_streams(request.tty, stdin, stdout, stderr)?;
    Ok(AttachConfig {
        container,
        tty: request.tty,
        stdin,
        stdout,
        stderr,
    })
}

/// Reads PortForward; a list without ports is fine: most clients name them later. Errors: [`BadRequest`] that names the
/// field.
pub(crate) fn forward_session(
    request: &cri::PortForwardRequest,
    pod: PodId,
) -> Result<PortForwardConfig, BadRequest> {
    let mut ports = Vec::with_capacity(request.port.len().min(MAX_PORTS));
    if request.port.len() > MAX_PORTS {
        let problem = format!("has {} ports, more than {MAX_PORTS}", request.port.len());
        return Err(BadRequest::invalid("port", problem));
    }
    for (index, port) in request.port.iter().enumerate() {
        match u16::try_from(*port) {
            Ok(port @ 1..) => ports.push(port),
            _ => {
                let problem = format!("is {port}, must be 1 to 65535");
                return Err(BadRequest::invalid(format!("port[{index}]"), problem));
            }
        }
    }
    Ok(PortForwardConfig { pod, ports })
}

/// Most ports of one request: each uses two of the 255 channels of a WebSocket.
const MAX_PORTS: usize = 127;

fn check_streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), BadRequest> {
    if !stdin && !stdout && !stderr {
        return Err(BadRequest::invalid(
            "stdin",
            "stdout and stderr are all off; a session needs one of them",
        ));
    }
    if tty && stderr {
        return Err(BadRequest::invalid(
            "stderr",
            "is on, but a terminal has no error stream of its own",
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn exec(cmd: &[&str], ends: [bool; 4]) -> Result<ExecConfig, BadRequest> {
        let [tty, stdin, stdout, stderr] = ends;
        let cmd = cmd.iter().map(|argument| (*argument).to_owned()).collect();
        let container_id = "c".into();
        let request = cri::ExecRequest {
            container_id,
            cmd,
            tty,
            stdin,
            stdout,
            stderr,
        };
        exec_session(request, ContainerId::random().unwrap())
    }

    #[test]
    fn a_session_has_streams_and_a_terminal_no_stderr() {
        let [on, off] = [true, false];
        let config = exec(&["sh", "-c", ""], [on, on, on, off]).unwrap();
        assert_eq!(
            (
                config.argv.len(),
                config.tty,
                config.stdin,
                config.stdout,
                config.stderr
            ),
            (3, on, on, on, off)
        );
        for (cmd, ends, field) in [
            (&[][..], [off, off, on, on], "cmd"),
            (&["a\0"][..], [off, off, on, on], "cmd[0]"),
            (&["sh"][..], [on, off, off, off], "stdin"),
            (&["sh"][..], [on, on, on, on], "stderr"),
        ] {
            let refused = exec(cmd, ends).unwrap_err().to_string();
            assert!(refused.starts_with(field), "{refused}");
        }
        let nothing = cri::AttachRequest {
            container_id: "c".into(),
            ..Default::default()
        };
        attach_session(&nothing, ContainerId::random().unwrap()).unwrap_err();
    }

    #[test]
    fn ports_are_in_range() {
        let ask = |port: &[i32]| {
            let request = cri::PortForwardRequest {
                pod_sandbox_id: "p".into(),
                port: port.into(),
            };
            forward_session(&request, PodId::random().unwrap())
        };
        assert_eq!(ask(&[1, 80, 65535]).unwrap().ports, [1, 80, 65535]);
        assert!(ask(&[]).unwrap().ports.is_empty());
        for odd in [0, -1, 65536] {
            let refused = ask(&[80, odd]).unwrap_err().to_string();
            assert!(refused.starts_with("port[1] is"), "{refused}");
        }
        assert!(ask(&[80; 128]).is_err());
    }
}
