//! The RPC that runs a program in a container and returns what it printed: ExecSync.
//!
//! Called by `service`. Invariants: an exit code other than 0 is an answer, not a failure; a program that takes too long
//! is DeadlineExceeded, which kubelet takes for a failed probe.
//! Not here: streaming.

use std::sync::Arc;
use std::time::Duration;

use coracle_lifecycle::ExecOutput;
use coracle_proto::runtime::v1 as cri;

use super::convert::{self, NamesObject as _};
use super::status::Failure;
use super::{Shared, concerns};

/// ExecSync.
pub(super) async fn sync(
    shared: Arc<Shared>,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Failure> {
    let named = request.object()?.to_owned();
    concerns("container", &named);
    let (argv, limit) = convert::exec_config(request)?;
    let id = shared.pods.find_container(&named)?;
    let output = shared.pods.exec_sync(&id, argv, limit).await?;
    Ok(reply(output))
}

/// What is left of a message for output: kubelet takes no larger ones.
const ROOM: usize = super::MAX_MESSAGE_BYTES - 4096;

/// The reply, cut where both streams together would not fit one message.
fn reply(output: ExecOutput) -> cri::ExecSyncResponse {
    let (mut stdout, mut stderr) = (output.stdout, output.stderr);
    stdout.truncate(ROOM);
    stderr.truncate(ROOM - stdout.len().min(ROOM / 2));
    stdout.truncate(ROOM - stderr.len());
    cri::ExecSyncResponse {
        stdout,
        stderr,
        exit_code: output.code,
    }
}

/// How long the call may take when its client says nothing: what it grants the program, and a while for the rest.
pub(super) fn limit(request: &cri::ExecSyncRequest) -> Option<Duration> {
    let seconds = u64::try_from(request.timeout).ok().filter(|s| *s > 0)?;
    Some(Duration::from_secs(seconds.min(u64::from(u32::MAX))) + Duration::from_secs(120))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_fits_one_message_and_neither_stream_starves_the_other() {
        let full = super::super::MAX_MESSAGE_BYTES;
        for (out, err) in [(full, full), (full, 0), (0, full), (10, full), (full, 10)] {
            let cut = reply(ExecOutput {
                stdout: vec![0; out],
                stderr: vec![0; err],
                code: 0,
            });
            assert!(cut.stdout.len() + cut.stderr.len() <= ROOM);
            assert!(cut.stdout.len() >= out.min(ROOM / 2) && cut.stderr.len() >= err.min(ROOM / 2));
        }
    }
}
