//! `head`, `tail`, `wc` and `grep`: what they find in files, or in standard input for `-` or without any.
//!
//! Invariant: memory grows with the lines that are kept, never with a file. Not here: `cat`, the patterns of `grep`.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};

use super::options::Options;
use super::pattern::Pattern;
use super::{Job, Streams, cat};

/// Longest piece of a line that is read at once.
const CHUNK: usize = 64 * 1024;

/// Runs `use_it` on each of the files that are named; what cannot be read is complained of.
fn each<O: Write, E: Write>(
    job: &Job<'_>,
    names: &[&str],
    streams: &mut Streams<O, E>,
    mut use_it: impl FnMut(&str, &mut dyn BufRead, &mut Streams<O, E>) -> io::Result<io::Result<()>>,
) -> io::Result<()> {
    let names = if names.is_empty() { &["-"] } else { names };
    for (number, name) in names.iter().enumerate() {
        let opened: io::Result<Box<dyn Read>> = match *name {
            "-" => Ok(Box::new(io::stdin().lock())),
            path => cat::open(job, path).map(|file| Box::new(file) as _),
        };
        let used = match opened {
            Ok(from) => {
                if names.len() > 1 && job.shows_names() {
                    let gap = if number > 0 { "\n" } else { "" };
                    writeln!(streams.out, "{gap}==> {name} <==")?;
                }
                use_it(name, &mut BufReader::new(from), streams)?
            }
            Err(error) => Err(error),
        };
        if let Err(error) = used {
            streams.cannot(job, name, &error)?;
        }
    }
    Ok(())
}

/// How much of a file.
enum Part {
    Lines(u64),
    Bytes(u64),
}

/// The arguments of `head` and `tail`. Errors: a text.
fn part<'a>(job: &'a Job<'_>) -> Result<(Part, Vec<&'a str>), String> {
    let options = Options::parse(job, "q", "nc")?;
    let count = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        digits.parse().map_err(|_| format!("{text:?} is no count"))
    };
    let part = match (options.value('c'), options.value('n')) {
        (Some(bytes), _) => Part::Bytes(count(bytes)?),
        (None, Some(lines)) => Part::Lines(count(lines)?),
        (None, None) => Part::Lines(options.number.unwrap_or(10)),
    };
    Ok((part, options.operands))
}

/// Runs `show` with the requested part on each file of `head` or `tail`.
fn each_part<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
    show: impl Fn(&Part, &mut dyn BufRead, &mut O) -> io::Result<io::Result<()>>,
) -> io::Result<()> {
    let (part, names) = match part(job) {
        Ok(parsed) => parsed,
        Err(text) => return streams.complain(job.name, &text),
    };
    each(job, &names, streams, |_, from, streams| {
        show(&part, from, &mut streams.out)
    })
}

pub(super) fn head<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    each_part(job, streams, |part, from, out| match part {
        Part::Bytes(count) => copy(&mut from.take(*count), out),
        Part::Lines(count) => copy_lines(from, *count, out),
    })
}

/// Copies up to `count` lines, in pieces, because a line may be longer than memory.
///
/// Outer error: the output is closed. Inner error: the input cannot be read.
fn copy_lines(
    from: &mut dyn BufRead,
    count: u64,
    out: &mut impl Write,
) -> io::Result<io::Result<()>> {
    for _ in 0..count {
        loop {
            let mut piece = Vec::new();
            let read = from.take(CHUNK as u64).read_until(b'\n', &mut piece);
            if let Err(error) = read {
                return Ok(Err(error));
            }
            out.write_all(&piece)?;
            if piece.is_empty() {
                return Ok(Ok(()));
            }
            if piece.ends_with(b"\n") {
                break;
            }
        }
    }
    Ok(Ok(()))
}

/// Outer error: the output is closed. Inner error: the input cannot be read.
fn copy(from: &mut dyn Read, to: &mut impl Write) -> io::Result<io::Result<()>> {
    let mut part = vec![0; CHUNK];
    loop {
        match from.read(&mut part) {
            Ok(0) => return Ok(Ok(())),
            Ok(got) => to.write_all(&part[..got])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
}

pub(super) fn tail<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    each_part(job, streams, |part, from, out| {
        let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
        let read = match part {
            Part::Lines(count) => keep_lines(from, *count, &mut kept),
            Part::Bytes(count) => keep_bytes(from, *count, &mut kept),
        };
        for piece in &kept {
            out.write_all(piece)?;
        }
        Ok(read)
    })
}

fn keep_lines(from: &mut dyn BufRead, count: u64, kept: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        if from.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        kept.push_back(line);
        if kept.len() as u64 > count {
            kept.pop_front();
        }
    }
}

fn keep_bytes(from: &mut dyn BufRead, count: u64, kept: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
    let mut held = 0;
    loop {
        let mut piece = vec![0; CHUNK];
        let got = from.read(&mut piece)?;
        if got == 0 {
            break;
        }
        piece.truncate(got);
        held += got as u64;
        kept.push_back(piece);
        while let Some(first) = kept.front()
            && held - first.len() as u64 >= count
        {
            held -= first.len() as u64;
            kept.pop_front();
        }
    }
    if let Some(first) = kept.front_mut() {
        let excess = usize::try_from(held.saturating_sub(count)).unwrap_or(usize::MAX);
        first.drain(..excess.min(first.len()));
    }
    Ok(())
}

