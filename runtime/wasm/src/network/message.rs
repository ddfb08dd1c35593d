//! A DNS query and its answer on the wire. Source: RFC 1035, section 4.
//!
//! Called by [`super::resolver`]. Invariant: an answer counts only if it belongs to this query; anything else is
//! ignored. It must not know about sockets and servers.

use std::net::IpAddr;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

/// Most addresses that are taken from one answer.
const MAX_ADDRESSES: usize = 64;

/// The address family of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4, record type A.
    V4,
    /// IPv6, record type AAAA.
    V6,
}

impl Family {
    fn record(self) -> TYPE {
        match self {
            Self::V4 => TYPE::A,
            Self::V6 => TYPE::AAAA,
        }
    }
}

/// What a server's packet means for a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Not an answer to this query.
    Foreign,
    /// A truncated answer: query again over TCP.
    Cut,
    /// The addresses of the name; empty if it does not exist or has none of this family.
    Addresses(Vec<IpAddr>),
    /// The server failed or refused.
    Failed,
}

/// One query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    /// Id that the answer repeats; random for each query.
    pub(super) id: u16,
    /// A full name without its final dot.
    pub(super) name: &'a str,
    /// Family of the wanted addresses.
    pub(super) family: Family,
}

impl Query<'_> {
    /// The query as bytes; `None` if the name is not valid.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        let mut packet = Packet::new_query(self.id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(
            Name::new(self.name).ok()?,
            QTYPE::TYPE(self.family.record()),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet.build_bytes_vec().ok()
    }

    /// Parses `bytes` as an answer to this query.
    pub(super) fn reply(&self, bytes: &[u8]) -> Reply {
        let Ok(packet) = Packet::parse(bytes) else {
            return Reply::Foreign;
        };
        if !self.is_answered_by(&packet) {
            return Reply::Foreign;
        }
        if packet.has_flags(PacketFlag::TRUNCATION) {
            return Reply::Cut;
        }
        match packet.rcode() {
            RCODE::NoError => Reply::Addresses(self.addresses(&packet)),
            RCODE::NameError => Reply::Addresses(Vec::new()),
            _ => Reply::Failed,
        }
    }

    fn is_answered_by(&self, packet: &Packet<'_>) -> bool {
        let [question] = packet.questions.as_slice() else {
            return false;
        };
        packet.id() == self.id
            && packet.has_flags(PacketFlag::RESPONSE)
            && question.qtype == QTYPE::TYPE(self.family.record())
            && question.qname.to_string().eq_ignore_ascii_case(self.name)
    }

    /// The addresses of the wanted family. A recursing server appends the records that aliases point to.
    fn addresses(&self, packet: &Packet<'_>) -> Vec<IpAddr> {
        let address = |data: &RData<'_>| match (data, self.family) {
            (RData::A(a), Family::V4) => Some(IpAddr::from(a.address.to_be_bytes())),
            (RData::AAAA(aaaa), Family::V6) => Some(IpAddr::from(aaaa.address.to_be_bytes())),
            _ => None,
        };
        let found = packet
            .answers
            .iter()
            .filter(|answer| answer.class == CLASS::IN);
        found
            .filter_map(|answer| address(&answer.rdata))
            .take(MAX_ADDRESSES)
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, CNAME};

    use super::*;

    const QUERY: Query<'_> = Query {
        id: 0x1234,
        name: "www.example.com",
        family: Family::V4,
    };

    fn answer(change: impl FnOnce(&mut Packet<'_>)) -> Vec<u8> {
        let question = QUERY.bytes().unwrap();
        let mut packet = Packet::parse(&question).unwrap().into_reply();
        let name = |text| Name::new_unchecked(text);
        let alias = RData::CNAME(CNAME(name("real.example.net")));
        let own = ResourceRecord::new(name("www.example.com"), CLASS::IN, 60, alias);
        let address = RData::A(A {
            address: 0xcb00_7109,
        });
        let real = ResourceRecord::new(name("real.example.net"), CLASS::IN, 60, address);
        packet.answers.extend([own, real]);
        change(&mut packet);
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn addresses_behind_an_alias_are_found() {
        let found = QUERY.reply(&answer(|_| {}));
        assert_eq!(
            found,
            Reply::Addresses(vec!["203.0.113.9".parse().unwrap()])
        );
        let upper = Query {
            name: "WWW.Example.COM",
            ..QUERY
        };
        assert_eq!(upper.reply(&answer(|_| {})), found);
    }

    #[test]
    fn answers_to_other_queries_are_ignored() {
        let other_id = Query { id: 1, ..QUERY };
        let other_name = Query {
            name: "www.example.org",
            ..QUERY
        };
        let other_family = Query {
            family: Family::V6,
            ..QUERY
        };
        for query in [other_id, other_name, other_family] {
            assert_eq!(query.reply(&answer(|_| {})), Reply::Foreign, "{query:?}");
        }
        assert_eq!(QUERY.reply(&QUERY.bytes().unwrap()), Reply::Foreign);
        assert_eq!(QUERY.reply(&[0; 11]), Reply::Foreign);
        let whole = answer(|_| {});
        for length in 0..whole.len() {
            assert_eq!(
                QUERY.reply(&whole[..length]),
                Reply::Foreign,
                "{length} bytes"
            );
        }
    }

    #[test]
    fn absent_refused_and_truncated_answers_are_distinguished() {
        let with = |code| {
            answer(move |packet| {
                packet.answers.clear();
                *packet.rcode_mut() = code;
            })
        };
        assert_eq!(
            QUERY.reply(&with(RCODE::NameError)),
            Reply::Addresses(vec![])
        );
        assert_eq!(QUERY.reply(&with(RCODE::NoError)), Reply::Addresses(vec![]));
        assert_eq!(QUERY.reply(&with(RCODE::ServerFailure)), Reply::Failed);
        assert_eq!(QUERY.reply(&with(RCODE::Refused)), Reply::Failed);
        let cut = answer(|packet| packet.set_flags(PacketFlag::TRUNCATION));
        assert_eq!(QUERY.reply(&cut), Reply::Cut);
    }

    #[test]
    fn invalid_names_are_not_queried() {
        let name = &*"a".repeat(64);
        assert_eq!(Query { name, ..QUERY }.bytes(), None);
    }
}
