use super::*;
use crate::scratch::Scratch;

impl Scratch {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn syncer(dir: &Scratch) -> Syncer {
    Syncer::start(&dir.0).unwrap()
}

fn load<T: DeserializeOwned>(directory: &Path) -> Loaded<T> {
    super::load(directory, &Syncer::start(directory).unwrap())
}

fn read(dir: &Scratch) -> Option<String> {
    match load::<String>(&dir.0) {
        Loaded::Found(text, _) => Some(text),
        Loaded::Torn(_) | Loaded::Unreadable(_) | Loaded::Absent => None,
    }
}

#[tokio::test]
async fn older_generations_stay_until_the_last_one_is_on_the_disk() {
    let dir = Scratch::new("store-save");
    let syncer = syncer(&dir);
    let mut slot = Slot::new(dir.0.clone(), &syncer);
    for text in ["one", "two", "three"] {
        slot.save(&text).unwrap();
    }
    assert_eq!(dir.names(), ["record.1", "record.2", "record.3"]);
    assert_eq!(read(&dir).as_deref(), Some("three"));
    syncer.flush().await;
    assert_eq!(dir.names(), ["record.3"]);
    assert_eq!(read(&dir).as_deref(), Some("three"));
}

#[test]
fn saving_continues_after_a_load() {
    let dir = Scratch::new("store-goon");
    Slot::new(dir.0.clone(), &syncer(&dir))
        .save(&"one")
        .unwrap();
    let Loaded::Found(text, mut slot) = load::<String>(&dir.0) else {
        panic!("no record")
    };
    slot.save(&format!("{text} two")).unwrap();
    assert_eq!(read(&dir).as_deref(), Some("one two"));
}

#[test]
fn every_cut_of_the_newest_record_falls_back_to_the_older_one() {
    let dir = Scratch::new("store-torn");
    let older = encode(&"older").unwrap();
    let newer = encode(&"newer").unwrap();
    for cut in 0..newer.len() {
        fs::write(path_of(&dir.0, 7), &older).unwrap();
        fs::write(path_of(&dir.0, 8), &newer[..cut]).unwrap();
        assert_eq!(read(&dir).as_deref(), Some("older"), "cut at {cut}");
        assert_eq!(dir.names(), ["record.7"], "cut at {cut}");
    }
}

#[tokio::test]
async fn two_valid_generations_are_a_crash_before_the_unlink_and_the_newer_wins() {
    let dir = Scratch::new("store-two");
    fs::write(path_of(&dir.0, 9), encode(&"older").unwrap()).unwrap();
    fs::write(path_of(&dir.0, 10), encode(&"newer").unwrap()).unwrap();
    let syncer = syncer(&dir);
    let Loaded::Found(text, mut slot) = super::load::<String>(&dir.0, &syncer) else {
        panic!("no record")
    };
    assert_eq!(text, "newer");
    // The newer one may not be on the disk.
    assert_eq!(dir.names(), ["record.10", "record.9"]);
    slot.save(&"newest").unwrap();
    syncer.flush().await;
    assert_eq!(dir.names(), ["record.11"]);
}

#[test]
fn a_torn_record_alone_is_reported_and_kept() {
    let dir = Scratch::new("store-alone");
    let mut bytes = encode(&"text").unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(path_of(&dir.0, 3), &bytes).unwrap();
    let Loaded::Torn(torn) = load::<String>(&dir.0) else {
        panic!("it was taken")
    };
    let text = torn.why;
    assert!(text.contains("record.3") && text.contains("hash"), "{text}");
    assert_eq!(dir.names(), ["record.3"]);
}

fn unreadable(dir: &Scratch) -> Unreadable {
    match load::<String>(&dir.0) {
        Loaded::Unreadable(found) => found,
        Loaded::Found(..) => panic!("it was taken"),
        Loaded::Torn(torn) => panic!("it was taken for torn: {}", torn.why),
        Loaded::Absent => panic!("it was taken for absent"),
    }
}

#[test]
fn a_record_of_another_format_hides_the_older_one_and_is_kept() {
    let dir = Scratch::new("store-format");
    Slot::new(dir.0.clone(), &syncer(&dir))
        .save(&"older")
        .unwrap();
    let text = String::from_utf8(encode(&"text").unwrap()).unwrap();
    fs::write(path_of(&dir.0, 2), text.replacen(" 1 ", " 2 ", 1)).unwrap();
    let found = unreadable(&dir);
    assert!(found.why.contains("format is 2"), "{}", found.why);
    assert_eq!(found.json, Some("text".into()));
    assert_eq!(dir.names(), ["record.1", "record.2"]);
}

#[test]
fn a_whole_record_with_unknown_content_is_not_torn() {
    let dir = Scratch::new("store-content");
    fs::write(path_of(&dir.0, 1), encode(&17).unwrap()).unwrap();
    assert_eq!(unreadable(&dir).json, Some(17.into()));
    assert_eq!(dir.names(), ["record.1"]);
}

#[test]
fn an_error_of_the_disk_hides_the_older_record_and_is_kept() {
    let dir = Scratch::new("store-eisdir");
    Slot::new(dir.0.clone(), &syncer(&dir))
        .save(&"older")
        .unwrap();
    fs::create_dir(path_of(&dir.0, 2)).unwrap();
    let found = unreadable(&dir);
    assert!(found.why.contains("record.2"), "{}", found.why);
    assert_eq!(dir.names(), ["record.1", "record.2"]);
    // The directory itself cannot be listed.
    let file = dir.0.join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(load::<String>(&file), Loaded::Unreadable(_)));
}

