//! A name server that knows every name: it writes each query down and answers an A query with the one address it was given, or
//! with the address that the name's first label spells (`10-0-0-1.example.com`), as public services do; every address is called
//! `api.github.com`, as an attacker may call his own. It is what a leak by DNS would arrive at.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::net::UdpSocket;

use crate::{World, record};

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
/// What every address is called.
const REVERSE: &[u8] = b"\x03api\x06github\x03com\0";

pub(crate) async fn listen(world: Arc<World>, ip: IpAddr, answer: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((ip, 53)).await.context("cannot listen on UDP port 53")?;
    tokio::spawn(async move {
        let mut packet = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            let Some((name, kind, end)) = question(&packet[..length]) else { continue };
            world.record.event(record::now(), "DNS", &name, &kind.to_string());
            let answer = spelled(&name).unwrap_or(answer);
            let _ = socket.send_to(&reply(&packet[..end], kind, answer), from).await;
        }
    });
    Ok(())
}

/// The first question's name and type, and where it ends.
fn question(packet: &[u8]) -> Option<(String, u16, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // A compressed name has no business in a question.
        if length > 63 {
            return None;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + length)?).into_owned());
        at += length;
    }
    let kind = u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?);
    packet.get(at + 2..at + 4)?;
    Some((labels.join("."), kind, at + 4))
}

/// The address that the first label spells with dashes.
fn spelled(name: &str) -> Option<Ipv4Addr> {
    name.split('.').next()?.replace('-', ".").parse().ok()
}

fn reply(query: &[u8], kind: u16, answer: Ipv4Addr) -> Vec<u8> {
    let address = answer.octets();
    let data = match kind {
        TYPE_A => &address[..],
        TYPE_PTR => REVERSE,
        _ => &[],
    };
    let answers = u8::from(!data.is_empty());
    let mut packet = query.to_vec();
    // A response, authoritative, recursion available; one question, no authority and no additional records.
    packet[2] = 0x84 | (query[2] & 1);
    packet[3] = 0x80;
    packet[4..12].copy_from_slice(&[0, 1, 0, answers, 0, 0, 0, 0]);
    if answers == 1 {
        packet.extend_from_slice(&[0xc0, 12]);
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).unwrap_or(0)]);
        packet.extend_from_slice(data);
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_a_query_gets_the_address_and_any_other_nothing() {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x01a\x07example\0\0\x01\0\x01more";
        let (name, kind, end) = question(query).unwrap();
        assert_eq!((name.as_str(), kind, end), ("a.example", TYPE_A, query.len() - 4));
        let said = reply(&query[..end], kind, Ipv4Addr::new(192, 88, 99, 2));
        assert_eq!(said[..12], *b"\x12\x34\x85\x80\0\x01\0\x01\0\0\0\0");
        assert_eq!(said[said.len() - 4..], [192, 88, 99, 2]);
        assert_eq!(reply(&query[..end], 28, Ipv4Addr::LOCALHOST).len(), end);
        assert!(reply(&query[..end], TYPE_PTR, Ipv4Addr::LOCALHOST).ends_with(REVERSE));
    }

    #[test]
    fn a_name_that_spells_an_address_has_it() {
        assert_eq!(spelled("10-0-0-1.example.com"), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(spelled("10-0-0.example.com"), None);
        assert_eq!(spelled("x-10-0-0-1.example.com"), None);
    }

    #[test]
    fn what_is_no_question_is_left_alone() {
        for packet in [&b""[..], b"\0\0\0\0\0\0\0\0\0\0\0\0\x3fabc", b"\0\0\0\0\0\0\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01"] {
            assert!(question(packet).is_none());
        }
    }
}
