use std::fs;

use super::*;
use crate::scratch::Scratch;

fn record(directory: &Path, generation: u64) {
    fs::create_dir_all(directory).unwrap();
    fs::write(path_of(directory, generation), "x").unwrap();
}

fn generations(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[tokio::test]
async fn few_and_many_records_are_synced_and_older_generations_removed() {
    let dir = Scratch::new("syncer-many");
    let syncer = Syncer::start(&dir.0).unwrap();
    for count in [3, MANY * 2] {
        let all: Vec<PathBuf> = (0..count)
            .map(|number| dir.0.join(format!("{count}/{number}")))
            .collect();
        for directory in &all {
            for generation in [1, 2, 3] {
                record(directory, generation);
                syncer.record(directory, generation, generation == 1);
            }
        }
        let waits: Vec<_> = all.iter().map(|directory| syncer.wait(directory)).collect();
        for wait in waits {
            wait.await.unwrap();
        }
        assert!(all.iter().all(|directory| generations(directory) == 1));
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_synced_keeps_older_generations_and_wakes_no_waiter() {
    let dir = Scratch::new("syncer-refused");
    let syncer = Syncer::start(&dir.0).unwrap();
    let (bad, good) = (dir.0.join("bad"), dir.0.join("good"));
    record(&bad, 1);
    // Not even root can open a link to itself.
    std::os::unix::fs::symlink("record.2", path_of(&bad, 2)).unwrap();
    record(&good, 1);
    record(&good, 2);
    for directory in [&bad, &good] {
        syncer.record(directory, 2, false);
    }
    let (refused, synced) = (syncer.wait(&bad), syncer.wait(&good));
    synced.await.unwrap();
    assert!(refused.await.is_err());
    assert_eq!((generations(&bad), generations(&good)), (2, 1));
    // The same later, until a newer one is on the disk.
    assert!(syncer.wait(&bad).await.is_err());
    record(&bad, 3);
    syncer.record(&bad, 3, false);
    syncer.wait(&bad).await.unwrap();
    assert_eq!(generations(&bad), 1);
}

#[tokio::test]
async fn a_deleted_object_is_not_a_failure() {
    let dir = Scratch::new("syncer-gone");
    let syncer = Syncer::start(&dir.0).unwrap();
    syncer.record(&dir.0.join("never/was"), 7, false);
    syncer.file(&dir.0.join("never/file"));
    syncer.directory(&dir.0.join("never"));
    syncer.flush().await;
    syncer.wait(&dir.0.join("never/was")).await.unwrap();
}

#[test]
fn directories_are_synced_from_the_deepest_one_up_to_the_root() {
    let disk = Disk {
        root: PathBuf::from("/"),
        failed: HashSet::new(),
    };
    let change = |is_new| Change::Record {
        directory: PathBuf::from("/proc/self"),
        generation: 1,
        is_new,
    };
    let all: BTreeSet<PathBuf> = disk.directories_of(&change(true)).collect();
    let order: Vec<_> = all
        .iter()
        .rev()
        .map(|path| path.to_str().unwrap())
        .collect();
    assert_eq!(order, ["/proc/self", "/proc", "/"]);
    let own: Vec<_> = disk.directories_of(&change(false)).collect();
    assert_eq!(own, [PathBuf::from("/proc/self")]);
    // Removing a directory has changed its parent.
    let gone = Change::Directory(PathBuf::from("/proc/none"));
    assert_eq!(disk.directories_of(&gone).count(), 3);
}

#[test]
fn the_later_of_two_generations_counts_and_a_new_object_stays_new() {
    let mut batch = Batch::default();
    let record = |directory: &str, generation, is_new| {
        Message::Changed(Change::Record {
            directory: directory.into(),
            generation,
            is_new,
        })
    };
    batch.add(record("pod", 1, true));
    batch.add(record("container", 1, true));
    batch.add(record("pod", 2, false));
    let expected = [("pod", 2), ("container", 1)].map(|(directory, generation)| Change::Record {
        directory: directory.into(),
        generation,
        is_new: true,
    });
    assert_eq!(batch.changes, expected);
}
