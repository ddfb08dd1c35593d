//! An engine that reserves, at the start, room for all instances that a server may have at a time.
//!
//! Called by [`super`]. Reserved is address space, not memory; what an instance has touched is kept for the next one up
//! to a bound, so that a request needs no system call for its memory.
//! Invariant: a slot is never larger than the container's memory limit, and what one instance wrote is gone before the
//! next one has the slot.
//! Not here: how many requests are let in.

use wasmtime::component::Component;
use wasmtime::{InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::engine::Warm;
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
/// How much of a slot is cleared and kept rather than given back to the kernel. Bytes.
const KEPT_MEMORY: usize = 256 * 1024;
const KEPT_TABLE: usize = 16 * 1024;
const KEPT_STACK: usize = 16 * 1024;
/// The largest slot: what the engine reserves for a memory. Bytes.
const MAX_MEMORY: u64 = 1 << 32;
/// Largest metadata of one core instance. Bytes.
const MAX_METADATA: usize = 4 << 20;
const PAGE: u64 = 64 * 1024;

/// An engine for `component` behind `server`, whose instances have at most `memory` bytes each.
///
/// Errors: there is not so much address space.
pub(super) fn engine(
    component: &Component,
    server: &HttpServer,
    memory: Option<u64>,
) -> Result<Warm> {
    let needs = component.resources_required();
    let memories = needs
        .as_ref()
        .map_or(1, |needs| needs.num_memories)
        .clamp(1, 64);
    let tables = needs
        .as_ref()
        .map_or(1, |needs| needs.num_tables)
        .clamp(1, 64);
    let elements = needs
        .as_ref()
        .and_then(|needs| needs.max_initial_table_size);
    let elements = elements.map_or(TABLE_ELEMENTS, |own| {
        usize::try_from(own)
            .unwrap_or(usize::MAX)
            .max(TABLE_ELEMENTS)
    });
    let slots = server.max_requests.min(MAX_SLOTS) + SPARE;
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
        .table_elements(elements)
        .total_stacks(slots.saturating_mul(2))
        .total_gc_heaps(slots)
        .max_memory_size(bytes)
        .linear_memory_keep_resident(KEPT_MEMORY)
        .table_keep_resident(KEPT_TABLE)
        .async_stack_keep_resident(KEPT_STACK);
    Warm::with(|config| {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    })
}
