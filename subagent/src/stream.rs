//! pi's event stream: bytes in, the few facts that matter out, in constant memory. A line may be as long as a transcript:
//! of one that is longer than a megabyte only both ends are kept, and streaming updates are not kept at all. Pure.

use std::borrow::Cow;

use serde::Deserialize;

use crate::report::Usage;

/// The longest line that is kept whole.
const WHOLE: usize = 1 << 20;
/// What is kept of the end of a longer one: usage and stop reason are there.
const TAIL: usize = 8 << 10;
/// Told by their first bytes, needed for nothing but the sign of life.
const SKIPPED: [&[u8]; 2] = [br#"{"type":"message_update""#, br#"{"type":"agent_end""#];

/// What happened in pi, as far as the run is concerned.
#[derive(Debug, PartialEq)]
pub(crate) enum PiEvent {
    Session,
    TurnStart,
    Message { usage: Option<Usage>, assistant: Option<Assistant> },
    ToolStart { id: String, name: String, summary: String },
    ToolEnd { id: String },
    RetryStart { attempt: u64, max: u64, delay_ms: u64, error: String },
    Settled { aborted: bool },
    Other,
}

/// A finished message of the model.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Assistant {
    pub(crate) stop_reason: String,
    pub(crate) error: Option<String>,
    /// Its last block of text.
    pub(crate) text: Option<String>,
}

/// Cuts the stream into lines.
#[derive(Default)]
pub(crate) struct Lines {
    head: Vec<u8>,
    tail: Vec<u8>,
    skip: bool,
}

impl Lines {
    /// Takes what was read. `event` gets each finished line's meaning, `raw` every byte that is worth a log.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut event: impl FnMut(PiEvent), mut raw: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
            bytes = rest;
            self.keep(part, &mut raw);
            if end.is_some() {
                event(if self.skip { PiEvent::Other } else { self.meaning() });
                self.restart();
            }
        }
    }

    fn keep(&mut self, part: &[u8], raw: &mut impl FnMut(&[u8])) {
        if self.skip {
            return;
        }
        let logged = self.head.len();
        let room = WHOLE.saturating_sub(self.head.len()).min(part.len());
        let (head, tail) = part.split_at(room);
        self.head.extend_from_slice(head);
        if SKIPPED.iter().any(|prefix| self.head.starts_with(prefix)) {
            self.skip = true;
            return;
        }
        // The first bytes are held back until it is clear that the line is wanted.
        const DECIDED: usize = 32;
        if self.head.len() >= DECIDED || part.ends_with(b"\n") {
            raw(&self.head[if logged >= DECIDED { logged } else { 0 }..]);
        }
        if !tail.is_empty() {
            raw(tail);
            self.tail.extend_from_slice(tail);
            let surplus = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..surplus);
        }
    }

    fn restart(&mut self) {
        self.head.clear();
        self.head.shrink_to(64 << 10);
        self.tail.clear();
        self.skip = false;
    }

    fn meaning(&self) -> PiEvent {
        if self.tail.is_empty() { whole(&self.head) } else { ends(&self.head, &self.tail) }.unwrap_or(PiEvent::Other)
    }
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    message: Option<Message>,
    #[serde(default)]
    tool_call_id: String,
    #[serde(default)]
    tool_name: String,
    #[serde(default)]
    attempt: u64,
    #[serde(default)]
    max_attempts: u64,
    #[serde(default)]
    delay_ms: u64,
    #[serde(default)]
    error_message: String,
    #[serde(default)]
    aborted: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    role: String,
    usage: Option<Usage>,
    stop_reason: Option<String>,
    error_message: Option<String>,
}

#[derive(Deserialize)]
struct Texts {
    message: Content,
}

#[derive(Deserialize)]
struct Content {
    content: Vec<Block>,
}

#[derive(Deserialize)]
struct Block {
    text: Option<String>,
}

