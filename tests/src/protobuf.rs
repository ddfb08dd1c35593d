//! Messages of the CRI as trees of fields that need not make sense, and their bytes.
//!
//! Called by: [`crate::hostile`]. The protocol's table, `proto/fields.txt`, lists the fields, so that a new RPC or field
//! is tested without a change here.
//! Source of the encoding: the Protocol Buffers encoding specification.
//! Not here: which values are chosen.

use std::collections::BTreeMap;

/// The table of the protocol; see its first lines.
const TABLE: &str = include_str!("../../proto/fields.txt");

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// Bytes.
    Bytes,
    /// A number of any width, a bool or an enum: a varint on the wire.
    Number,
    /// Eight bytes of floating point.
    Double,
    /// A message of this name.
    Message(String),
    /// A map: entries with a key and a value.
    Map(Box<Kind>, Box<Kind>),
}

/// One field of a message.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// What it holds, each time.
    pub kind: Kind,
    /// Whether there may be several.
    pub is_repeated: bool,
}

/// One call of the protocol.
#[derive(Clone, Debug)]
pub struct Rpc {
    /// `RuntimeService` or `ImageService`.
    pub service: String,
    /// Its name.
    pub name: String,
    /// The name of its request.
    pub request: String,
}

/// All calls and messages.
#[derive(Debug)]
pub struct Schema {
    /// The calls in the order of the protocol.
    pub rpcs: Vec<Rpc>,
    messages: BTreeMap<String, Vec<Field>>,
}

impl Schema {
    /// Reads the table. Errors: a line with another syntax than its first word requires.
    pub fn read() -> Result<Self, String> {
        let parts = |line: &'static str| line.split(' ').collect::<Vec<_>>();
        let lines = || TABLE.lines().map(parts);
        let messages = lines().filter_map(|parts| match parts[..] {
            ["message", name] => Some((name.to_owned(), Vec::new())),
            _ => None,
        });
        let mut schema = Self {
            rpcs: Vec::new(),
            messages: messages.collect(),
        };
        for parts in lines() {
            match parts[..] {
                ["rpc", name, request, "->", ..] => {
                    let (service, name) = name.split_once('.').ok_or("an rpc without service")?;
                    schema.rpcs.push(Rpc {
                        service: service.into(),
                        name: name.into(),
                        request: request.into(),
                    });
                }
                ["field", message, number, name, ref kind @ ..] => {
                    let is_repeated = kind.first() == Some(&"repeated");
                    let kind = kind.get(usize::from(is_repeated)).ok_or("no type")?;
                    let field = Field {
                        number: number.parse().map_err(|e| format!("{number}: {e}"))?,
                        name: name.into(),
                        kind: schema.kind(kind),
                        is_repeated,
                    };
                    let fields = schema.messages.get_mut(message);
                    fields.ok_or("a field of no message")?.push(field);
                }
                _ => {}
            }
        }
        Ok(schema)
    }

    fn kind(&self, text: &str) -> Kind {
        if let Some((key, value)) = text
            .strip_prefix("map<")
            .and_then(|rest| rest.strip_suffix('>')?.split_once(','))
        {
            return Kind::Map(Box::new(self.kind(key)), Box::new(self.kind(value)));
        }
        match text {
            "string" => Kind::Text,
            "bytes" => Kind::Bytes,
            "double" => Kind::Double,
            name if self.messages.contains_key(name) => Kind::Message(name.into()),
            _ => Kind::Number,
        }
    }

    /// The fields of a message; none of one that is not there.
    pub fn fields(&self, message: &str) -> &[Field] {
        self.messages.get(message).map_or(&[], Vec::as_slice)
    }

    /// The field of this name. Errors: there is none.
    pub fn field(&self, message: &str, name: &str) -> Result<&Field, String> {
        let found = self.fields(message).iter().find(|field| field.name == name);
        found.ok_or_else(|| format!("message {message} has no field {name}"))
    }
}

/// What one field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A varint.
    Number(u64),
    /// Eight bytes.
    Double(u64),
    /// Text or bytes.
    Bytes(Vec<u8>),
    /// A message.
    Message(Tree),
}

/// A message: its fields in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree(pub Vec<(u32, Value)>);

