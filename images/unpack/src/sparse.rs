//! Sparse files in a tar: which parts of a file an entry has the data of. The rest are holes.
//!
//! Called by `archive`. The formats are GNU tar's: its old one, and PAX 0.0, 0.1 and 1.0; what is accepted follows Go's
//! `archive/tar`, by which containerd reads. Source: the manual of GNU tar, "Storing Sparse Files".
//! Invariants: parts are in order, do not overlap, end within the file, and together are as long as the entry's data;
//! everything else is refused, so that no two readers see different files. Not here: how large a map may be, the disk.

use std::io;

use tar::GnuSparseHeader;

use crate::pax::{bad, number};

/// A sparse file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// The size of the file. Bytes.
    pub size: u64,
    /// Where its data is: first byte, length.
    pub parts: Vec<(u64, u64)>,
}

impl Sparse {
    /// `numbers` are first bytes and lengths, one after the other; the entry has `data` bytes for them.
    pub(crate) fn new(size: u64, numbers: &[u64], data: u64) -> io::Result<Self> {
        let pairs = numbers.chunks_exact(2);
        let mut is_right = pairs.remainder().is_empty() && i64::try_from(size).is_ok();
        let (mut parts, mut end, mut sum) = (Vec::with_capacity(pairs.len()), 0, 0_u64);
        for pair in pairs {
            let (first, length) = (pair[0], pair[1]);
            is_right &= first >= end;
            end = first.saturating_add(length);
            is_right &= end <= size;
            sum = sum.saturating_add(length);
            parts.push((first, length));
        }
        if !is_right || sum != data {
            return Err(bad("the map of a sparse file is not one of its data"));
        }
        Ok(Self { size, parts })
    }

    /// How many bytes of it are in no archive.
    pub(crate) fn holes(&self) -> u64 {
        let data = self.parts.iter().map(|(_, length)| length).sum();
        self.size.saturating_sub(data)
    }
}

/// Adds the numbers of one header; what follows an empty place is none.
pub(crate) fn add_places(numbers: &mut Vec<u64>, places: &[GnuSparseHeader]) -> io::Result<()> {
    for place in places.iter().take_while(|place| !place.is_empty()) {
        numbers.extend([place.offset()?, place.length()?]);
    }
    Ok(())
}

/// What the PAX records of an entry say about it; empty for most.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// The name, where that of the header is one for readers that know nothing of this.
    pub name: Option<Vec<u8>>,
    size: Option<u64>,
    version: (Option<u64>, Option<u64>),
    count: Option<u64>,
    /// The map, if it is in the records.
    numbers: Vec<u64>,
}

impl Records {
    /// Reads `GNU.sparse.KEY=value`.
    pub(crate) fn read(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let is_in_order = |number: usize| self.numbers.len() % 2 == number;
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"major" => self.version.0 = Some(number(value)?),
            b"minor" => self.version.1 = Some(number(value)?),
            b"numblocks" => self.count = Some(number(value)?),
            b"offset" if is_in_order(0) => self.numbers.push(number(value)?),
            b"numbytes" if is_in_order(1) => self.numbers.push(number(value)?),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(number);
                self.numbers = numbers.collect::<io::Result<_>>()?;
            }
            _ => return Err(bad("a record about a sparse file is not known")),
        }
        Ok(())
    }

    /// Whether there were any.
    pub(crate) fn is_empty(&self) -> bool {
        let Self {
            name,
            size,
            version,
            count,
            numbers,
        } = self;
        name.is_none()
            && size.is_none()
            && *version == (None, None)
            && count.is_none()
            && numbers.is_empty()
    }

    /// The size of the file, and its map; `None` if that stands before the data. Errors: the version is not known.
    pub(crate) fn finish(self) -> io::Result<(u64, Option<Vec<u64>>)> {
        let size = self.size.ok_or_else(|| bad("a sparse file has no size"))?;
        let has_all = self
            .count
            .is_none_or(|count| count.saturating_mul(2) == self.numbers.len() as u64);
        match self.version {
            (Some(1), Some(0)) if self.numbers.is_empty() => Ok((size, None)),
            (None, None) | (Some(0), Some(0 | 1)) if has_all && !self.numbers.is_empty() => {
                Ok((size, Some(self.numbers)))
            }
            _ => Err(bad("the format of a sparse file is not known")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;

    #[test]
    fn only_a_map_of_all_data_in_order_is_taken() {
        let sparse = Sparse::new(100, &[10, 20, 30, 5, 100, 0], 25).unwrap();
        assert_eq!(sparse.parts, [(10, 20), (30, 5), (100, 0)]);
        assert_eq!(sparse.holes(), 75);
        for (what, size, numbers, data) in [
            ("less data", 100, &[10, 20][..], 19),
            ("more data", 100, &[10, 20], 21),
            ("an overlap", 100, &[10, 20, 29, 5], 25),
            ("out of order", 100, &[30, 5, 10, 20], 25),
            ("beyond the end", 100, &[90, 11], 11),
            ("an end beyond all numbers", 100, &[u64::MAX, 2], 2),
            ("half a pair", 100, &[10, 20, 30], 20),
            ("a size that no file has", 1 << 63, &[], 0),
        ] {
            assert!(Sparse::new(size, numbers, data).is_err(), "{what}");
        }
    }

    #[test]
    fn records_of_unknown_or_mixed_formats_are_refused() {
        let read = |records: &[(&str, &str)]| {
            let mut all = Records::default();
            for (key, value) in records {
                all.read(key.as_bytes(), value.as_bytes())?;
            }
            assert!(!all.is_empty());
            all.finish()
        };
        let version = |major, minor| [("size", "9"), ("major", major), ("minor", minor)];
        assert_eq!(read(&version("1", "0")).unwrap(), (9, None));
        let map = [("size", "9"), ("numblocks", "1"), ("map", "4,5")];
        assert_eq!(read(&map).unwrap(), (9, Some(vec![4, 5])));
        let pairs = [("size", "9"), ("offset", "4"), ("numbytes", "5")];
        assert_eq!(read(&pairs).unwrap(), (9, Some(vec![4, 5])));
        for records in [
            &version("1", "1")[..],
            &version("2", "0"),
            &version("0", "1"),
            &[("major", "1"), ("minor", "0")],
            &[("size", "9"), ("numblocks", "2"), ("map", "4,5")],
            &[("size", "9"), ("map", "")],
            &[("size", "9"), ("numbytes", "5")],
            &[("size", "9"), ("offset", "4"), ("offset", "5")],
            &[
                ("size", "9"),
                ("major", "1"),
                ("minor", "0"),
                ("map", "4,5"),
            ],
            &[("else", "9")],
        ] {
            assert!(read(records).is_err(), "{records:?}");
        }
    }
}
