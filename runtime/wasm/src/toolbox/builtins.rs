//! `echo`, `sleep` and `test`, which a shell usually has built in: they use their arguments and no option parser.
//!
//! Invariant: a time or an expression that is not understood is an error, never ignored. It must not know other tools.

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::{Job, Streams};

/// `echo [-n] [STRING...]`.
pub(super) fn echo<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let strings = &job.wasm.args[1..];
    let (end, strings) = match strings.split_first() {
        Some((flag, rest)) if flag == "-n" => ("", rest),
        _ => ("\n", strings),
    };
    write!(streams.out, "{}{end}", strings.join(" "))
}

/// `sleep TIME...`: sleeps for the sum of the times, in seconds or with the suffix `s`, `m`, `h` or `d`.
pub(super) fn sleep<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let mut all = Duration::ZERO;
    if job.wasm.args.len() < 2 {
        return streams.complain(job.name, "it needs a time");
    }
    for text in &job.wasm.args[1..] {
        let Some(time) = duration(text) else {
            return streams.complain(job.name, &format!("{text:?} is not a time"));
        };
        all = all.saturating_add(time);
    }
    std::thread::sleep(all);
    Ok(())
}

fn duration(text: &str) -> Option<Duration> {
    let factors = [("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)];
    let unit = factors
        .into_iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (number, factor) = unit.unwrap_or((text, 1.0));
    if !number.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()
}

/// `test EXPRESSION`, `[ EXPRESSION ]`: exit code 0 if it is true, 1 if it is false, 2 if it cannot be parsed.
pub(super) fn test<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let mut operands: Vec<&str> = job.wasm.args[1..].iter().map(String::as_str).collect();
    if job.wasm.args[0].ends_with('[') && operands.pop() != Some("]") {
        streams.code = Some(2);
        return streams.complain(job.name, "its last argument is not ]");
    }
    match is_true(job, &operands) {
        Some(answer) => {
            streams.code = Some(i32::from(!answer));
            Ok(())
        }
        None => {
            streams.code = Some(2);
            let text = format!(
                "{:?} is not an expression that it supports",
                operands.join(" ")
            );
            streams.complain(job.name, &text)
        }
    }
}

/// Source: test(1p), without `-a` and `-o`, which it advises against.
fn is_true(job: &Job<'_>, operands: &[&str]) -> Option<bool> {
    match operands {
        [] => Some(false),
        [text] => Some(!text.is_empty()),
        [left, operator, right] if *left != "!" || operator.len() < 3 => {
            compare(left, operator, right)
                .or_else(|| (*left == "!").then(|| is_true(job, &operands[1..]).map(|is| !is))?)
        }
        ["!", rest @ ..] => is_true(job, rest).map(|is| !is),
        ["-z", text] => Some(text.is_empty()),
        ["-n", text] => Some(!text.is_empty()),
        [operator, path] => of_file(job, operator, path),
        _ => None,
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let numbers = || {
        Some((
            left.trim().parse::<i64>().ok()?,
            right.trim().parse::<i64>().ok()?,
        ))
    };
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "-eq" => numbers().map(|(l, r)| l == r)?,
        "-ne" => numbers().map(|(l, r)| l != r)?,
        "-lt" => numbers().map(|(l, r)| l < r)?,
        "-le" => numbers().map(|(l, r)| l <= r)?,
        "-gt" => numbers().map(|(l, r)| l > r)?,
        "-ge" => numbers().map(|(l, r)| l >= r)?,
        _ => return None,
    })
}

fn of_file(job: &Job<'_>, operator: &str, path: &str) -> Option<bool> {
    let path = job.path(path);
    let is = |check: fn(&Metadata) -> bool| fs::metadata(&path).is_ok_and(|found| check(&found));
    let may = |access| accessat(CWD, &path, access, AtFlags::empty()).is_ok();
    Some(match operator {
        "-e" => is(|_| true),
        "-f" => is(Metadata::is_file),
        "-d" => is(Metadata::is_dir),
        "-s" => is(|found| found.len() > 0),
        "-p" => is(|found| found.file_type().is_fifo()),
        "-S" => is(|found| found.file_type().is_socket()),
        "-h" | "-L" => fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()),
        "-r" => may(Access::READ_OK),
        "-w" => may(Access::WRITE_OK),
        "-x" => may(Access::EXEC_OK),
        _ => return None,
    })
}
