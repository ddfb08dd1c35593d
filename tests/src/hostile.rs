//! Makes requests that no kubelet sends: fields left out, doubled, of the wrong type, out of range, endless, not UTF-8.
//!
//! Called by: the tests of hostile requests. A text that names something outside of the test's scratch (an image, a
//! directory, a cgroup, a port of the node) is never random but one of [`Words`], so that the effects of a request stay in
//! the scratch.
//! Not here: sending them.

use std::collections::BTreeMap;

use crate::dice::Dice;
use crate::protobuf::{Field, Kind, Rpc, Schema, Tree, Value};

/// How deep messages nest; the protocol's own nest to six.
const MAX_DEPTH: usize = 8;
/// Texts that are wrong wherever they stand. The last is as long as is useful.
const ODD: [&str; 14] = [
    "",
    "x",
    "../../x",
    "/",
    ".",
    "..",
    "a\0b",
    "a\nb",
    "\u{1f980}",
    "\u{feff}\u{202e}",
    "-1",
    "18446744073709551616",
    "%s%n",
    LONG,
];
/// Stands for 100,000 bytes of text.
const LONG: &str = "LONG";
/// Numbers at the ends of their ranges.
const NUMBERS: [i64; 16] = [
    0,
    1,
    2,
    3,
    4,
    -1,
    99,
    1000,
    65_535,
    65_536,
    4_194_304,
    i32::MAX as i64,
    i32::MIN as i64,
    u32::MAX as i64,
    i64::MAX,
    i64::MIN,
];

/// The texts and numbers that a field of a name may have, where not anything goes.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// By the field's name, or `MESSAGE.FIELD`, which comes first.
    pub texts: BTreeMap<&'static str, Vec<String>>,
    /// The same for numbers.
    pub numbers: BTreeMap<&'static str, Vec<i64>>,
}

/// Makes requests.
#[derive(Debug)]
pub struct Hostile<'a> {
    /// What messages there are.
    pub schema: &'a Schema,
    /// Decides.
    pub dice: Dice,
    /// What may stand where not anything may.
    pub words: Words,
}

