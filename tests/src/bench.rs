//! The benchmark: the same CRI driver against every contender in turn, on one machine, in one run.
//!
//! [`contender`] starts a runtime and knows what is its own; [`measure`] drives it, one pod at a time and then many;
//! [`report`] prints one table with ratios and the JSON that CI keeps. Nothing here knows what a runtime does inside.

pub mod contender;
pub mod measure;
pub mod memory;
pub mod report;
