//! What an export takes of the daemon: time, memory, the disk.

use super::*;

/// One file of zeros in a layer that came uncompressed.
fn sparse(bytes: usize) -> Parts {
    let layer = tar_of(&[("zeros", &vec![0; bytes])]);
    let plain = "application/vnd.oci.image.layer.v1.tar";
    Parts::archives("linux", native(), json!({"Cmd": ["/x"]}), &[(plain, layer)])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_zeros_is_exported_so_that_it_can_be_imported() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let images = open(&here.0).await;
    let image = import(&images, &here.0, &layout(&sparse(80 << 20))).await;
    let (archive, exported) = export(&images, NAME).await.unwrap();
    assert!(!exported[0].is_as_received);
    let again = import(&open(&there.0).await, &there.0, &archive).await;
    assert_eq!(again.repo_tags, image.repo_tags);
}

/// Counts how often it is asked whether somebody still reads, and has nobody from some time on.
struct Reader {
    asked: Arc<AtomicUsize>,
    leaves_after: usize,
}

impl std::io::Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self.asked.fetch_add(1, Ordering::Relaxed) < self.leaves_after {
            true => Ok(()),
            false => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packing_a_large_file_ends_soon_after_its_reader_has_left() {
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    import(&images, &scratch.0, &layout(&sparse(64 << 20))).await;
    let pack = async |leaves_after| {
        let asked = Arc::new(AtomicUsize::new(0));
        let reader = Reader {
            asked: asked.clone(),
            leaves_after,
        };
        let export = images.export(NAME, None).await.unwrap();
        let done = tokio::task::spawn_blocking(move || export.write_to(reader));
        (done.await.unwrap().is_ok(), asked.load(Ordering::Relaxed))
    };
    let (is_whole, asked) = pack(usize::MAX).await;
    assert!(is_whole && asked >= 10, "asked {asked} times");
    assert_eq!(pack(8).await, (false, 9));
}

/// A layer of so many files with two names each, of which one is as long as may be.
fn linked(files: u32) -> Parts {
    let deep = format!("{}/", "d".repeat(255)).repeat(15);
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..files {
        let (long, short) = (format!("{deep}{number:0200}"), format!("e/{number}"));
        for (kind, path, target) in [
            (EntryType::Regular, &long, ""),
            (EntryType::Link, &short, &*long),
        ] {
            let mut pax = vec![("path", path.as_bytes()), ("linkpath", target.as_bytes())];
            pax.retain(|(_, value)| !value.is_empty());
            builder.append_pax_extensions(pax).unwrap();
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(0);
            header.set_path("short").unwrap();
            header.set_cksum();
            builder.append(&header, std::io::empty()).unwrap();
        }
    }
    let layer = builder.into_inner().unwrap();
    Parts::archives("linux", native(), json!({"Cmd": ["/x"]}), &[(GZIP, layer)])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_more_names_than_the_daemon_may_hold_is_not_packed_anew() {
    for (number, is_exported) in [(100, true), (17_000, false)] {
        let scratch = Scratch::new();
        let images = open(&scratch.0).await;
        import(&images, &scratch.0, &layout(&linked(number))).await;
        let exported = export(&images, NAME).await;
        assert_eq!(exported.is_ok(), is_exported, "{number} files");
        let said = exported.err().map(|error| format!("{error:?}"));
        assert!(said.is_none_or(|said| said.contains("keep_blobs")));
    }
}
