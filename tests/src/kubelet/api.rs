//! What stands between the tests and the kubelet's HTTP: the program podapi for kubectl, and whole replies for us.
//!
//! Not here: what is asked.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::settings::Ports;
use crate::{Outcome, http};

/// What kubectl talks to, and its address.
pub fn start_podapi(programs: &Path, ports: &Ports) -> Outcome<(Child, String)> {
    let mut podapi = Command::new(programs.join("podapi"))
        .arg(format!("https://127.0.0.1:{}", ports.main))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let printed = podapi.stdout.take().ok_or("podapi has no output")?;
    BufReader::new(printed).read_line(&mut line)?;
    Ok((podapi, format!("http://{}", line.trim())))
}

/// The body of a reply, put together when it came in chunks.
pub fn whole(reply: &http::Reply) -> Vec<u8> {
    if reply.header("transfer-encoding") != Some("chunked") {
        return reply.body.clone();
    }
    let (mut rest, mut body) = (reply.body.as_slice(), Vec::new());
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).ok();
        let size = size.and_then(|hex| usize::from_str_radix(hex.trim(), 16).ok());
        let Some(size) = size.filter(|size| *size > 0 && end + 4 + size <= rest.len()) else {
            break;
        };
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    body
}
