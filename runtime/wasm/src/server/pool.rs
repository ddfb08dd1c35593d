//! An engine that reserves, at the start, room for all instances that a server may have at a time.
//!
//! Called by [`super`]. Reserved is address space, not memory; what an instance has touched is kept for the next one up
//! to a bound, so that a request needs no system call for its memory.
//! Invariant: a slot is never larger than the container's memory limit, and what one instance wrote is gone before the
//! next one has the slot.
//! Not here: how many requests are let in.

use wasmtime::component::Component;
use wasmtime::{InstanceAllocationStrategy, PoolingAllocationConfig, ResourcesRequired};

use crate::engine::{Extras, Warm};
use coracle_spec::HttpServer;
use coracle_spec::error::Result;

/// Instances that are being given back while their requests are answered already.
const SPARE: u32 = 16;
/// Most slots, whatever the settings say: 4 GiB of address space each.
const MAX_SLOTS: u32 = 4_096;
/// Core instances of one component: its modules, adapters and shims.
const CORE_INSTANCES: u32 = 64;
/// Elements of a table unless the component starts with more.
const TABLE_ELEMENTS: usize = 20_000;
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

/// An engine for `component` behind `server`, whose instances have at most `memory` bytes each, with `extras`.
///
/// Errors: there is not so much address space.
pub(super) fn engine(
    component: &Component,
    server: &HttpServer,
    memory: Option<u64>,
    extras: Extras,
) -> Result<Warm> {
    let pool = pool(component.resources_required(), server, memory);
    Warm::for_components(extras, |config| {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    })
}

/// Room for as many instances with these needs as there may be requests. Needs are unknown where they have no bound.
fn pool(
    needs: Option<ResourcesRequired>,
    server: &HttpServer,
    memory: Option<u64>,
) -> PoolingAllocationConfig {
    let count = |own: fn(&ResourcesRequired) -> u32| needs.as_ref().map_or(1, own).clamp(1, 64);
    let (memories, tables) = (count(|own| own.num_memories), count(|own| own.num_tables));
    let elements = needs
        .and_then(|own| own.max_initial_table_size)
        .unwrap_or(0);
    let elements = usize::try_from(elements).unwrap_or(usize::MAX);
    let slots = server.limits.max_requests.min(MAX_SLOTS) + SPARE;
    let bytes = memory.unwrap_or(MAX_MEMORY).min(MAX_MEMORY);
    let bytes = usize::try_from(bytes.next_multiple_of(PAGE)).unwrap_or(usize::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(CORE_INSTANCES))
        .max_component_instance_size(MAX_METADATA)
        .max_core_instance_size(MAX_METADATA)
        .total_memories(slots.saturating_mul(memories))
        .max_memories_per_module(memories)
        .total_tables(slots.saturating_mul(tables))
        .max_tables_per_module(tables)
        .table_elements(elements.max(TABLE_ELEMENTS))
        .total_stacks(slots.saturating_mul(2))
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
