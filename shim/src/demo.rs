//! `coracle demo`.

/// Shows a pod's life.
pub fn main(_: &crate::cli::DemoArgs) -> Result<(), Box<dyn std::error::Error>> {
    Err("not here".into())
}
