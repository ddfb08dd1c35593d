//! Connects the image store, which needs an unpacker, with the runtime's jail: both sides of `coracle unpacker`.
//!
//! Called by `serve` ([`Unpackers`], in the daemon) and by `main` ([`main`], in the unpacker itself).
//! Invariant: no layer is read before the jail is built. Must not know: archives, jails.

use coracle_images::{Cause, RunningUnpacker, Unpacker, UnpackerLauncher};
use coracle_runtime::unpacker::{self, Bounds, Descriptors, Running};
use coracle_sandbox::helper::Permits;
use coracle_spec::error::{Error, Kind, Result};
use futures_util::future::{BoxFuture, FutureExt as _};

/// Starts unpackers, as many at a time as the configuration allows.
pub struct Unpackers(pub Permits);

struct Started(Running);

impl UnpackerLauncher for Unpackers {
    fn start(
        &self,
        unpacker: Unpacker,
    ) -> BoxFuture<'static, std::result::Result<Box<dyn RunningUnpacker>, Cause>> {
        let (permits, tenant) = (self.0.clone(), unpacker.tenant);
        let bounds = Bounds {
            cpu_s: unpacker.cpu_s,
            file_bytes: unpacker.file_bytes,
        };
        let descriptors = Descriptors {
            blob: unpacker.blob,
            directory: unpacker.directory,
            socket: unpacker.socket,
        };
        async move {
            let started = unpacker::start(&permits, &tenant, descriptors, bounds).await;
            let running = started.map_err(|error| Cause::from(error.chain()))?;
            Ok(Box::new(Started(running)) as Box<dyn RunningUnpacker>)
        }
        .boxed()
    }
}

impl RunningUnpacker for Started {
    fn end(self: Box<Self>) -> BoxFuture<'static, std::result::Result<(), Cause>> {
        async move {
            let ended = self.0.end().await;
            ended.map_err(|error| Cause::from(error.chain()))
        }
        .boxed()
    }
}

/// The unpacker's process. Errors: the jail could not be built, or the daemon is gone.
pub fn main(arguments: &[String]) -> Result<()> {
    let given = unpacker::enter(arguments)?;
    coracle_unpack::serve(&given.socket, given.blob, given.directory)
        .map_err(|error| Error::with(Kind::Gone, "report to the daemon", error))
}
