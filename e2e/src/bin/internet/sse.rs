//! One turn of the model as the Messages API streams it: server-sent events, text and tool arguments in pieces.

use std::io;

use bytes::Bytes;
use http_body_util::channel::Sender;
use serde_json::{Value, json};

use crate::scenario::Usage;
use crate::script::Turn;

/// A message that is about to be said.
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) model: String,
    /// The content blocks, as they will be in the transcript.
    pub(crate) content: Vec<Value>,
    pub(crate) usage: Usage,
}

type Out = Sender<Bytes, io::Error>;

/// Streams `message`. An error means that the client has gone.
pub(crate) async fn say(out: &mut Out, message: &Message, turn: &Turn) -> Result<(), ()> {
    let Usage { input, output } = message.usage;
    let usage = json!({ "input_tokens": input, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1 });
    let start = json!({ "id": message.id, "type": "message", "role": "assistant", "model": message.model, "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage });
    send(out, "message_start", json!({ "message": start })).await?;
    send(out, "ping", json!({})).await?;
    for (index, block) in message.content.iter().enumerate() {
        let (empty, kind, key, whole) = if block["type"] == "text" {
            (
                json!({ "type": "text", "text": "" }),
                "text_delta",
                "text",
                block["text"].as_str().unwrap_or("").to_owned(),
            )
        } else {
            let mut empty = block.clone();
            empty["input"] = json!({});
            (empty, "input_json_delta", "partial_json", block["input"].to_string())
        };
        send(out, "content_block_start", json!({ "index": index, "content_block": empty })).await?;
        for piece in pieces(&whole) {
            send(out, "content_block_delta", json!({ "index": index, "delta": { "type": kind, key: piece } })).await?;
            if turn.step.cut {
                return Err(());
            }
        }
        send(out, "content_block_stop", json!({ "index": index })).await?;
    }
    let default = if turn.step.tools.is_empty() { "end_turn" } else { "tool_use" };
    let reason = turn.step.stop_reason.as_deref().unwrap_or(default);
    let delta =
        json!({ "delta": { "stop_reason": reason, "stop_sequence": null }, "usage": { "output_tokens": output } });
    send(out, "message_delta", delta).await?;
    send(out, "message_stop", json!({})).await
}

/// An error in the middle of a stream.
pub(crate) async fn fail(out: &mut Out, message: &str) -> Result<(), ()> {
    send(out, "error", json!({ "error": { "type": "api_error", "message": message } })).await
}

async fn send(out: &mut Out, event: &str, mut data: Value) -> Result<(), ()> {
    data["type"] = event.into();
    out.send_data(format!("event: {event}\ndata: {data}\n\n").into()).await.map_err(|_| ())
}

/// Cuts a text into pieces, at least one, never inside a character.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut left = text;
    while left.len() > 48 {
        let at = (24..).find(|at| left.is_char_boundary(*at)).unwrap_or(left.len());
        let (piece, rest) = left.split_at(at);
        pieces.push(piece);
        left = rest;
    }
    pieces.push(left);
    pieces
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn pieces_make_the_whole_again() {
        for text in ["", "short", &"größe 日本 🦀 ".repeat(20)] {
            assert_eq!(pieces(text).concat(), *text);
        }
        assert!(pieces(&"x".repeat(100)).len() > 1);
    }
}
