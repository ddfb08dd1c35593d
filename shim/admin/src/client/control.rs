//! The commands that change how the daemon runs, and the one that says what it waits for.
//!
//! Called by: [`super`]. Invariant: a configuration that was refused is an exit code of 1, with `--json` as well.
//! Must not know: settings.

use std::io::{self, Write as _};

use coracle_proto::admin::v1 as admin;

use super::screen::{self, Screen};
use super::{Daemon, Error, say};

/// The longest time for a change of the log, in seconds: a week.
const LONGEST: u64 = 7 * 86_400;

/// `coracle reload`.
pub(super) async fn reload(daemon: &mut Daemon, json: bool) -> Result<u8, Error> {
    let reply = daemon.client.reload(admin::ReloadRequest {}).await;
    let reply = daemon.answer(reply)?;
    let is_refused = !reply.error.is_empty();
    if is_refused && !json {
        let text = screen::plain(&format!("coracle: {}; nothing was applied", reply.error));
        // Without standard error nobody can read it.
        let _ = writeln!(io::stderr(), "{text}");
        return Ok(1);
    }
    say(json, &reply, || reloaded(&reply))?;
    Ok(u8::from(is_refused))
}

fn reloaded(reply: &admin::ReloadReply) -> String {
    let mut text = match reply.applied.as_slice() {
        [] if reply.waiting.is_empty() => "nothing has changed\n".to_owned(),
        [] => String::new(),
        applied => format!("in force now: {}\n", applied.join(", ")),
    };
    if !reply.waiting.is_empty() {
        let waiting = reply.waiting.join(", ");
        text +=
            &format!("waiting for a restart of the daemon, which pods do not notice: {waiting}\n");
    }
    print_lines(&text)
}

/// The text without control characters but the ends of lines.
fn print_lines(text: &str) -> String {
    text.lines()
        .map(|line| screen::plain(line) + "\n")
        .collect()
}

/// `coracle log-level`: level, target, and for how many seconds, 0 until the daemon ends.
pub(super) async fn set_log_level(
    daemon: &mut Daemon,
    (level, target, for_s): (String, String, u64),
    json: bool,
) -> Result<u8, Error> {
    let is_configured = level == "configured";
    let request = admin::SetLogLevelRequest {
        level: if is_configured { String::new() } else { level },
        target,
        for_s,
    };
    let reply = daemon.client.set_log_level(request).await;
    let reply = daemon.answer(reply)?;
    let line = |level: &admin::LogLevel| match level.target.as_str() {
        "" => format!("{}\n", level.level),
        target => format!("{target} {}\n", level.level),
    };
    let lines = || print_lines(&reply.levels.iter().map(line).collect::<String>());
    say(json, &reply, lines)?;
    Ok(0)
}

/// `coracle debug tasks`.
pub(super) async fn tasks(daemon: &mut Daemon, json: bool) -> Result<u8, Error> {
    let reply = daemon.client.tasks(admin::TasksRequest {}).await;
    let reply = daemon.answer(reply)?;
    say(json, &reply, || {
        let waiting = reply.tasks.iter().filter(|task| !task.waits.is_empty());
        let mut text = format!("{} pods, {} wait\n", reply.tasks.len(), waiting.count());
        text += &Screen::of_output().table(&rows(&reply.tasks));
        text
    })?;
    Ok(0)
}

fn rows(tasks: &[admin::Task]) -> Vec<Vec<String>> {
    let heads = ["NAMESPACE/POD", "PHASE", "FOR", "WAITS FOR"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(tasks.iter().map(|task| {
        let waits = match task.waits.as_slice() {
            [] => "-".to_owned(),
            waits => waits.join("; "),
        };
        vec![
            format!("{}/{}", task.namespace, task.pod),
            task.phase.clone(),
            format!("{} ms", task.phase_ms),
            waits,
        ]
    }));
    rows
}

/// The seconds of `30s`, `10m`, `2h` or `1d`.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "must be a time such as 30s, 10m or 2h, at most {} days",
            LONGEST / 86_400
        )
    };
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let seconds = number
        .checked_mul(unit)
        .filter(|seconds| (1..=LONGEST).contains(seconds));
    seconds.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_an_end() {
        let good = ["1s", "10m", "2h", "7d"].map(seconds);
        assert_eq!(good, [Ok(1), Ok(600), Ok(7200), Ok(LONGEST)]);
        for text in [
            "",
            "10",
            "m",
            "0s",
            "-1s",
            "8d",
            "1w",
            "99999999999999999999s",
            "1é",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reload_says_what_holds_and_what_waits() {
        let of = |applied: &[&str], waiting: &[&str]| {
            let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            reloaded(&admin::ReloadReply {
                error: String::new(),
                applied: names(applied),
                waiting: names(waiting),
            })
        };
        assert_eq!(of(&[], &[]), "nothing has changed\n");
        assert_eq!(of(&["a", "b"], &[]), "in force now: a, b\n");
        let waiting = "waiting for a restart of the daemon, which pods do not notice: c\n";
        assert_eq!(of(&[], &["c"]), waiting);
        assert_eq!(of(&["a"], &["c"]), format!("in force now: a\n{waiting}"));
    }
}