impl Tree {
    /// Puts a value at `path`, the names of fields from this message, which is a `message`, apart by dots. Messages on
    /// the way are made; the last field is added to those that are there. Errors: no such field.
    pub fn put(
        &mut self,
        schema: &Schema,
        message: &str,
        path: &str,
        value: Value,
    ) -> Result<(), String> {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        let field = schema.field(message, first)?;
        let Kind::Message(inner) = &field.kind else {
            self.0.push((field.number, value));
            return Ok(());
        };
        if !self.0.iter().any(|(number, _)| *number == field.number) {
            self.0.push((field.number, Value::Message(Self::default())));
        }
        let held = self.0.iter_mut().rev();
        for (_, held) in held.filter(|(number, _)| *number == field.number) {
            match held {
                Value::Message(tree) if !rest.is_empty() => {
                    return tree.put(schema, inner, rest, value);
                }
                _ => *held = value.clone(),
            }
        }
        Ok(())
    }

    /// How many fields there are, those of inner messages included.
    pub fn count(&self) -> usize {
        let inner = |value: &Value| match value {
            Value::Message(tree) => tree.count(),
            _ => 0,
        };
        self.0.iter().map(|(_, value)| 1 + inner(value)).sum()
    }

    /// The message that holds the field which is number `at` in the order of writing, and its place in there.
    pub fn find(&mut self, mut at: usize) -> Option<(&mut Self, usize)> {
        for index in 0..self.0.len() {
            if at == 0 {
                return Some((self, index));
            }
            at -= 1;
            let inside = match &self.0[index].1 {
                Value::Message(tree) => tree.count(),
                _ => 0,
            };
            if at < inside {
                let Value::Message(tree) = &mut self.0[index].1 else {
                    return None;
                };
                return tree.find(at);
            }
            at -= inside;
        }
        None
    }

    /// The message without the field which is number `at`.
    pub fn without(&self, at: usize) -> Self {
        let mut rest = self.clone();
        if let Some((owner, index)) = rest.find(at) {
            owner.0.remove(index);
        }
        rest
    }

    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, value) in &self.0 {
            let wire_type = match value {
                Value::Number(_) => 0,
                Value::Double(_) => 1,
                Value::Bytes(_) | Value::Message(_) => 2,
            };
            varint(&mut bytes, u64::from(*number) << 3 | wire_type);
            match value {
                Value::Number(number) => varint(&mut bytes, *number),
                Value::Double(bits) => bytes.extend_from_slice(&bits.to_le_bytes()),
                Value::Bytes(content) => prefixed(&mut bytes, content),
                Value::Message(tree) => prefixed(&mut bytes, &tree.encode()),
            }
        }
        bytes
    }
}

fn prefixed(bytes: &mut Vec<u8>, content: &[u8]) {
    varint(bytes, content.len() as u64);
    bytes.extend_from_slice(content);
}

fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_has_a_request_with_known_fields() {
        let schema = Schema::read().unwrap();
        assert!(schema.rpcs.len() >= 43, "{}", schema.rpcs.len());
        let labels = schema.field("PodSandboxConfig", "labels").unwrap();
        assert_eq!(
            labels.kind,
            Kind::Map(Box::new(Kind::Text), Box::new(Kind::Text))
        );
        let mounts = schema.field("ContainerConfig", "mounts").unwrap();
        assert_eq!(mounts.kind, Kind::Message("Mount".into()));
        assert!(mounts.is_repeated);
    }

    #[test]
    fn trees_are_written_as_the_specification_says() {
        let schema = Schema::read().unwrap();
        let mut tree = Tree::default();
        let text = |text: &str| Value::Bytes(text.into());
        let message = "RunPodSandboxRequest";
        tree.put(&schema, message, "config.metadata.name", text("n"))
            .unwrap();
        tree.put(
            &schema,
            message,
            "config.metadata.attempt",
            Value::Number(300),
        )
        .unwrap();
        assert_eq!(
            tree.encode(),
            [10, 8, 10, 6, 10, 1, b'n', 32, 0xac, 2],
            "{tree:?}"
        );
        assert_eq!(tree.count(), 4);
        assert_eq!(tree.without(2).encode(), [10, 5, 10, 3, 32, 0xac, 2]);
        assert_eq!(tree.without(1).encode(), [10, 0]);
        assert!(
            tree.put(&schema, message, "config.nothing", text(""))
                .is_err()
        );
    }
}
