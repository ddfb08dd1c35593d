//! Which files are read at all.

use std::os::unix::fs::chown;

use super::*;
use crate::sources::MAX_FILE_BYTES;

#[test]
fn a_file_that_others_can_write_is_refused_unread() {
    let refusal = |scratch: &Scratch| load(Some(&scratch.0), &Overrides::default()).unwrap_err();
    let scratch = Scratch::new("mode", "nonsense");
    std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o646)).unwrap();
    assert!(
        refusal(&scratch)
            .to_string()
            .contains("writable by others (mode 0646")
    );
    std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o600)).unwrap();
    chown(&scratch.0, Some(65_534), None).unwrap();
    assert!(refusal(&scratch).to_string().contains("owned by uid 65534"));
    let directory = load(Some(Path::new("/")), &Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(directory.contains("not a regular file"), "{directory}");
}

#[test]
fn a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not() {
    let limit = usize::try_from(MAX_FILE_BYTES).unwrap();
    let full = Scratch::new("full", &format!("#{}\n", "x".repeat(limit - 2)));
    assert_eq!(
        load(Some(&full.0), &Overrides::default()).unwrap(),
        Config::default()
    );
    let over = Scratch::new("over", &format!("#{}\n", "x".repeat(limit - 1)));
    let refused = load(Some(&over.0), &Overrides::default()).unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
}

#[test]
fn a_named_file_must_exist() {
    let refused = load(
        Some(Path::new("/nonexistent/coracle.toml")),
        &Overrides::default(),
    )
    .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "read configuration /nonexistent/coracle.toml"
    );
    assert!(std::error::Error::source(&refused).is_some());
}
