//! `ls`, `cat`, `env`, `ps`, `stat` and `df` for Wasm containers, whose images have no such programs.
//!
//! [`super::run`] calls it in the jail of an exec, in place of compiled code: the tools have the guest's root,
//! environment, files, user and system call filters.
//! Invariants: a tool executes nothing and writes only to the standard streams. After an argument that fails it goes on
//! with the next, and its exit code is 1.
//! It must not know which command names are tools, or whether a container may use them.

mod cat;
mod df;
mod ls;
mod stat;
mod text;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use coracle_spec::{ContainerSpec, Identity, Tool, Toolbox, WasmSpec};

/// One invocation of a tool.
struct Job<'a> {
    /// Its name, the prefix of its errors.
    name: &'a str,
    /// Flags, without their dashes.
    flags: Vec<char>,
    /// The other arguments.
    operands: Vec<&'a str>,
    spec: &'a ContainerSpec,
    wasm: &'a WasmSpec,
}

/// Where a tool writes, and whether something went wrong.
struct Streams<O, E> {
    out: O,
    err: E,
    failed: bool,
}

/// Runs the tool of `toolbox` and returns its exit code.
pub(super) fn run(spec: &ContainerSpec, wasm: &WasmSpec, toolbox: &Toolbox) -> i32 {
    let mut streams = Streams {
        out: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
        err: io::stderr().lock(),
        failed: false,
    };
    let ran = work(spec, wasm, toolbox, &mut streams).and_then(|()| streams.out.flush());
    // A closed output fails without a message.
    i32::from(ran.is_err() || streams.failed)
}

/// Errors: the output is closed.
fn work<O: Write, E: Write>(
    spec: &ContainerSpec,
    wasm: &WasmSpec,
    toolbox: &Toolbox,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let (name, known) = match toolbox.tool {
        Tool::Ls => ("ls", "laA1hd"),
        Tool::Cat => ("cat", "u"),
        Tool::Env => ("env", ""),
        Tool::Ps => ("ps", "aefwx"),
        Tool::Stat => ("stat", "L"),
        Tool::Df => ("df", "hkP"),
    };
    let job = match Job::parse(name, known, spec, wasm) {
        Ok(job) => job,
        Err(text) => return streams.complain(name, &text),
    };
    match toolbox.tool {
        Tool::Ls => ls::run(&job, streams),
        Tool::Cat => cat::run(&job, streams),
        Tool::Env => environment(&job, streams),
        Tool::Ps => processes(toolbox, streams),
        Tool::Stat => stat::run(&job, streams),
        Tool::Df => df::run(&job, streams),
    }
}

impl<'a> Job<'a> {
    /// Parses the arguments. Errors: the message for a flag that is not `known`.
    fn parse(
        name: &'a str,
        known: &str,
        spec: &'a ContainerSpec,
        wasm: &'a WasmSpec,
    ) -> Result<Self, String> {
        let (mut flags, mut operands, mut open) = (Vec::new(), Vec::new(), true);
        for argument in wasm.args.iter().skip(1).map(String::as_str) {
            match argument
                .strip_prefix('-')
                .filter(|rest| open && !rest.is_empty())
            {
                Some("-") => open = false,
                Some(letters) => flags.extend(letters.chars()),
                None => operands.push(argument),
            }
        }
        if let Some(odd) = flags.iter().find(|flag| !known.contains(**flag)) {
            return Err(match known {
                "" => format!("it has no options, and was given -{odd}"),
                _ => format!("it has no option -{odd}; it has -{known}"),
            });
        }
        Ok(Self {
            name,
            flags,
            operands,
            spec,
            wasm,
        })
    }

    fn has(&self, flag: char) -> bool {
        self.flags.contains(&flag)
    }

    /// `operand` as a path relative to the container's working directory.
    fn path(&self, operand: &str) -> PathBuf {
        Path::new(&self.wasm.working_dir).join(operand)
    }

    /// A size in bytes, or with `-h` in larger units.
    fn size(&self, bytes: u64) -> String {
        match self.has('h') {
            true => text::human(bytes),
            false => bytes.to_string(),
        }
    }
}

impl<O: Write, E: Write> Streams<O, E> {
    /// Writes an error; the tool goes on and will exit 1.
    fn complain(&mut self, name: &str, text: &str) -> io::Result<()> {
        self.failed = true;
        self.out.flush()?;
        writeln!(self.err, "{name}: {text}")
    }

    /// Writes that `operand` failed; the tool goes on and will exit 1.
    fn cannot(&mut self, job: &Job<'_>, operand: &str, error: &io::Error) -> io::Result<()> {
        let why = text::reason(error);
        self.complain(job.name, &format!("{operand}: {why}"))
    }
}

fn environment<O: Write, E: Write>(job: &Job<'_>, streams: &mut Streams<O, E>) -> io::Result<()> {
    if let Some(operand) = job.operands.first() {
        return streams.complain(job.name, &format!("{operand}: it runs no programs"));
    }
    for (name, value) in &job.wasm.env {
        writeln!(streams.out, "{name}={value}")?;
    }
    Ok(())
}

fn processes<O: Write, E: Write>(toolbox: &Toolbox, streams: &mut Streams<O, E>) -> io::Result<()> {
    writeln!(streams.out, "{:>7} STAT     TIME COMMAND", "PID")?;
    for row in &toolbox.processes {
        let (minutes, seconds) = (row.cpu_s / 60, row.cpu_s % 60);
        writeln!(
            streams.out,
            "{:>7} {:<4} {minutes:>5}:{seconds:02} {}",
            row.pid, row.state, row.command
        )?;
    }
    Ok(())
}

/// A host id as the container sees it; ids outside the pod's range are not translated.
fn inside(identity: &Identity, id: u32) -> u32 {
    match id.checked_sub(identity.range.base) {
        Some(own) if own < identity.range.size => own,
        _ => id,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
