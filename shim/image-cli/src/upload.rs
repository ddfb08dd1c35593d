//! Streams an archive to the daemon: a file, standard input, or a directory as a tar.
//!
//! Called by: `import`. Invariants: a few chunks are in memory at a time; a directory's links are sent as links; the last
//! message is marked as such only if the whole archive could be read.
//! Must not know: formats of archives.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use coracle_proto::archives::v1::ImportRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::Error;
use crate::progress::Count;

/// Bytes of one message.
const CHUNK: usize = 1 << 20;
/// Messages that wait for the daemon.
const QUEUE: usize = 4;

/// An archive on its way.
pub(crate) struct Upload {
    pub(crate) stream: ReceiverStream<ImportRequest>,
    pub(crate) failure: Failure,
}

/// What kept the archive from being read to its end.
#[derive(Clone, Default)]
pub(crate) struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    /// Errors: the archive could not be read.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let failure = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }
}

/// Begins to send `path`; `-` is standard input. Errors: there is no such file.
pub(crate) fn archive(
    path: &Path,
    reference: Option<&str>,
    pin: bool,
    count: &Count,
) -> Result<Upload, Error> {
    let source = Source::open(path, count)?;
    let count = count.clone();
    let (sender, receiver) = mpsc::channel(QUEUE);
    let head = ImportRequest {
        name: path.display().to_string(),
        reference: reference.unwrap_or_default().to_owned(),
        pin,
        data: Vec::new(),
        last: false,
    };
    let (failure, shown) = (Failure::default(), path.display().to_string());
    let failed = failure.clone();
    std::thread::spawn(move || {
        let mut chunks = Chunks {
            sender,
            pending: Some(head),
            buffer: Vec::with_capacity(CHUNK),
            count,
        };
        let sent = source.copy_to(&mut chunks).and_then(|()| chunks.send(true));
        // A daemon that stops listening has refused, and its answer says why.
        if let Err(error) = sent
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            let error = Error::because(&format!("read {shown}"), error);
            *failed.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    let stream = ReceiverStream::new(receiver);
    Ok(Upload { stream, failure })
}

enum Source {
    File(File),
    Input,
    Directory(PathBuf),
}

impl Source {
    /// Opens `path`. Errors: there is no such file.
    fn open(path: &Path, count: &Count) -> Result<Self, Error> {
        let read = |error| Error::because(&format!("read {}", path.display()), error);
        match path.to_str() {
            Some("-") => return Ok(Self::Input),
            _ if path.is_dir() => return Ok(Self::Directory(path.to_owned())),
            _ => {}
        }
        let file = File::open(path).map_err(read)?;
        count.expect(file.metadata().map_err(read)?.len());
        Ok(Self::File(file))
    }

    fn copy_to(self, chunks: &mut Chunks) -> io::Result<()> {
        match self {
            Self::File(mut file) => io::copy(&mut file, chunks).map(drop),
            Self::Input => io::copy(&mut io::stdin().lock(), chunks).map(drop),
            Self::Directory(path) => {
                let mut tar = tar::Builder::new(chunks);
                tar.follow_symlinks(false);
                tar.append_dir_all(".", path)?;
                tar.finish()
            }
        }
    }
}

/// Makes messages of what is written.
struct Chunks {
    sender: mpsc::Sender<ImportRequest>,
    /// The first message, until it was sent.
    pending: Option<ImportRequest>,
    buffer: Vec<u8>,
    count: Count,
}

impl Chunks {
    /// Sends what is in the buffer. `last`: the archive ends with it.
    fn send(&mut self, last: bool) -> io::Result<()> {
        self.count.add(self.buffer.len() as u64);
        let mut message = self.pending.take().unwrap_or_default();
        message.last = last;
        message.data = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        let sent = self.sender.blocking_send(message);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK {
            self.send(false)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.send(false)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    /// Whether each message is the last one, and what failed.
    fn sent(path: &Path) -> (Vec<bool>, Result<(), Error>) {
        let upload = archive(path, None, false, &Count::default()).unwrap();
        let mut messages = upload.stream.into_inner();
        let mut marks = Vec::new();
        while let Some(message) = messages.blocking_recv() {
            marks.push(message.last);
        }
        (marks, upload.failure.check())
    }

    #[test]
    fn only_an_archive_that_was_read_whole_ends() {
        let path = std::env::temp_dir().join(format!("image-cli-upload-{}", std::process::id()));
        std::fs::write(&path, vec![0; CHUNK + 1]).unwrap();
        let (marks, failure) = sent(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(failure.is_ok() && marks == [false, true], "{marks:?}");
        // Nothing is mapped at its beginning, so that a read fails.
        let (marks, failure) = sent(Path::new("/proc/self/mem"));
        assert!(failure.is_err() && !marks.contains(&true), "{marks:?}");
    }
}
