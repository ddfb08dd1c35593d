use super::*;

#[test]
fn records_count_their_own_digits() {
    for (value, text) in [
        (&b"v"[..], "8 key=v\n".to_owned()),
        (&[b'v'; 2], "9 key=vv\n".to_owned()),
        (&[b'v'; 3], "11 key=vvv\n".to_owned()),
        (&[b'v'; 91], format!("99 key={}\n", "v".repeat(91))),
        (&[b'v'; 92], format!("101 key={}\n", "v".repeat(92))),
    ] {
        let mut record = Vec::new();
        put_record(&mut record, b"key", value);
        assert_eq!(String::from_utf8(record.clone()).unwrap(), text);
        let length: usize = text.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(record.len(), length);
        let mut read = tar::PaxExtensions::new(&record);
        assert_eq!(read.next().unwrap().unwrap().value_bytes(), value);
    }
}

#[test]
fn times_before_1970_count_backwards() {
    for (seconds, nanoseconds, text) in [
        (7, 0, "7"),
        (7, 5, "7.000000005"),
        (-7, 0, "-7"),
        (-2, 500_000_000, "-1.500000000"),
        (-1, 500_000_000, "-0.500000000"),
    ] {
        assert_eq!(time(seconds, nanoseconds), text);
    }
}
