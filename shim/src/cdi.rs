//! `coracle cdi list`: the devices of this node by name.
//!
//! Called by `main`. Invariant: no daemon is asked. Must not know: what a specification may say.

use std::io::{self, Write};

use coracle_config::Config;
use coracle_host::{CdiListing, cdi_devices};

use crate::host_config::live_config;

/// Prints the devices that the configured directories have.
pub fn list(config: &Config, json: bool, out: &mut dyn Write) -> io::Result<()> {
    let listing = cdi_devices(&live_config(config).devices);
    if json {
        let text = serde_json::to_string_pretty(&listing)?;
        return writeln!(out, "{text}");
    }
    print(&listing, out)
}

fn print(listing: &CdiListing, out: &mut dyn Write) -> io::Result<()> {
    let widest = listing.devices.iter().map(|device| device.name.len());
    let width = widest.max().unwrap_or(0);
    for device in &listing.devices {
        let place = device.specification.display();
        writeln!(out, "{:<width$}  {place}", device.name)?;
        if let Some(problem) = &device.problem {
            writeln!(out, "{:<width$}  cannot be used: {problem}", "")?;
        }
    }
    for broken in &listing.broken {
        writeln!(out, "not readable: {broken}")?;
    }
    if listing.devices.is_empty() && listing.broken.is_empty() {
        writeln!(out, "there are no specifications of devices on this node")?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::path::PathBuf;

    use coracle_host::CdiDevice;

    use super::*;

    #[test]
    fn devices_are_aligned_and_problems_said() {
        let device = |name: &str, problem: Option<&str>| CdiDevice {
            name: name.to_owned(),
            specification: PathBuf::from("/etc/cdi/v.json"),
            problem: problem.map(str::to_owned),
        };
        let listing = CdiListing {
            devices: vec![
                device("v.com/gpu=0", None),
                device("v.com/gpu=all", Some("a hook")),
            ],
            broken: vec!["/etc/cdi/x.json: it is larger than 1 byte".to_owned()],
        };
        let text = |listing: &CdiListing| {
            let mut out = Vec::new();
            print(listing, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let wanted = "\
v.com/gpu=0    /etc/cdi/v.json
v.com/gpu=all  /etc/cdi/v.json
               cannot be used: a hook
not readable: /etc/cdi/x.json: it is larger than 1 byte
";
        assert_eq!(text(&listing), wanted);
        let none = CdiListing {
            devices: Vec::new(),
            broken: Vec::new(),
        };
        assert!(text(&none).contains("no specifications"));
    }
}
