//! ExecSync: runs a program in a container and returns its output.
//!
//! Called by `service`. Invariants: a nonzero exit code is a result, not a failure; a program that exceeds its time
//! limit is DeadlineExceeded, which the kubelet treats as a failed probe.
//! Must not know: streaming.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_lifecycle::ExecOutput;
use coracle_proto::runtime::v1 as cri;

use super::convert::{self, NamesObject as _};
use super::status::Failure;
use super::{Shared, calls, span};

/// ExecSync.
pub(super) async fn sync(
    shared: Arc<Shared>,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Failure> {
    let named = request.object()?.to_owned();
    span::container(&shared, &named);
    let (argv, limit) = convert::exec_config(request)?;
    let id = shared.pods.find_container(&named)?;
    let began = Instant::now();
    let ended = shared.pods.exec_sync(&id, argv, limit).await;
    calls::exec_sync(began.elapsed(), &ended);
    Ok(reply(ended?))
}

/// The room for output in a message; the kubelet accepts no larger ones.
const ROOM: usize = super::MAX_MESSAGE_BYTES - 4096;

/// The reply, cut where both streams together would not fit into one message.
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

/// The deadline when the client sent none: the program's own limit, plus time for everything else.
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