#[test]
fn an_erased_or_missing_object_is_absent() {
    let dir = Scratch::new("store-erased");
    let mut slot = Slot::new(dir.0.clone(), &syncer(&dir));
    slot.save(&"text").unwrap();
    slot.erase().unwrap();
    assert!(matches!(load::<String>(&dir.0), Loaded::Absent));
    assert!(matches!(
        load::<String>(&dir.0.join("none")),
        Loaded::Absent
    ));
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn a_failed_save_keeps_the_older_record() {
    let dir = Scratch::new("store-failed");
    let mut slot = Slot::new(dir.0.clone(), &syncer(&dir));
    slot.save(&"kept").unwrap();
    // The next name is taken by a directory: create_new fails, unlink of it fails as well.
    fs::create_dir(path_of(&dir.0, 2)).unwrap();
    assert!(slot.save(&"lost").is_err());
    fs::remove_dir(path_of(&dir.0, 2)).unwrap();
    assert_eq!(read(&dir).as_deref(), Some("kept"));
    slot.save(&"next").unwrap();
    assert_eq!(read(&dir).as_deref(), Some("next"));
}

#[test]
fn only_a_record_that_never_was_on_the_disk_is_unwritten() {
    let dir = Scratch::new("store-unwritten");
    let whole = encode(&"text").unwrap();
    let zeros = vec![0; whole.len()];
    type Files<'a> = &'a [(u64, &'a [u8])];
    let cases: [(Files<'_>, bool); 6] = [
        (&[(1, b"")], true),
        (&[(1, b""), (2, &zeros)], true),
        (&[(1, &zeros), (2, b""), (3, b"")], true),
        // The first one is unlinked once another is on the disk: the object existed.
        (&[(2, b"")], false),
        (&[(2, b""), (3, &zeros)], false),
        // Something was written.
        (&[(1, b""), (2, &whole[..5])], false),
    ];
    for (files, expected) in cases {
        for (generation, bytes) in files {
            fs::write(path_of(&dir.0, *generation), bytes).unwrap();
        }
        let Loaded::Torn(torn) = load::<String>(&dir.0) else {
            panic!("{files:?} is not torn")
        };
        assert_eq!(torn.is_unwritten, expected, "{files:?}");
        assert_eq!(dir.names().len(), files.len(), "nothing is removed");
        for (generation, _) in files {
            fs::remove_file(path_of(&dir.0, *generation)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_waiter_never_runs_before_the_record_is_on_the_disk() {
    let dir = Scratch::new("store-wait");
    let syncer = syncer(&dir);
    let mut slot = Slot::new(dir.0.clone(), &syncer);
    slot.save(&"saved").unwrap();
    slot.wait_durable().await.unwrap();
    assert_eq!(dir.names(), ["record.1"]);
    // A failed save cannot be durable, although the one before is.
    fs::create_dir(path_of(&dir.0, 2)).unwrap();
    assert!(slot.save(&"lost").is_err());
    assert!(slot.wait_durable().await.is_err());
    fs::remove_dir(path_of(&dir.0, 2)).unwrap();
    slot.save(&"again").unwrap();
    slot.wait_durable().await.unwrap();
    assert_eq!(dir.names(), ["record.2"]);
}

#[test]
fn quarantine_never_overwrites_an_earlier_one() {
    let dir = Scratch::new("store-quarantine");
    let away = dir.0.join("away");
    for _ in 0..2 {
        let broken = dir.0.join("broken");
        fs::create_dir(&broken).unwrap();
        quarantine(&broken, std::slice::from_ref(&away)).unwrap();
    }
    assert!(away.join("broken").is_dir() && away.join("broken.2").is_dir());
}

#[test]
fn what_lies_on_another_filesystem_than_the_root_is_moved_aside_there() {
    use std::os::unix::fs::MetadataExt as _;
    let root = Scratch::new("store-quarantine-root");
    let disk = Path::new("/dev/shm").join(format!("store-quarantine-{}", std::process::id()));
    fs::create_dir_all(disk.join("broken")).unwrap();
    fs::write(disk.join("broken/record.1"), "evidence").unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(&root.0), device(&disk), "they are to be two");
    // As a mount at `pods` would be.
    std::os::unix::fs::symlink(&disk, root.0.join("pods")).unwrap();
    let layout = crate::layout::Layout::new(root.0.clone());
    let broken = layout.pods_directory().join("broken");
    let moved = quarantine(&broken, &layout.quarantines());
    let kept = moved
        .as_ref()
        .ok()
        .map(|moved| fs::read_to_string(moved.join("record.1")).unwrap());
    let is_gone = !broken.exists();
    let names = crate::disk::ids_in::<coracle_spec::id::PodId>(&layout.pods_directory()).unwrap();
    fs::remove_dir_all(&disk).unwrap();
    assert_eq!(kept.as_deref(), Some("evidence"), "{moved:?}");
    assert_eq!((is_gone, names), (true, Vec::new()));
}
