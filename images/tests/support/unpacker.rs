//! Unpacks in the process of the test.

use coracle_images::{Cause, RunningUnpacker, Unpacker, UnpackerLauncher};
use futures_util::future::{BoxFuture, FutureExt as _};

/// Unpacks in this process, without a jail: the daemon's own tests have that.
pub struct Unpackers;

struct Unpacking(std::thread::JoinHandle<std::io::Result<()>>);

impl UnpackerLauncher for Unpackers {
    fn start(
        &self,
        unpacker: Unpacker,
    ) -> BoxFuture<'static, Result<Box<dyn RunningUnpacker>, Cause>> {
        let run = move || {
            let Unpacker {
                socket,
                blob,
                directory,
                ..
            } = unpacker;
            coracle_unpack::serve(&socket, blob, directory)
        };
        let running: Box<dyn RunningUnpacker> = Box::new(Unpacking(std::thread::spawn(run)));
        async { Ok(running) }.boxed()
    }
}

impl RunningUnpacker for Unpacking {
    fn end(self: Box<Self>) -> BoxFuture<'static, Result<(), Cause>> {
        let ended = self.0.join().unwrap();
        async { Ok(ended?) }.boxed()
    }
}