pub(super) fn wc<O: Write, E: Write>(job: &Job<'_>, streams: &mut Streams<O, E>) -> io::Result<()> {
    let options = match Options::parse(job, "lwc", "") {
        Ok(options) => options,
        Err(text) => return streams.complain(job.name, &text),
    };
    let all = !"lwc".chars().any(|flag| options.has(flag));
    let shown = |flag| all || options.has(flag);
    let mut total = [0_u64; 3];
    let row = |counts: &[u64; 3], name: &str, out: &mut O| {
        let flags = ['l', 'w', 'c'].into_iter().zip(counts);
        for (_, count) in flags.filter(|(flag, _)| shown(*flag)) {
            write!(out, "{count:>7} ")?;
        }
        writeln!(out, "{}", if name == "-" { "" } else { name })
    };
    each(job, &options.operands, streams, |name, from, streams| {
        let mut counts = [0; 3];
        let read = count(from, &mut counts);
        for (sum, count) in total.iter_mut().zip(counts) {
            *sum += count;
        }
        row(&counts, name, &mut streams.out)?;
        Ok(read)
    })?;
    match options.operands.len() {
        0 | 1 => Ok(()),
        _ => row(&total, "total", &mut streams.out),
    }
}

/// Lines, words and bytes.
fn count(from: &mut dyn BufRead, counts: &mut [u64; 3]) -> io::Result<()> {
    let mut in_word = false;
    loop {
        let part = from.fill_buf()?;
        if part.is_empty() {
            return Ok(());
        }
        for byte in part {
            counts[0] += u64::from(*byte == b'\n');
            let is_space = byte.is_ascii_whitespace();
            counts[1] += u64::from(!is_space && !in_word);
            in_word = !is_space;
        }
        let got = part.len();
        counts[2] += got as u64;
        from.consume(got);
    }
}

pub(super) fn grep<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    streams.code = Some(2);
    let parsed = Options::parse(job, "invcqlFEhH", "e").and_then(|options| {
        grep_arguments(&options).map(|(pattern, names)| (options, pattern, names))
    });
    let (options, pattern, names) = match parsed {
        Ok(parsed) => parsed,
        Err(text) => return streams.complain(job.name, &text),
    };
    let named = (names.len() > 1 || options.has('H')) && !options.has('h');
    let mut found = false;
    each(job, &names, streams, |name, from, streams| {
        let mut search = Search {
            options: &options,
            pattern: &pattern,
            name: named.then_some(name),
            matches: 0,
        };
        let read = search.file(from, &mut streams.out)?;
        found |= search.matches > 0;
        search.summary(name, &mut streams.out)?;
        Ok(read)
    })?;
    streams.code = Some(match (found, streams.failed) {
        (true, _) => 0,
        (false, false) => 1,
        (false, true) => 2,
    });
    Ok(())
}

/// The pattern and the files of `grep`. Errors: a message.
fn grep_arguments<'a>(options: &Options<'a>) -> Result<(Pattern, Vec<&'a str>), String> {
    let (text, names) = match (options.value('e'), options.operands.as_slice()) {
        (Some(text), names) => (text, names),
        (None, [text, names @ ..]) => (*text, names),
        (None, []) => return Err("it needs a pattern".into()),
    };
    let pattern = Pattern::parse(text, options.has('F'), options.has('i'))?;
    Ok((pattern, names.to_vec()))
}

/// A search through one file.
struct Search<'a> {
    options: &'a Options<'a>,
    pattern: &'a Pattern,
    /// In front of its lines.
    name: Option<&'a str>,
    matches: u64,
}

impl Search<'_> {
    fn file(&mut self, from: &mut dyn BufRead, out: &mut impl Write) -> io::Result<io::Result<()>> {
        let quiet = ['q', 'l', 'c']
            .into_iter()
            .any(|flag| self.options.has(flag));
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            match from.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Ok(Err(error)),
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            if self.pattern.is_in(text) == self.options.has('v') {
                continue;
            }
            self.matches += 1;
            if !quiet {
                self.label(Some(number), out)?;
                out.write_all(text)?;
                out.write_all(b"\n")?;
            } else if !self.options.has('c') {
                break;
            }
        }
        Ok(Ok(()))
    }

    /// What `-l` and `-c` write after a file.
    fn summary(&self, file: &str, out: &mut impl Write) -> io::Result<()> {
        if self.options.has('l') && self.matches > 0 {
            writeln!(out, "{file}")?;
        } else if self.options.has('c') && !self.options.has('q') {
            self.label(None, out)?;
            writeln!(out, "{}", self.matches)?;
        }
        Ok(())
    }

    fn label(&self, line: Option<u64>, out: &mut impl Write) -> io::Result<()> {
        if let Some(name) = self.name {
            write!(out, "{name}:")?;
        }
        match line {
            Some(line) if self.options.has('n') => write!(out, "{line}:"),
            _ => Ok(()),
        }
    }
}
