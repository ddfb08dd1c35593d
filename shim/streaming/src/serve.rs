//! Serves a session on its upgraded connection, by the protocol that was negotiated.
//!
//! Called by: [`super::http`], once a connection is upgraded. Invariant: a session is counted from here to its end, however it
//! ends. Must not know: how protocols are negotiated.

use super::connection::Upgraded;
use super::counters::Counted;
use super::websocket::{self, Subprotocol};
use super::{Session, forward, remote};

/// The negotiated protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// SPDY; the version of the protocol of exec and attach in it.
    Spdy(u8),
    /// WebSocket channels.
    Channels(Subprotocol),
    /// SPDY in a WebSocket.
    Tunnel,
}

impl Protocol {
    /// Its name in metrics.
    fn name(self) -> &'static str {
        match self {
            Protocol::Spdy(_) => "spdy",
            Protocol::Channels(_) => "websocket",
            Protocol::Tunnel => "tunnel",
        }
    }
}

/// Serves `session` to its end.
pub async fn serve(upgraded: Upgraded, protocol: Protocol, session: Session) {
    let counted = Counted::begin(session.name(), protocol.name());
    let program = match session {
        Session::Exec(program) | Session::Attach(program) => program.counted(&counted),
        Session::Forward(ports) => {
            match protocol {
                Protocol::Spdy(_) => forward::serve_spdy(upgraded, ports).await,
                Protocol::Channels(subprotocol) => {
                    websocket::serve_forward(upgraded, subprotocol, ports).await;
                }
                Protocol::Tunnel => websocket::serve_tunnel(upgraded, ports).await,
            }
            // It has no other end than that its client leaves.
            return counted.end("ok");
        }
    };
    match protocol {
        Protocol::Spdy(version) => remote::serve_spdy(upgraded, version, program).await,
        Protocol::Channels(subprotocol) => {
            websocket::serve_remote(upgraded, subprotocol, program).await
        }
        // Only port-forward negotiates this.
        Protocol::Tunnel => {}
    }
}
