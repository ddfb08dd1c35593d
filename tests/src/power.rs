//! Power loss: a machine whose daemon churns pods is switched off at random points, many times over. Each state
//! that a client had seen a second before must still be there.
//!
//! ```text
//! cut --boot--> guest: mount the disk, start the daemon, compare it with what was seen, remove all, look for leaks, churn
//!  ^                        | lines on the console: what a client saw, when, and what time it is
//!  +------- quit <--------- this
//! ```
//! Called by: `make test-power`. The machine is QEMU (see `tests/guest/run.sh`) with one ext4 disk that outlives it; its
//! monitor's `quit` loses what the guest had not written out.
//! Invariants: a state is expected only if the guest reported it, and must be there if that was more than `GRACE_MS` before
//! the guest's last line; an error names what is wrong.
//! Must not know: where records are (the guest does).

mod churn;
mod guest;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::dice::Dice;
use crate::push::{Image, file};
use crate::registry::Registry;

pub use guest::main as guest_main;

/// A state that a client saw this long before the cut must be there afterwards. Milliseconds of the guest.
const GRACE_MS: u64 = 1000;
/// What the guest's lines begin with.
const MARK: &str = "@power ";
/// How long a machine may take until it churns.
const BOOT_DEADLINE: Duration = Duration::from_secs(900);
/// Images that differ in one small layer.
const IMAGES: usize = 40;

/// What a run showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// How often the machine was switched off.
    pub cuts: usize,
    /// Of these, before it churned: while the daemon recovered, or what it had was removed.
    pub early: usize,
    /// Exits that were verified.
    pub jobs: usize,
    /// Images that were verified.
    pub images: usize,
    /// Removals of pods that were verified.
    pub removals: usize,
}

/// What the next boot must still have.
#[derive(Debug, Default)]
struct Known {
    /// Exit code and job by container id.
    exited: BTreeMap<String, (i32, String)>,
    images: BTreeSet<String>,
    /// Pods that were removed.
    gone: BTreeSet<String>,
}

/// Cuts the power so many times. Errors: the first thing that was not as it had been, with the seed.
pub fn run(cuts: usize) -> Outcome<Report> {
    let (mut dice, seed) = Dice::fresh();
    let place = Place::make(seed)?;
    let offers = Offers::push()?;
    let mut report = Report::default();
    let mut known = Known::default();
    for number in 0..=cuts {
        let last = number == cuts;
        let begun = Instant::now();
        place.order(&offers, &known, number, last)?;
        let lines = boot_and_cut(&place, &mut dice, last)
            .and_then(|lines| update(&lines, &mut known, &mut report, last).map(|()| lines));
        let lines = lines.map_err(|why| format!("cut {number} (seed {seed}): {why}"))?;
        if !last {
            report.cuts += 1;
            report.early += usize::from(!lines.iter().any(|line| line.words[0] == "churning"));
            let mut out = std::io::stdout();
            writeln!(
                out,
                "cut {} of {cuts} after {:.1?}: {report:?}",
                number + 1,
                begun.elapsed()
            )?;
        }
    }
    Ok(report)
}

/// The registry, and what it holds.
struct Offers {
    registry: Registry,
    references: Vec<String>,
}

impl Offers {
    fn push() -> Outcome<Self> {
        let registry = Registry::start()?;
        let busybox = fs::read("/bin/busybox").map_err(|error| format!("/bin/busybox: {error}"))?;
        let mut references = Vec::new();
        for number in 0..IMAGES {
            let mut image = Image::linux(&[file("busybox", 0o755, &busybox)], &["/busybox"])?;
            image.add_layer(&[file("number", 0o644, number.to_string().as_bytes())])?;
            let name = format!("power/{number}");
            references.push(image.push(registry.host(), &name, "1")?.reference);
        }
        Ok(Self {
            registry,
            references,
        })
    }
}

