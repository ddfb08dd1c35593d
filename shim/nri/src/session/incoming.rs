//! What a plugin sends: its registration, its requests, and answers to calls.
//!
//! Called by: [`super::Session::new`], whose reader it is. Invariant: what breaks the protocol ends the session, with the
//! reason. Must not know: what a request changes.

use coracle_proto::nri::v1 as nri;
use prost::Message as _;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

use super::super::wire::{Message, PLUGIN, REQUEST, RESPONSE, RUNTIME, Reader};
use super::{
    INVALID_ARGUMENT, QUEUE, RESOURCE_EXHAUSTED, RUNTIME_SERVICE, Request, Session, UNIMPLEMENTED,
};

/// The messages of a plugin.
pub(super) struct Incoming<'a> {
    pub(super) session: &'a Session,
    pub(super) register: Option<oneshot::Sender<(String, String)>>,
    pub(super) queue: mpsc::Sender<Request>,
}

impl Incoming<'_> {
    /// Reads until the end; why it ended.
    pub(super) async fn read(&mut self, read: OwnedReadHalf) -> String {
        let mut reader = Reader::new(read);
        loop {
            let message = match reader.next().await {
                Ok(message) => message,
                Err(error) => return coracle_spec::error::chain(&error),
            };
            let result = match (message.connection, message.kind) {
                (PLUGIN, RESPONSE) => self.answered(&message),
                (RUNTIME, REQUEST) => self.requested(&message).await,
                (connection, kind) => Err(format!(
                    "it sent a message of type {kind} on connection {connection}"
                )),
            };
            if let Err(why) = result {
                return why;
            }
        }
    }

    fn answered(&self, message: &Message) -> Result<(), String> {
        let answer = nri::TtrpcResponse::decode(message.payload.as_slice())
            .map_err(|error| format!("its answer is no ttrpc response: {error}"))?;
        let waiting = self.session.calls().waiting.remove(&message.stream);
        let waiting = waiting.ok_or_else(|| {
            format!(
                "it answered request {}, which does not wait",
                message.stream
            )
        })?;
        // Err: the call's limit has just passed.
        let _ = waiting.send(answer);
        Ok(())
    }

    async fn requested(&mut self, message: &Message) -> Result<(), String> {
        let request = nri::TtrpcRequest::decode(message.payload.as_slice())
            .map_err(|error| format!("its request is no ttrpc request: {error}"))?;
        let stream = message.stream;
        let answer = match (request.service.as_str(), request.method.as_str()) {
            (RUNTIME_SERVICE, "RegisterPlugin") => self.registers(&request.payload)?,
            (RUNTIME_SERVICE, "UpdateContainers") => {
                let request = nri::UpdateContainersRequest::decode(request.payload.as_slice())
                    .map_err(|error| format!("its UpdateContainers cannot be read: {error}"))?;
                match self.queue.try_send(Request { request, stream }) {
                    Ok(()) => return Ok(()),
                    Err(_) => Err((
                        RESOURCE_EXHAUSTED,
                        format!("{QUEUE} requests of this plugin wait already"),
                    )),
                }
            }
            (service, method) => Err((
                UNIMPLEMENTED,
                format!("there is no call {method} of {service}"),
            )),
        };
        self.session.reply(stream, answer).await;
        Ok(())
    }

    fn registers(&mut self, payload: &[u8]) -> Result<Result<Vec<u8>, (i32, String)>, String> {
        let request = nri::RegisterPluginRequest::decode(payload)
            .map_err(|error| format!("its registration cannot be read: {error}"))?;
        let (name, index) = (request.plugin_name, request.plugin_idx);
        if let Err(why) = check_name(&index, &name) {
            return Ok(Err((INVALID_ARGUMENT, why)));
        }
        let Some(register) = self.register.take() else {
            return Err("it registered twice".to_owned());
        };
        // Err: the limit for registering has just passed.
        let _ = register.send((index, name));
        Ok(Ok(nri::Empty {}.encode_to_vec()))
    }
}

/// Errors: why index and name are not those of a plugin.
fn check_name(index: &str, name: &str) -> Result<(), String> {
    let is_index = index.len() == 2 && index.bytes().all(|b| b.is_ascii_digit());
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
    let is_name = (1..=128).contains(&name.len()) && name.bytes().all(is_letter);
    match (is_index, is_name) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("plugin index {index:?} is not two digits")),
        (true, false) => Err(format!(
            "plugin name {name:?} is not 1 to 128 letters, digits, `_`, `.`, `+` or `-`"
        )),
    }
}
