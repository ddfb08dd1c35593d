//! How much memory a guest may have: all its linear memories, GC heaps and tables together.
//!
//! Part of the store data that [`super::host`] makes; the engine calls it at each growth.
//! Invariant: what was granted never exceeds the container's memory limit. The container's cgroup holds whatever else the
//! process uses, so that a container without a limit has none here either.
//! Must not know: what a program does with its memory.

use wasmtime::ResourceLimiter;

/// Bytes that one element of a table is counted as.
const ELEMENT_BYTES: usize = size_of::<usize>();

/// The memory of one store.
#[derive(Debug)]
pub struct Limits {
    /// Bytes; `usize::MAX` for none.
    limit: usize,
    granted: usize,
    /// The last grant, until it is known to have succeeded.
    latest: usize,
    /// Set when a growth was refused.
    refused: bool,
}

impl Limits {
    /// At most `limit_bytes` for everything together; `None` is no limit.
    pub fn new(limit_bytes: Option<u64>) -> Self {
        let limit = limit_bytes.map_or(usize::MAX, |bytes| {
            usize::try_from(bytes).unwrap_or(usize::MAX)
        });
        Self {
            limit,
            granted: 0,
            latest: 0,
            refused: false,
        }
    }

    /// The limit, if a growth was refused because of it. Bytes.
    pub fn refused_beyond(&self) -> Option<usize> {
        self.refused.then_some(self.limit)
    }

    /// Whether something may grow from `current` to `desired` units of `unit` bytes each.
    fn grow(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
        unit: usize,
    ) -> bool {
        // What the program itself has ruled out is no shortage.
        let is_possible = maximum.is_none_or(|maximum| desired <= maximum);
        let bytes = desired.saturating_sub(current).saturating_mul(unit);
        is_possible && self.grant(bytes)
    }

    fn grant(&mut self, bytes: usize) -> bool {
        match self.granted.checked_add(bytes) {
            Some(total) if total <= self.limit => {
                (self.granted, self.latest) = (total, bytes);
                true
            }
            _ => {
                self.refused = true;
                false
            }
        }
    }

    fn take_back(&mut self) {
        self.granted -= std::mem::take(&mut self.latest);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grow(current, desired, maximum, 1))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grow(current, desired, maximum, ELEMENT_BYTES))
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn memories_heaps_and_tables_share_one_limit() {
        let mut limits = Limits::new(Some(100_000));
        assert!(limits.memory_growing(0, 65_536, None).unwrap());
        assert!(limits.table_growing(0, 1_000, None).unwrap());
        assert!(!limits.memory_growing(0, 65_536, None).unwrap());
        assert_eq!(limits.refused_beyond(), Some(100_000));
        // What the kernel did not give is free again.
        assert!(limits.memory_growing(65_536, 80_000, None).unwrap());
        limits
            .memory_grow_failed(wasmtime::Error::msg("no memory"))
            .unwrap();
        assert!(limits.memory_growing(65_536, 80_000, None).unwrap());
    }

    #[test]
    fn a_programs_own_maximum_is_no_refusal() {
        let mut limits = Limits::new(None);
        assert!(!limits.memory_growing(0, 2, Some(1)).unwrap());
        assert_eq!(limits.refused_beyond(), None);
        assert!(limits.memory_growing(0, usize::MAX, None).unwrap());
    }
}
