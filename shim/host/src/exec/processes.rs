//! A container's processes as seen from inside, for the toolbox' `ps`.
//!
//! Called by: [`super`]. Invariants: a process that ends meanwhile is left out; nothing here fails, or waits for the memory
//! of a process.
//! Must not know: how they are printed.

use std::fs;

use coracle_cgroup::Cgroup;
use coracle_spec::ProcessRow;

/// Longest command that is shown, bytes.
const MAX_COMMAND: usize = 512;
/// Clock ticks per second in procfs. Source: proc(5), 100 on every Linux since 2.6.
const TICKS: u64 = 100;

/// The processes in `cgroup`, by their number in the container. `own` is the command line of the first one.
pub(super) fn rows(cgroup: &Cgroup, own: &str) -> Vec<ProcessRow> {
    let pids = cgroup.pids().unwrap_or_default();
    let mut rows: Vec<_> = pids.into_iter().filter_map(|pid| row(pid, own)).collect();
    rows.sort_by_key(|row| row.pid);
    rows
}

fn row(pid: i32, own: &str) -> Option<ProcessRow> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let inside = field("NSpid:")?.split_whitespace().last()?.parse().ok()?;
    // The name in parentheses may contain anything; the fields after it do not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
    let mut command = match inside {
        1 => own.to_owned(),
        // Its name. The command line is in its own memory, where a tenant can have the kernel wait.
        _ => field("Name:").unwrap_or_default().trim().to_owned(),
    };
    let end = (0..=MAX_COMMAND.min(command.len()))
        .rev()
        .find(|at| command.is_char_boundary(*at));
    command.truncate(end.unwrap_or(0));
    Some(ProcessRow {
        pid: inside,
        state: fields.first()?.chars().next()?,
        cpu_s: (ticks(11)? + ticks(12)?) / TICKS,
        command,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_number_state_and_command() {
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // Until it has executed sleep, it is a copy of this process.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let mut seen = row(pid, "unused").unwrap();
        while seen.command != "sleep" && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(2));
            seen = row(pid, "unused").unwrap();
        }
        let gone = row(i32::MAX, "unused");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((seen.cpu_s, gone), (0, None));
        assert!(['S', 'R', 'D'].contains(&seen.state), "{}", seen.state);
        assert_eq!(seen.command, "sleep", "{seen:?}");
    }
}