impl Hostile<'_> {
    /// A message made of chance alone.
    pub fn message(&mut self, name: &str, depth: usize) -> Tree {
        let schema = self.schema;
        let fields = schema.fields(name);
        let mut tree = Tree::default();
        let chance = self.dice.below(100);
        for field in fields {
            if !self.dice.percent(chance) {
                continue;
            }
            let times = match (field.is_repeated, field.kind == Kind::Text) {
                (true, _) | (_, false) if self.dice.percent(20) => self.dice.below(5),
                _ => 1,
            };
            for _ in 0..times {
                let value = self.value(name, field, &field.kind, depth);
                tree.0.push((field.number, value));
            }
        }
        tree
    }

    /// A good message with something wrong in it, two or three times.
    pub fn spoiled(&mut self, name: &str, good: &Tree) -> Tree {
        let mut tree = good.clone();
        for _ in 0..=self.dice.below(3) {
            let count = tree.count();
            if count == 0 {
                return self.message(name, 0);
            }
            let at = self.dice.below(count as u64) as usize;
            self.spoil(name, &mut tree, at);
        }
        tree
    }

    fn spoil(&mut self, name: &str, tree: &mut Tree, at: usize) {
        let owner_name = owner(self.schema, name, tree, at);
        let action = self.dice.below(5);
        let Some((owner, index)) = tree.find(at) else {
            return;
        };
        let number = owner.0[index].0;
        let schema = self.schema;
        let fields = owner_name.as_deref().map_or(&[][..], |n| schema.fields(n));
        match action {
            0 => drop(owner.0.remove(index)),
            1 => {
                let copy = owner.0[index].clone();
                owner.0.push(copy);
            }
            2 | 3 => {
                let named = fields.iter().find(|field| field.number == number);
                if let (Some(field), Some(message)) = (named, &owner_name) {
                    owner.0[index].1 = self.value(message, field, &field.kind, 0);
                }
            }
            _ => {
                if let (Some(message), false) = (&owner_name, fields.is_empty()) {
                    let field = self.dice.pick(fields);
                    let value = self.value(message, field, &field.kind, 0);
                    owner.0.push((field.number, value));
                }
            }
        }
    }

    /// The bytes of a message with some of them changed, cut off or doubled: most are no message any more.
    pub fn scrambled(&mut self, tree: &Tree) -> Vec<u8> {
        let mut bytes = tree.encode();
        for _ in 0..=self.dice.below(4) {
            let at = self.dice.below(bytes.len() as u64 + 1) as usize;
            match self.dice.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.dice.below(256) as u8),
                2 => {
                    let tail = bytes.split_off(at);
                    bytes.extend_from_slice(&[0xff; 9]);
                    bytes.extend(tail);
                }
                _ if at < bytes.len() => bytes[at] ^= 1 << self.dice.below(8),
                _ => {}
            }
        }
        bytes
    }

    fn value(&mut self, message: &str, field: &Field, kind: &Kind, depth: usize) -> Value {
        match kind {
            Kind::Number => Value::Number(self.number(message, &field.name)),
            Kind::Double => Value::Double(f64::NAN.to_bits()),
            Kind::Text => Value::Bytes(self.text(message, &field.name)),
            Kind::Bytes => Value::Bytes(vec![0xff; self.dice.below(64) as usize]),
            Kind::Message(_) if depth >= MAX_DEPTH => Value::Message(Tree::default()),
            Kind::Message(inner) => Value::Message(self.message(inner, depth + 1)),
            Kind::Map(key, held) => {
                let mut entry = Tree::default();
                for (number, kind) in [(1, key), (2, held)] {
                    if self.dice.percent(90) {
                        let value = self.value(message, field, kind, depth + 1);
                        entry.0.push((number, value));
                    }
                }
                Value::Message(entry)
            }
        }
    }

    fn number(&mut self, message: &str, field: &str) -> u64 {
        let own = format!("{message}.{field}");
        let numbers = &self.words.numbers;
        let allowed = numbers.get(own.as_str()).or_else(|| numbers.get(field));
        // The sign goes into all 64 bits, as the encoding wants it.
        self.dice
            .pick(allowed.map_or(&NUMBERS, |a| a))
            .cast_unsigned()
    }

    fn text(&mut self, message: &str, field: &str) -> Vec<u8> {
        let own = format!("{message}.{field}");
        let texts = &self.words.texts;
        if let Some(allowed) = texts.get(own.as_str()).or_else(|| texts.get(field)) {
            return long(self.dice.pick(allowed));
        }
        if self.dice.percent(5) {
            return vec![b'a', 0xff, 0xfe];
        }
        long(self.dice.pick(&ODD))
    }
}

/// The text, or what it stands for.
fn long(text: impl AsRef<str>) -> Vec<u8> {
    match text.as_ref() {
        LONG => vec![b'l'; 100_000],
        text => text.as_bytes().to_vec(),
    }
}

/// The name of the message that holds the field which is number `at`; none inside of maps.
fn owner(schema: &Schema, name: &str, tree: &Tree, mut at: usize) -> Option<String> {
    for (number, value) in &tree.0 {
        if at == 0 {
            return Some(name.to_owned());
        }
        at -= 1;
        let Value::Message(inner) = value else {
            continue;
        };
        let inside = inner.count();
        if at < inside {
            let field = schema.fields(name).iter().find(|f| f.number == *number)?;
            let Kind::Message(inner_name) = &field.kind else {
                return None;
            };
            return owner(schema, inner_name, inner, at);
        }
        at -= inside;
    }
    None
}

/// Whether bytes that are changed at random could name something outside of the test: an image of another registry,
/// a directory, a cgroup.
pub fn reaches_out(rpc: &Rpc) -> bool {
    matches!(
        rpc.name.as_str(),
        "PullImage" | "RunPodSandbox" | "CreateContainer"
    )
}
