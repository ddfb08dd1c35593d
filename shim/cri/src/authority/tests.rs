//! Header blocks in every form that clients write them in, cut at every place.

use super::*;

const AUTHORITY: &[u8] = b"%2Frun%2Fcoracle.sock";
const HARMLESS: &[u8] = b"-2Frun-2Fcoracle.sock";

fn frame_of(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default();
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, 1]);
    frame.extend(payload);
    frame
}

fn literal(first: u8, name: Option<&[u8]>, value: &[u8]) -> Vec<u8> {
    let mut field = vec![first];
    for text in name.into_iter().chain([value]) {
        field.push(u8::try_from(text.len()).unwrap_or_default());
        field.extend(text);
    }
    field
}

/// What the server reads of `frames` when they arrive in two parts, whichever.
fn read(frames: &[u8]) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frames);
    let whole = passed(&bytes, bytes.len());
    for cut in 0..bytes.len() {
        assert_eq!(passed(&bytes, cut), whole, "cut at {cut}");
    }
    whole[PREFACE.len()..].to_vec()
}

fn passed(bytes: &[u8], cut: usize) -> Vec<u8> {
    let (mut filter, mut bytes) = (Filter::default(), bytes.to_vec());
    let (first, second) = bytes.split_at_mut(cut);
    filter.pass(first);
    filter.pass(second);
    bytes
}

#[test]
fn an_authority_in_any_form_becomes_a_host_name() {
    let path = literal(0x04, None, b"/runtime.v1.RuntimeService/%2F");
    for first in [0x40_u8, 0x00, 0x10] {
        let fields = [
            (
                literal(first | 1, None, AUTHORITY),
                literal(first | 1, None, HARMLESS),
            ),
            (
                literal(first, Some(NAME), AUTHORITY),
                literal(first, Some(NAME), HARMLESS),
            ),
        ];
        for (sent, expected) in fields {
            let around = |field: &[u8]| {
                // Another size of the table, in two bytes; POST; http; path; then ours; a field of the table.
                let block = [&[0x3f, 0xe1, 0x1f, 0x83, 0x86][..], &path, field, &[0xbe]].concat();
                let mut frames = frame_of(4, 0, &[0; 6]);
                frames.extend(frame_of(HEADERS, END_HEADERS, &block));
                frames.extend(frame_of(0, 1, b"\x41\x15%2Fdata stays as it is"));
                frames.extend(frame_of(HEADERS, END_HEADERS, &block));
                frames
            };
            assert_eq!(read(&around(&sent)), around(&expected));
        }
    }
}

#[test]
fn padding_priorities_and_continuations_are_no_part_of_a_block() {
    let frames = |value: &[u8]| {
        let field = literal(0x41, None, value);
        let (head, tail) = field.split_at(7);
        let mut padded = vec![3, 0x80, 0, 0, 0, 9];
        padded.extend(head);
        padded.extend([0x41, 0x01, b'%']);
        let mut frames = frame_of(HEADERS, PADDED | PRIORITY, &padded);
        frames.extend(frame_of(CONTINUATION, END_HEADERS, tail));
        frames
    };
    assert_eq!(read(&frames(AUTHORITY)), frames(HARMLESS));
}

#[test]
fn what_is_no_http2_and_what_huffman_wrote_passes_unchanged() {
    let mut other = b"GET / HTTP/1.1\r\nHost: %2F\r\n\r\n".to_vec();
    let before = other.clone();
    Filter::default().pass(&mut other);
    assert_eq!(other, before);
    // A value in Huffman's code, and one that is longer than any header block may be.
    let mut coded = literal(0x41, None, b"%%%");
    coded[1] |= 0x80;
    let endless = [0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, b'%', b'%'];
    for block in [&coded[..], &endless] {
        let frames = frame_of(HEADERS, END_HEADERS, block);
        assert_eq!(read(&frames), frames);
    }
}
