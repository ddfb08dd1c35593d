//! Small programs for Wasm containers, whose images have none; docs/wasm/toolbox.md lists them.
//!
//! [`super::run`] calls it in the jail of an exec, in place of compiled code: the tools have the guest's root,
//! environment, files, user, system call filters and egress policy.
//! Invariants: a tool executes nothing and writes only to the standard streams and to a download's named file. After an
//! argument that fails it goes on with the next, and its exit code is 1 unless the tool defines another.
//! It must not know which command names are tools, whether a container may use them, or `sh -c`.

mod builtins;
mod cat;
mod df;
mod files;
mod find;
mod ls;
mod net;
mod options;
mod pattern;
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
    /// The exit code, if not the usual one.
    code: Option<i32>,
}

/// Runs the tool of `toolbox` and returns its exit code.
pub(super) fn run(spec: &ContainerSpec, wasm: &WasmSpec, toolbox: &Toolbox) -> i32 {
    let mut streams = Streams {
        out: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
        err: io::stderr().lock(),
        failed: false,
        code: None,
    };
    let ran = work(spec, wasm, toolbox, &mut streams).and_then(|()| streams.out.flush());
    // A closed output fails without a message.
    match streams.code {
        Some(code) if ran.is_ok() => code,
        _ => i32::from(ran.is_err() || streams.failed),
    }
}

/// Errors: the output is closed.
fn work<O: Write, E: Write>(
    spec: &ContainerSpec,
    wasm: &WasmSpec,
    toolbox: &Toolbox,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let name = toolbox.tool.name();
    let known = match toolbox.tool {
        Tool::Ls => "laA1hd",
        Tool::Cat => "u",
        Tool::Ps => "aefwx",
        Tool::Stat => "L",
        Tool::Df => "hkP",
        Tool::Env => "",
        _ => return with_own_options(&Job::new(name, spec, wasm), toolbox, streams),
    };
    let job = match Job::parse(name, known, spec, wasm) {
        Ok(job) => job,
        Err(text) => return streams.complain(name, &text),
    };
    match toolbox.tool {
        Tool::Ls => ls::run(&job, streams),
        Tool::Cat => cat::run(&job, streams),
        Tool::Ps => processes(toolbox, streams),
        Tool::Stat => stat::run(&job, streams),
        Tool::Df => df::run(&job, streams),
        _ => environment(&job, streams),
    }
}

/// The tools whose options are more than letters.
fn with_own_options<O: Write, E: Write>(
    job: &Job<'_>,
    toolbox: &Toolbox,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    match toolbox.tool {
        Tool::Echo => builtins::echo(job, streams),
        Tool::Sleep => builtins::sleep(job, streams),
        Tool::Test => builtins::test(job, streams),
        Tool::Head => files::head(job, streams),
        Tool::Tail => files::tail(job, streams),
        Tool::Wc => files::wc(job, streams),
        Tool::Grep => files::grep(job, streams),
        Tool::Find => find::run(job, streams),
        Tool::Nslookup => net::nslookup(job, streams),
        Tool::Wget => net::wget(job, streams),
        Tool::Curl => net::curl(job, streams),
        _ => {
            streams.code = Some(toolbox.code);
            writeln!(streams.err, "{}", toolbox.message)
        }
    }
}

impl<'a> Job<'a> {
    /// A job whose tool parses its arguments itself.
    fn new(name: &'a str, spec: &'a ContainerSpec, wasm: &'a WasmSpec) -> Self {
        Self {
            name,
            flags: Vec::new(),
            operands: Vec::new(),
            spec,
            wasm,
        }
    }

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

    /// Whether files are shown under their names when there are several.
    fn shows_names(&self) -> bool {
        matches!(self.name, "head" | "tail")
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
