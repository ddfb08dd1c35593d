//! What the machine needs for the same bytes without any runtime: the digest of what is sent, unpacking it, the digest of
//! what comes out, writing it; on as many threads as the machine has processors.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use crate::Outcome;
use crate::bench_images::watch::{Cost, Disk, own_cpu_s};
use crate::scratch::Scratch;

/// Measures it once. Errors: the disk is full.
pub fn measure(layers: &[Vec<u8>]) -> Outcome<Cost> {
    let scratch = Scratch::new()?;
    let threads = std::thread::available_parallelism()?.get();
    let (disk, cpu) = (Disk::now()?, own_cpu_s());
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = layers.get(at) else {
                return Ok(());
            };
            one(layer, &scratch.dir().join(at.to_string()))?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            let done = worker.join();
            done.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        })
    })?;
    Ok(Cost {
        seconds: begun.elapsed().as_secs_f64(),
        cpu_s: own_cpu_s() - cpu,
        peak_mib: f64::NAN,
        written_mib: Disk::now()?.mib_since(&disk),
    })
}

fn one(layer: &[u8], to: &Path) -> io::Result<()> {
    let _sent = Sha256::digest(layer);
    let mut unpacked = flate2::read::GzDecoder::new(layer);
    let mut content = Sha256::new();
    let mut file = fs::File::create(to)?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = unpacked.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        content.update(&buffer[..count]);
        file.write_all(&buffer[..count])?;
    }
}