#[derive(Deserialize)]
struct Call {
    args: Args,
}

/// The argument that says most, of pi's own tools.
#[derive(Deserialize)]
struct Args {
    command: Option<String>,
    path: Option<String>,
    pattern: Option<String>,
    query: Option<String>,
}

fn whole(line: &[u8]) -> Option<PiEvent> {
    let kind: Kind = serde_json::from_slice(line).ok()?;
    let facts = || serde_json::from_slice::<Facts>(line).ok();
    Some(match kind.kind.as_ref() {
        "session" => PiEvent::Session,
        "turn_start" => PiEvent::TurnStart,
        "message_end" => {
            let message = facts()?.message?;
            let assistant = (message.role == "assistant").then(|| Assistant {
                stop_reason: message.stop_reason.unwrap_or_default(),
                error: message.error_message,
                text: serde_json::from_slice::<Texts>(line).ok().and_then(|texts| texts.message.last_text()),
            });
            PiEvent::Message { usage: message.usage, assistant }
        }
        "tool_execution_start" => {
            let facts = facts()?;
            let summary = serde_json::from_slice::<Call>(line).map(|call| call.args.summary()).unwrap_or_default();
            PiEvent::ToolStart { id: facts.tool_call_id, name: facts.tool_name, summary }
        }
        "tool_execution_end" => PiEvent::ToolEnd { id: facts()?.tool_call_id },
        "auto_retry_start" => {
            let facts = facts()?;
            let (attempt, max, delay_ms) = (facts.attempt, facts.max_attempts, facts.delay_ms);
            PiEvent::RetryStart { attempt, max, delay_ms, error: clip(&facts.error_message, 300) }
        }
        "agent_settled" => PiEvent::Settled { aborted: facts()?.aborted },
        _ => PiEvent::Other,
    })
}

impl Content {
    fn last_text(self) -> Option<String> {
        self.content.into_iter().rev().find_map(|block| block.text.filter(|text| !text.trim().is_empty()))
    }
}

impl Args {
    fn summary(self) -> String {
        let text = self.command.or(self.path).or(self.pattern).or(self.query).unwrap_or_default();
        clip(text.lines().next().unwrap_or_default(), 100)
    }
}

/// A line of which the middle is missing: fields are looked for by name.
fn ends(head: &[u8], tail: &[u8]) -> Option<PiEvent> {
    let start = String::from_utf8_lossy(&head[..head.len().min(TAIL)]);
    let end = String::from_utf8_lossy(tail);
    let text = |name: &str| value_of::<String>(&start, name, false);
    Some(match text("type")?.as_str() {
        "message_end" => {
            let assistant = (text("role")? == "assistant").then(|| Assistant {
                stop_reason: value_of(&end, "stopReason", true).unwrap_or_default(),
                error: value_of(&end, "errorMessage", true),
                text: None,
            });
            PiEvent::Message { usage: assistant.as_ref().and_then(|_| value_of(&end, "usage", true)), assistant }
        }
        "tool_execution_start" => {
            PiEvent::ToolStart { id: text("toolCallId")?, name: text("toolName")?, summary: String::new() }
        }
        "tool_execution_end" => PiEvent::ToolEnd { id: text("toolCallId")? },
        _ => PiEvent::Other,
    })
}

fn value_of<T: for<'de> Deserialize<'de>>(text: &str, name: &str, last: bool) -> Option<T> {
    let key = format!("\"{name}\":");
    let at = if last { text.rfind(&key) } else { text.find(&key) }? + key.len();
    serde_json::Deserializer::from_str(&text[at..]).into_iter().next()?.ok()
}

