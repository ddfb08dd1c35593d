//! The sizes of the client's terminal: a stream of JSON objects, of which only the latest matters.
//!
//! Called by: [`super::remote`]. Invariants: an object has at most [`MAX_OBJECT`] bytes; anything that is not a size is
//! skipped, however much there is of it.
//! Must not know: terminals.

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::watch;

use super::Size;

/// Longest object, bytes; clients send thirty.
const MAX_OBJECT: usize = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireSize {
    width: u16,
    height: u16,
}

/// Reads sizes until the stream ends. Objects may follow each other with or without line ends.
pub async fn follow(mut stream: impl AsyncRead + Unpin, newest: watch::Sender<Option<Size>>) {
    let mut object: Vec<u8> = Vec::new();
    let mut some = [0; 512];
    while let Ok(count @ 1..) = stream.read(&mut some).await {
        for byte in &some[..count] {
            match byte {
                b'{' => object.clear(),
                _ if object.len() >= MAX_OBJECT => object.clear(),
                _ => {}
            }
            object.push(*byte);
            if *byte == b'}'
                && let Ok(size) = serde_json::from_slice::<WireSize>(&object)
            {
                newest.send_replace(Some(Size {
                    width: size.width,
                    height: size.height,
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(bytes: &[u8]) -> Option<Size> {
        let (newest, seen) = watch::channel(None);
        follow(bytes, newest).await;
        *seen.borrow()
    }

    #[tokio::test]
    async fn the_newest_size_counts_however_the_stream_is_cut() {
        let size = |width, height| Some(Size { width, height });
        assert_eq!(after(b"{\"Width\":80,\"Height\":24}\n").await, size(80, 24));
        assert_eq!(
            after(b"{\"Width\":80,\"Height\":24}{\"Height\":50,\"Width\":132}").await,
            size(132, 50)
        );
        assert_eq!(
            after(b"garbage}{\"Width\":1,\"Height\":2} {\"Width\":70000,\"Height\":2}{").await,
            size(1, 2)
        );
        assert_eq!(after(b"").await, None);
        assert_eq!(after(&vec![b'{'; 100_000]).await, None);
        let mut noise = vec![b' '; 100_000];
        noise.extend_from_slice(b"{\"Width\":3,\"Height\":4}");
        assert_eq!(after(&noise).await, size(3, 4));
    }
}
