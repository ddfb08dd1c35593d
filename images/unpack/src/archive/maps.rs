//! Reads the maps of sparse files out of a tar stream: from a header and what follows it, or from before the data.
//!
//! Called by the parent, between a header and its data. Invariant: a map is counted as an extension of its entry before it
//! is read. Not here: which maps are right ([`crate::sparse`]).

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::{Archive, BLOCK, Extensions, fill};
use crate::pax::{bad, number};
use crate::sparse::{Sparse, add_places};

impl<R: Read> Archive<R> {
    /// What `header`, which has just been read, and its extensions say of a file with holes. Reads a map before the data.
    pub(super) fn sparse(
        &mut self,
        header: &Header,
        extensions: &mut Extensions,
    ) -> io::Result<Option<Sparse>> {
        let is_plain = extensions.sparse.is_empty();
        let (size, numbers) = match header.entry_type() {
            EntryType::GNUSparse if is_plain => self.old_map(header)?,
            _ if is_plain => return Ok(None),
            EntryType::Regular => {
                let mut records = std::mem::take(&mut extensions.sparse);
                extensions.path = records.name.take().or(extensions.path.take());
                let (size, numbers) = records.finish()?;
                (size, numbers.map_or_else(|| self.map(), Ok)?)
            }
            _ => return Err(bad("only a file can be sparse")),
        };
        Sparse::new(size, &numbers, self.data_left).map(Some)
    }

    /// The size and map of GNU tar's old format: in the header and in blocks behind it, which its size does not count.
    fn old_map(&mut self, header: &Header) -> io::Result<(u64, Vec<u64>)> {
        let gnu = header.as_gnu();
        let gnu = gnu.ok_or_else(|| bad("a sparse file has another header than GNU tar's"))?;
        let mut numbers = Vec::new();
        add_places(&mut numbers, &gnu.sparse)?;
        let mut has_more = gnu.is_extended();
        while has_more {
            self.pay(0)?;
            let mut more = GnuExtSparseHeader::new();
            if fill(&mut self.reader, more.as_mut_bytes())? < BLOCK as usize {
                return Err(bad("the map of a sparse file is cut off"));
            }
            add_places(&mut numbers, more.sparse())?;
            has_more = more.is_extended();
        }
        Ok((gnu.real_size()?, numbers))
    }

    /// The map of PAX format 1.0, before the data: lines of numbers, first how many pairs, in whole blocks.
    fn map(&mut self) -> io::Result<Vec<u64>> {
        let (mut numbers, mut wanted, mut line) = (Vec::new(), 1, Vec::new());
        while numbers.len() < wanted {
            self.pay(0)?;
            let mut block = [0; BLOCK as usize];
            let mut at = 0;
            while at < block.len() {
                match self.read(&mut block[at..])? {
                    0 => return Err(bad("the map of a sparse file is cut off")),
                    count => at += count,
                }
            }
            for byte in block {
                match byte {
                    _ if numbers.len() == wanted => break,
                    b'\n' => numbers.push(number(&std::mem::take(&mut line))?),
                    other => line.push(other),
                }
                if let ([pairs], 1) = (&numbers[..], wanted) {
                    let pairs = usize::try_from(*pairs).unwrap_or(usize::MAX);
                    wanted = pairs.saturating_mul(2).saturating_add(1);
                }
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }
}