/// The first characters of a text, with a sign that there were more.
pub(crate) fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(input: &[u8], piece: usize) -> (Vec<PiEvent>, Vec<u8>) {
        let (mut lines, mut found, mut log) = (Lines::default(), Vec::new(), Vec::new());
        for part in input.chunks(piece) {
            lines.feed(part, |event| found.push(event), |raw| log.extend_from_slice(raw));
        }
        (found, log)
    }

    const STREAM: &str = concat!(
        r#"{"type":"session","version":3,"id":"sa-x","cwd":"/w"}"#,
        "\n",
        r#"{"type":"message_update","usage":{},"assistantMessageEvent":{"type":"text_delta","delta":"a"}}"#,
        "\n",
        r#"{"type":"message_end","message":{"role":"assistant","content":[{"type":"text","text":"first"},{"type":"text","text":"last\u2028"},{"type":"toolCall","id":"t","name":"bash","arguments":{}}],"usage":{"input":3,"output":4,"cacheRead":0,"cacheWrite":0,"totalTokens":7,"cost":{"input":0.1,"output":0.2,"cacheRead":0,"cacheWrite":0,"total":0.3}},"stopReason":"toolUse"}}"#,
        "\n",
        r#"{"type":"tool_execution_start","toolCallId":"t","toolName":"bash","args":{"command":"cargo test\nls"}}"#,
        "\n",
        r#"{"type":"tool_execution_end","toolCallId":"t","toolName":"bash","result":{},"isError":false}"#,
        "\n",
        r#"{"type":"agent_settled","aborted":false}"#,
        "\n",
    );

    #[test]
    fn the_stream_means_the_same_however_it_is_cut() {
        let (whole, log) = events(STREAM.as_bytes(), usize::MAX);
        assert_eq!(whole.len(), 6);
        let PiEvent::Message { usage: Some(usage), assistant: Some(assistant) } = &whole[2] else {
            panic!("{whole:?}")
        };
        assert_eq!((usage.total_tokens, usage.cost.total), (7, 0.3));
        assert_eq!((assistant.text.as_deref(), assistant.stop_reason.as_str()), (Some("last\u{2028}"), "toolUse"));
        assert_eq!(whole[3], PiEvent::ToolStart { id: "t".into(), name: "bash".into(), summary: "cargo test".into() });
        assert_eq!(whole[5], PiEvent::Settled { aborted: false });
        for piece in [1, 2, 7, 100] {
            assert_eq!(
                events(STREAM.as_bytes(), piece),
                (events(STREAM.as_bytes(), usize::MAX).0, log.clone()),
                "{piece}"
            );
        }
    }

    #[test]
    fn the_log_has_everything_but_streaming_updates() {
        let log = String::from_utf8(events(STREAM.as_bytes(), 5).1).unwrap();
        let wanted: String =
            STREAM.lines().filter(|l| !l.contains("message_update")).map(|l| format!("{l}\n")).collect();
        assert_eq!(log, wanted);
    }

    #[test]
    fn a_line_of_many_megabytes_keeps_its_usage_and_no_memory() {
        let big = "x".repeat(5 << 20);
        let line = format!(
            r#"{{"type":"message_end","message":{{"role":"assistant","content":[{{"type":"text","text":"{big}"}}],"usage":{{"input":1,"output":2,"totalTokens":3,"cost":{{"total":0.5}}}},"stopReason":"stop","timestamp":1}}}}{}"#,
            "\n"
        );
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for part in line.as_bytes().chunks(65536) {
            lines.feed(part, |event| found.push(event), |_| {});
            assert!(lines.head.capacity() <= 2 * WHOLE && lines.tail.capacity() <= 256 << 10);
        }
        let [PiEvent::Message { usage: Some(usage), assistant: Some(assistant) }] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((usage.total_tokens, assistant.stop_reason.as_str()), (3, "stop"));
        assert!(lines.head.capacity() <= 64 << 10);
    }

    #[test]
    fn what_is_not_json_is_only_a_sign_of_life() {
        assert_eq!(events(b"warning: x\n{\"type\":7}\n\n", 3).0, [PiEvent::Other, PiEvent::Other, PiEvent::Other]);
    }
}
