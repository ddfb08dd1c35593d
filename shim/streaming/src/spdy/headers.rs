//! Header blocks of SPDY/3: names and values, compressed with a preset dictionary.
//!
//! Called by: the reader of a session, which alone encodes and decodes them: each direction is one deflate stream, so
//! that blocks must be handled in the order of their frames.
//! Invariants: a block is at most [`MAX_BLOCK`] bytes once inflated and has at most [`MAX_PAIRS`] pairs; after an error
//! the direction is unusable. Must not know: frames.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// Longest inflated block, bytes; clients send one or two hundred.
const MAX_BLOCK: usize = 16 << 10;
/// Most pairs of a block.
const MAX_PAIRS: usize = 64;

/// Why a header block was refused.
#[derive(Debug, thiserror::Error)]
pub enum BadBlock {
    /// It is not deflated, or uses another dictionary.
    #[error("a header block that is not deflated with the SPDY/3 dictionary")]
    Inflate(#[source] Option<flate2::DecompressError>),
    /// It is larger than any client's.
    #[error("a header block of more than {MAX_BLOCK} bytes or {MAX_PAIRS} headers")]
    TooLarge,
    /// It ends inside a name or a value.
    #[error("a header block that ends in the middle of a header")]
    Truncated,
}

/// Headers of one stream; names are lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header, in any case; the first one where NULs join several.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut found = self
            .0
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().and_then(|(_, value)| value.split('\0').next())
    }

    /// The block before compression.
    fn to_block(&self) -> Vec<u8> {
        let mut block = (self.0.len() as u32).to_be_bytes().to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }

    fn from_block(block: &[u8]) -> Result<Headers, BadBlock> {
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > MAX_PAIRS {
            return Err(BadBlock::TooLarge);
        }
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut rest)?.to_ascii_lowercase();
            pairs.push((name, text(&mut rest)?));
        }
        Ok(Headers(pairs))
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Headers {
        let owned = pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        Headers(owned.into())
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, BadBlock> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(BadBlock::Truncated)?;
    *rest = tail;
    Ok(u32::from_be_bytes(*head) as usize)
}

fn text(rest: &mut &[u8]) -> Result<String, BadBlock> {
    let length = number(rest)?;
    let (head, tail) = rest.split_at_checked(length).ok_or(BadBlock::Truncated)?;
    *rest = tail;
    Ok(String::from_utf8_lossy(head).into_owned())
}

/// The receiving direction.
pub struct Inflater(Decompress);

impl Inflater {
    /// Before the first block.
    pub fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    /// Decodes the next block. Errors: see [`BadBlock`]; the session then cannot continue.
    pub fn read(&mut self, deflated: &[u8]) -> Result<Headers, BadBlock> {
        let mut block = vec![0; MAX_BLOCK + 1];
        let (mut taken, mut made) = (0, 0);
        while taken < deflated.len() {
            let (had_in, had_out) = (self.0.total_in(), self.0.total_out());
            let step = self.0.decompress(
                &deflated[taken..],
                &mut block[made..],
                FlushDecompress::Sync,
            );
            taken += (self.0.total_in() - had_in) as usize;
            made += (self.0.total_out() - had_out) as usize;
            match step {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|e| BadBlock::Inflate(Some(e)))?;
                }
                Err(error) => return Err(BadBlock::Inflate(Some(error))),
                Ok(_) if made > MAX_BLOCK => return Err(BadBlock::TooLarge),
                Ok(Status::Ok) => {}
                Ok(Status::BufError | Status::StreamEnd) => break,
            }
        }
        if taken < deflated.len() {
            return Err(BadBlock::Inflate(None));
        }
        Headers::from_block(&block[..made])
    }
}

/// The sending direction.
pub struct Deflater(Compress);

impl Deflater {
    /// Before the first block.
    pub fn new() -> Deflater {
        let mut stream = Compress::new(Compression::fast(), true);
        stream
            .set_dictionary(&DICTIONARY)
            .expect("a fresh deflate stream takes a dictionary");
        Deflater(stream)
    }

    /// Encodes the next block.
    pub fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let block = headers.to_block();
        let mut deflated = Vec::with_capacity(block.len() + 64);
        let began = self.0.total_in();
        loop {
            let taken = (self.0.total_in() - began) as usize;
            let step = self
                .0
                .compress_vec(&block[taken..], &mut deflated, FlushCompress::Sync);
            step.expect("deflate of bytes in memory cannot fail");
            if deflated.len() < deflated.capacity() {
                return deflated;
            }
            deflated.reserve(64);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_through_one_stream() {
        let (mut out, mut back) = (Deflater::new(), Inflater::new());
        for round in 0..40 {
            let id = round.to_string();
            let headers =
                Headers::from([("streamType", "data"), ("Port", "8080"), ("requestID", &id)]);
            assert_eq!(back.read(&out.write(&headers)).unwrap(), headers);
            assert_eq!(headers.get("requestid"), Some(id.as_str()));
        }
        assert_eq!(
            back.read(&out.write(&Headers::default())).unwrap(),
            Headers::default()
        );
    }

    /// What moby/spdystream v0.5.1 sends for `streamType: error`.
    #[test]
    fn a_block_of_the_go_client_is_read() {
        let headers = Inflater::new().read(GO_BLOCK).unwrap();
        assert_eq!(headers.get("streamtype"), Some("error"));
    }

    const GO_BLOCK: &[u8] = &[
        0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x62, 0x60, 0x60, 0x60, 0x4, 0xa7, 0xb3, 0x92, 0xa2,
        0xd4, 0xc4, 0x5c, 0x68, 0x51, 0xc2, 0x9a, 0xa, 0xa, 0x68, 0x0, 0x0, 0x0, 0x0, 0xff, 0xff,
    ];

    #[test]
    fn a_bomb_is_refused_while_it_is_inflated() {
        let mut out = Deflater::new();
        let bomb = Headers::from([("a", "x".repeat(1 << 20).as_str())]);
        let deflated = out.write(&bomb);
        assert!(deflated.len() < 32 << 10, "{}", deflated.len());
        assert!(matches!(
            Inflater::new().read(&deflated),
            Err(BadBlock::TooLarge)
        ));
    }

    #[test]
    fn garbage_and_cut_blocks_are_refused() {
        let garbage = Inflater::new().read(b"GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(garbage, Err(BadBlock::Inflate(_))), "{garbage:?}");
        let block = Headers::from([("streamType", "stdin")]).to_block();
        for end in 0..block.len() {
            assert!(
                matches!(Headers::from_block(&block[..end]), Err(BadBlock::Truncated)),
                "{end}"
            );
        }
        let many = [0, 0, 255, 255];
        assert!(matches!(
            Headers::from_block(&many),
            Err(BadBlock::TooLarge)
        ));
    }
}
