//! `power [CUTS]`: switches a machine off that many times (50 unless said) while its daemon churns pods; fails on
//! anything that a power loss must not take. `power guest ORDER` is what runs in the machine.

use std::io::Write;

use coracle_tests::Outcome;
use coracle_tests::power;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let cuts = match arguments[..] {
        ["guest", order] => return power::guest_main(order.as_ref()),
        [] => 50,
        [text] => text
            .parse()
            .map_err(|e| format!("`{text}` is not a number of cuts: {e}"))?,
        _ => return Err("power [CUTS]".into()),
    };
    let report = power::run(cuts)?;
    writeln!(std::io::stdout(), "nothing was lost: {report:?}")?;
    Ok(())
}
