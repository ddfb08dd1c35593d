//! The RPCs that return URLs of sessions: Exec, Attach, PortForward.
//!
//! Called by `service`. Invariant: a request that cannot work now is refused here, where the caller sees the reason;
//! the session checks again when the client connects.
//! Must not know: how a session runs.

use std::sync::Arc;

use coracle_lifecycle::{Error, Kind, Purpose};
use coracle_proto::runtime::v1 as cri;
use coracle_spec::id::{ContainerId, PodId};
use coracle_streaming::{Refused, Session};

use super::convert::{self, NamesObject as _};
use super::status::Failure;
use super::{Shared, span};

/// Exec: a URL that runs a program.
pub(super) async fn exec(
    shared: Arc<Shared>,
    request: cri::ExecRequest,
) -> Result<cri::ExecResponse, Failure> {
    let id = container(&shared, request.object()?)?;
    let config = convert::exec_session(request, id.clone())?;
    shared.pods.admit(&id, Purpose::Exec).await?;
    let url = url(&shared, shared.pods.exec_session(config))?;
    Ok(cri::ExecResponse { url })
}

/// Attach: a URL that joins a container's own streams.
pub(super) async fn attach(
    shared: Arc<Shared>,
    request: cri::AttachRequest,
) -> Result<cri::AttachResponse, Failure> {
    let id = container(&shared, request.object()?)?;
    let config = convert::attach_session(&request, id.clone())?;
    shared.pods.admit(&id, Purpose::Attach).await?;
    let url = url(&shared, shared.pods.attach_session(config))?;
    Ok(cri::AttachResponse { url })
}

/// PortForward: a URL that connects to ports of a sandbox.
pub(super) async fn port_forward(
    shared: Arc<Shared>,
    request: cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, Failure> {
    let named = request.object()?;
    span::sandbox(&shared, named);
    let id = shared.pods.find_pod(named)?;
    let config = convert::forward_session(&request, id.clone())?;
    check_ready(&shared, &id)?;
    let url = url(&shared, shared.pods.forward_session(config))?;
    Ok(cri::PortForwardResponse { url })
}

fn url(shared: &Shared, session: Session) -> Result<String, Error> {
    shared.streaming.offer(session).map_err(|refused| {
        let kind = match refused {
            Refused::TooMany => Kind::Exhausted,
            Refused::Random(_) => Kind::Io,
        };
        Error::because(kind, "create a URL for a streaming session", refused)
    })
}

fn container(shared: &Shared, named: &str) -> Result<ContainerId, Failure> {
    span::container(shared, named);
    Ok(shared.pods.find_container(named)?)
}

fn check_ready(shared: &Shared, id: &PodId) -> Result<(), Error> {
    let view = shared.pods.pod(id);
    let view =
        view.ok_or_else(|| Error::new(Kind::Missing, format!("there is no sandbox {id}")))?;
    if view.ready {
        return Ok(());
    }
    let text = format!("cannot forward ports of sandbox {id}: it is not ready");
    Err(Error::new(Kind::WrongPhase, text))
}