/// What lies on the host.
struct Place {
    dir: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Place {
    fn make(seed: u64) -> Outcome<Self> {
        let dir = PathBuf::from(format!("/tmp/coracle-power-{}-{seed}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let place = Self { dir };
        fs::File::create(place.disk())?.set_len(2 << 30)?;
        let made = Command::new("mkfs.ext4")
            .arg("-q")
            .arg(place.disk())
            .status()?;
        if !made.success() {
            return Err("mkfs.ext4 failed".into());
        }
        Ok(place)
    }

    fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    fn monitor(&self) -> PathBuf {
        self.dir.join("monitor")
    }

    /// Writes what the guest is to do: words by line.
    fn order(&self, offers: &Offers, known: &Known, number: usize, last: bool) -> Outcome<()> {
        let mut text = format!("cut {number}\n");
        if last {
            text += "last\n";
        }
        let registry = &offers.registry;
        let storage = registry.storage();
        writeln!(text, "registry {} {}", registry.host(), storage.display())?;
        for reference in &offers.references {
            writeln!(text, "offer {reference}")?;
        }
        for (container, (code, job)) in &known.exited {
            writeln!(text, "exited {container} {code} {job}")?;
        }
        for image in &known.images {
            writeln!(text, "image {image}")?;
        }
        for pod in &known.gone {
            writeln!(text, "gone {pod}")?;
        }
        Ok(fs::write(self.dir.join("order"), text)?)
    }

    fn boot(&self) -> Outcome<Machine> {
        let _ = fs::remove_file(self.monitor());
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let binary = std::env::current_exe()?;
        let target = PathBuf::from(std::env::var("CARGO_TARGET_DIR")?);
        let own = binary.strip_prefix(&target)?.display().to_string();
        let mut command = Command::new(source.join("guest/run.sh"));
        command
            .env("GUEST_TESTS", &own)
            .env("GUEST_FILES", "release/coracle")
            .env(
                "GUEST_COMMAND",
                format!(
                    "{} guest /host{}/order",
                    binary.display(),
                    self.dir.display()
                ),
            )
            .env("GUEST_DISK", self.disk())
            .env("GUEST_MONITOR", self.monitor())
            .env("GUEST_MEMORY", "2G")
            // On two emulated processors Linux panics now and then while it patches its own code.
            .env("GUEST_CPUS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("no output of the machine")?;
        let console = fs::File::create(self.dir.join("console"))?;
        Ok(Machine {
            child,
            lines: forward_lines(output, console),
            monitor: self.monitor(),
        })
    }
}

/// The machine's lines as they come; a copy of each goes into the file `console`.
fn forward_lines(output: impl Read + Send + 'static, mut console: fs::File) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        for line in lines {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let _ = writeln!(console, "{text}");
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    lines
}

/// A machine that runs; switched off when dropped.
struct Machine {
    child: Child,
    lines: Receiver<String>,
    monitor: PathBuf,
}

impl Machine {
    fn cut(&self) {
        if let Ok(mut monitor) = UnixStream::connect(&self.monitor) {
            let _ = monitor.write_all(b"quit\n");
            // It answers with its prompt until it is gone.
            let _ = std::io::copy(&mut monitor, &mut std::io::sink());
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut();
        let _ = self.child.wait();
    }
}

/// What the guest said: when, in milliseconds since its start, and the words.
#[derive(Debug)]
struct Line {
    at: u64,
    words: Vec<String>,
}

fn parse(text: &str) -> Option<Line> {
    let mut words = text.split_once(MARK)?.1.split(' ').map(str::to_owned);
    let at = words.next()?.parse().ok()?;
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then_some(Line { at, words })
}

/// One cut. An emulated kernel fails now and then before anything of ours runs: it is booted again.
fn boot_and_cut(place: &Place, dice: &mut Dice, last: bool) -> Outcome<Vec<Line>> {
    for _ in 0..3 {
        let lines = cycle(place, dice, last)?;
        if !lines.is_empty() {
            return Ok(lines);
        }
    }
    Err("the kernel of the machine failed three times before it ran the daemon".into())
}

/// One boot until it is cut, or, the last time, until it ends by itself. Returns the guest's lines: none if its kernel failed
/// before it ran anything.
fn cycle(place: &Place, dice: &mut Dice, last: bool) -> Outcome<Vec<Line>> {
    let machine = place.boot()?;
    let early = !last && dice.percent(20);
    let awaited = if early { "starting" } else { "churning" };
    let (least, range) = if early { (0, 6000) } else { (3000, 12_000) };
    let pause = Duration::from_millis(least + dice.below(range));
    let (mut console, mut lines) = (Vec::new(), Vec::new());
    let mut deadline = Instant::now() + BOOT_DEADLINE;
    let mut waits = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match machine.lines.recv_timeout(left) {
            Ok(text) => {
                if let Some(line) = parse(&text) {
                    if line.words[0] == awaited && waits && !last {
                        (deadline, waits) = (Instant::now() + pause, false);
                    }
                    lines.push(line);
                }
                console.push(text);
            }
            Err(RecvTimeoutError::Timeout) if waits => {
                return Err(format!("the machine never was {awaited}:\n{}", tail(&console)).into());
            }
            Err(RecvTimeoutError::Timeout) => {
                machine.cut();
                let rest = machine.lines.iter().filter_map(|text| parse(&text));
                lines.extend(rest);
                return Ok(lines);
            }
            Err(RecvTimeoutError::Disconnected) if last || may_end(&console, &lines) => {
                return Ok(lines);
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(format!("the machine ended by itself:\n{}", tail(&console)).into());
            }
        }
    }
}

/// Whether a machine may have ended by itself: its kernel failed before it ran anything, or the guest reported a failure.
fn may_end(console: &[String], lines: &[Line]) -> bool {
    let panicked = console.iter().any(|line| line.contains("Kernel panic"));
    lines.is_empty() && panicked || lines.iter().any(|line| line.words[0] == "broken")
}

/// The last lines of the console.
fn tail(console: &[String]) -> String {
    console[console.len().saturating_sub(60)..].join("\n")
}

/// Adds the guest's lines to what is known and to the report. Errors: the guest reports a broken promise.
fn update(lines: &[Line], known: &mut Known, report: &mut Report, last: bool) -> Outcome<()> {
    let end = lines.last().map_or(0, |line| line.at);
    for line in lines {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        let lasts = line.at + GRACE_MS <= end;
        match words[..] {
            ["broken", ..] => return Err(words[1..].join(" ").into()),
            ["verified", jobs, images, removals] => {
                report.jobs += jobs.parse::<usize>()?;
                report.images += images.parse::<usize>()?;
                report.removals += removals.parse::<usize>()?;
            }
            // From here on they may go.
            ["clearing"] => known.exited.clear(),
            ["exited", container, code, job] if lasts => {
                let exit = (code.parse()?, job.to_owned());
                known.exited.insert(container.to_owned(), exit);
            }
            // An image is on the disk when the pull is answered.
            ["pulled", image] => drop(known.images.insert(image.to_owned())),
            ["unpulling", image] => drop(known.images.remove(image)),
            ["removed", pod] if lasts => drop(known.gone.insert(pod.to_owned())),
            _ => {}
        }
    }
    if last && !lines.iter().any(|line| line.words[0] == "done") {
        return Err("the last boot did not come to its end".into());
    }
    Ok(())
}
