//! The connection to the daemon.
//!
//! Called by: the commands. Must not know: what they print.

use std::path::{Path, PathBuf};

use coracle_proto::archives::v1::archive_service_client::ArchiveServiceClient;
use coracle_proto::runtime::v1 as cri;
use coracle_proto::runtime::v1::image_service_client::ImageServiceClient;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::error::Error;
use crate::spec;

/// The largest reply that is read, as in the kubelet. Bytes.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The client of the daemon's own service for images as files.
pub(crate) type Archives = ArchiveServiceClient<Channel>;

/// Clients of the daemon's services.
pub(crate) struct Client {
    pub(crate) images: ImageServiceClient<Channel>,
    pub(crate) archives: Archives,
    socket: PathBuf,
}

impl Client {
    /// Connects at the first call.
    pub(crate) fn new(socket: &Path) -> Self {
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let connection = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(TokioIo::new(connection))
            }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
        Self {
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            archives: ArchiveServiceClient::new(channel),
            socket: socket.to_owned(),
        }
    }

    /// The content of a reply. Errors: the refusal.
    pub(crate) fn answer<T>(
        &self,
        reply: Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, Error> {
        let reply = reply.map_err(|status| self.refused(&status))?;
        Ok(reply.into_inner())
    }

    /// A refusal of the daemon.
    pub(crate) fn refused(&self, status: &tonic::Status) -> Error {
        Error::refused(&self.socket, status)
    }

    /// ImageStatus.
    pub(crate) async fn status(
        &mut self,
        name: &str,
        verbose: bool,
    ) -> Result<cri::ImageStatusResponse, Error> {
        let image = Some(spec(name));
        let request = cri::ImageStatusRequest { image, verbose };
        let reply = self.images.image_status(request).await;
        self.answer(reply)
    }
}
