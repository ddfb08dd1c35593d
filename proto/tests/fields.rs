//! Holds the compiled descriptor of `api.proto` against `fields.txt`, both ways: a missing, extra, renamed
//! or renumbered field, enum value or RPC, a changed type and a changed streaming flag all fail.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
};

const PACKAGE: &str = ".runtime.v1.";

/// Every fact of the compiled descriptor, in the form of `fields.txt`.
fn compiled() -> Vec<String> {
    let set = FileDescriptorSet::decode(coracle_proto::FILE_DESCRIPTOR_SET).unwrap();
    let [file]: [FileDescriptorProto; 1] = set.file.try_into().unwrap();
    assert_eq!(file.package(), "runtime.v1");
    assert_eq!(file.syntax(), "proto3");
    assert!(file.dependency.is_empty() && file.extension.is_empty());
    let mut facts = Vec::new();
    file.service.iter().for_each(|s| rpcs(s, &mut facts));
    file.enum_type
        .iter()
        .for_each(|e| values("", e, &mut facts));
    file.message_type
        .iter()
        .for_each(|m| message(m, &mut facts));
    facts
}

fn rpcs(service: &ServiceDescriptorProto, facts: &mut Vec<String>) {
    for rpc in &service.method {
        let stream = |on| if on { "stream " } else { "" };
        facts.push(format!(
            "rpc {}.{} {}{} -> {}{}",
            service.name(),
            rpc.name(),
            stream(rpc.client_streaming()),
            local(rpc.input_type()),
            stream(rpc.server_streaming()),
            local(rpc.output_type()),
        ));
    }
}

fn values(scope: &str, item: &EnumDescriptorProto, facts: &mut Vec<String>) {
    for value in &item.value {
        facts.push(format!(
            "value {scope}{}.{} {}",
            item.name(),
            value.name(),
            value.number()
        ));
    }
}

fn message(item: &DescriptorProto, facts: &mut Vec<String>) {
    assert!(item.oneof_decl.is_empty(), "{} has a oneof", item.name());
    facts.push(format!("message {}", item.name()));
    let scope = format!("{}.", item.name());
    item.enum_type.iter().for_each(|e| values(&scope, e, facts));
    for nested in &item.nested_type {
        let is_map = nested.options.as_ref().is_some_and(|o| o.map_entry());
        assert!(is_map, "{scope}{} is a nested message", nested.name());
    }
    for field in &item.field {
        let deprecated = field.options.as_ref().is_some_and(|o| o.deprecated());
        facts.push(format!(
            "field {} {} {} {}{}",
            item.name(),
            field.number(),
            field.name(),
            type_of(item, field),
            if deprecated { " deprecated" } else { "" }
        ));
    }
}

fn type_of(owner: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let single = match field.r#type() {
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::Bool => "bool",
        Type::Double => "double",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Uint32 => "uint32",
        Type::Uint64 => "uint64",
        Type::Message | Type::Enum => local(field.type_name()),
        other => panic!("{}.{} is a {other:?}", owner.name(), field.name()),
    };
    let entry =
        (owner.nested_type.iter()).find(|n| single == format!("{}.{}", owner.name(), n.name()));
    match entry {
        Some(entry) => format!(
            "map<{},{}>",
            type_of(entry, &entry.field[0]),
            type_of(entry, &entry.field[1])
        ),
        None if field.label() == Label::Repeated => format!("repeated {single}"),
        None => single.to_owned(),
    }
}

fn local(name: &str) -> &str {
    name.strip_prefix(PACKAGE).unwrap()
}

/// Every fact of the committed table.
fn table() -> Vec<String> {
    include_str!("../fields.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn compiled_descriptor_and_field_table_agree() {
    let (compiled, table) = (compiled(), table());
    let have: BTreeSet<_> = compiled.iter().collect();
    let want: BTreeSet<_> = table.iter().collect();
    assert_eq!(
        have.len(),
        compiled.len(),
        "a fact appears twice in the proto"
    );
    assert_eq!(want.len(), table.len(), "a line appears twice in the table");
    let missing: Vec<_> = want.difference(&have).collect();
    let extra: Vec<_> = have.difference(&want).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "not in the proto: {missing:#?}\nnot in the table: {extra:#?}"
    );
}

#[test]
fn the_table_is_the_whole_api() {
    let table = table();
    let count = |prefix: &str| table.iter().filter(|l| l.starts_with(prefix)).count();
    assert_eq!(count("rpc RuntimeService."), 37);
    assert_eq!(count("rpc ImageService."), 6);
    assert_eq!(count("message "), MESSAGES);
    assert_eq!(count("field "), FIELDS);
    assert_eq!(count("value "), VALUES);
}

/// Counted in CRI API v0.37.
const MESSAGES: usize = 175;
const FIELDS: usize = 478;
const VALUES: usize = 95;
