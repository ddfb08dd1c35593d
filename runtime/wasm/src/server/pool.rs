//! An engine that reserves, at the start, room for all instances that a server may have at a time.
//!
//! Called by [`super`]. Reserved is address space, not memory; what an instance has touched is kept for the next one up
//! to a bound, so that a request needs no system call for its memory.
//! Invariant: a slot is never larger than the container's memory limit, and what one instance wrote is gone before the
//! next one has the slot.
//! Not here: how many requests are let in.

use wasmtime::component::Component;
use wasmtime::{Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::engine::{self, Extras};
use coracle_spec::HttpServer;
use coracle_spec::error::Result;

/// Instances that are being given back while their requests are answered already.
const SPARE: u32 = 16;
/// Most slots, whatever the settings say: 4 GiB of address space each.
const MAX_SLOTS: u32 = 4_096;
/// Core instances of one component: its modules, adapters and shims.
const CORE_INSTANCES: u32 = 64;
/// Most and least of a memory that is cleared and kept rather than given back to the kernel: giving it back and faulting it
/// in again halves the requests a second of a component whose stack and data lie behind the first MiB, as Rust's do. Bytes.
const MAX_KEPT: usize = 2 << 20;
const MIN_KEPT: usize = 64 * 1024;
/// Which part of the memory limit all kept memory may be: one of so many.
const KEPT_PART: u64 = 4;
/// The same of a table. Bytes.
const KEPT_TABLE: usize = 64 * 1024;
/// The largest slot: what the engine reserves for a memory. Bytes.
const MAX_MEMORY: u64 = 1 << 32;
/// Largest metadata of one core instance. Bytes.
const MAX_METADATA: usize = 4 << 20;
const PAGE: u64 = 64 * 1024;

/// What one instance of a component takes from a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// Linear memories of all its modules.
    memories: u32,
    /// Tables of all its modules.
    tables: u32,
    /// The most elements that one of its tables may have.
    table_elements: usize,
}

impl Needs {
    /// What the components that compilers make stay below: one of their modules has a memory, two have a table.
    pub(super) const USUAL: Self = Self {
        memories: 1,
        tables: 4,
        table_elements: 20_000,
    };

    /// Those of `component`, and never less than usual. What has no bound is taken to be usual.
    pub(super) fn of(component: &Component) -> Self {
        let usual = Self::USUAL;
        let Some(own) = component.resources_required() else {
            return usual;
        };
        let elements = own.max_initial_table_size.unwrap_or(0);
        Self {
            memories: own.num_memories.clamp(usual.memories, 64),
            tables: own.num_tables.clamp(usual.tables, 64),
            table_elements: usize::try_from(elements)
                .unwrap_or(usize::MAX)
                .max(usual.table_elements),
        }
    }
}

/// An engine behind `server` for components with these needs, whose instances have at most `memory` bytes each, with
/// `extras`.
///
/// Errors: there is not so much address space.
pub(super) fn engine(
    needs: Needs,
    server: &HttpServer,
    memory: Option<u64>,
    extras: Extras,
) -> Result<Engine> {
    let pool = pool(needs, server, memory, extras);
    engine::running(extras, |config| {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    })
}

/// Room for as many instances with these needs as there may be requests.
fn pool(
    needs: Needs,
    server: &HttpServer,
    memory: Option<u64>,
    extras: Extras,
) -> PoolingAllocationConfig {
    let slots = server.limits.max_requests.min(MAX_SLOTS) + SPARE;
    // An instance runs one call at a time, but for WASI 0.3, whose tasks have a stack each. Each costs a system call at the
    // start.
    let stacks = if extras.wasi_p3 { 2 } else { 1 };
    let bytes = memory.unwrap_or(MAX_MEMORY).min(MAX_MEMORY);
    let bytes = usize::try_from(bytes.next_multiple_of(PAGE)).unwrap_or(usize::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(CORE_INSTANCES))
        .max_component_instance_size(MAX_METADATA)
        .max_core_instance_size(MAX_METADATA)
        .total_memories(slots.saturating_mul(needs.memories))
        .max_memories_per_module(needs.memories)
        .total_tables(slots.saturating_mul(needs.tables))
        .max_tables_per_module(needs.tables)
        .table_elements(needs.table_elements)
        .total_stacks(slots.saturating_mul(stacks))
        .total_gc_heaps(slots)
        .max_memory_size(bytes)
        .linear_memory_keep_resident(kept(memory, slots))
        .table_keep_resident(KEPT_TABLE);
    pool
}

/// How much of a memory is cleared and kept, where a container may have `limit` bytes for all `slots`.
///
/// What is kept is lost to a container that later needs more for fewer requests, so it is a part of its limit.
fn kept(limit: Option<u64>, slots: u32) -> usize {
    let share = limit.map_or(u64::MAX, |bytes| bytes / KEPT_PART / u64::from(slots));
    usize::try_from(share)
        .unwrap_or(usize::MAX)
        .clamp(MIN_KEPT, MAX_KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_a_part_of_the_limit() {
        assert_eq!(kept(None, 144), MAX_KEPT);
        let (limit, slots) = (512 << 20, 144);
        let all = kept(Some(limit), slots) as u64 * u64::from(slots);
        assert!(
            all <= limit / KEPT_PART && all > limit / KEPT_PART / 2,
            "{all}"
        );
        assert_eq!(kept(Some(1 << 20), slots), MIN_KEPT);
    }
}
