//! The scripted model's mind: from a conversation to the next thing to say. The conversation alone decides, so that several
//! can go on at once: the rule is the first that matches the last text of the user, the step is the number of answers since.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{Barrier, Mutex};

use crate::scenario::{Call, Rule, Scenario, Step};

/// What will be said, every placeholder filled in.
pub(crate) struct Turn {
    pub(crate) rule: String,
    pub(crate) index: usize,
    pub(crate) step: Step,
}

/// The next turn of a conversation, or why there is none.
pub(crate) fn next(scenario: &Scenario, messages: &[Value]) -> Result<Turn, String> {
    let (at, user) = last_user_text(messages).ok_or("the conversation has no text of a user")?;
    let rule = scenario
        .rules
        .iter()
        .find(|rule| user.starts_with(&rule.when.starts) && user.contains(&rule.when.contains))
        .ok_or_else(|| format!("no rule matches: {user}"))?;
    let index = messages[at..].iter().filter(|message| message["role"] == "assistant").count();
    let step = rule.steps.get(index).ok_or_else(|| format!("rule '{}' has no step {index}", rule.name))?;
    Ok(Turn { rule: rule.name.clone(), index, step: fill_step(step, &Known::of(rule, &user, messages)) })
}

/// The first line that the user said: what a conversation is called in the record.
pub(crate) fn title(messages: &[Value]) -> String {
    let first = messages.iter().find_map(|message| (message["role"] == "user").then(|| text_of(&message["content"])));
    first.unwrap_or_default().lines().next().unwrap_or("").chars().take(120).collect()
}

/// The last message that is not the system's: pi may add one of those after a tool's result.
fn last(messages: &[Value]) -> Option<&Value> {
    messages.iter().rfind(|message| message["role"] != "system")
}

pub(crate) fn last_text(messages: &[Value]) -> String {
    last(messages).map(|last| text_of(&last["content"])).unwrap_or_default()
}

pub(crate) fn ends_with_result(messages: &[Value]) -> bool {
    last(messages).is_some_and(has_tool_result)
}

fn last_user_text(messages: &[Value]) -> Option<(usize, String)> {
    let at = messages.iter().rposition(|message| message["role"] == "user" && !has_tool_result(message))?;
    Some((at, text_of(&messages[at]["content"])))
}

fn has_tool_result(message: &Value) -> bool {
    message["content"].as_array().is_some_and(|blocks| blocks.iter().any(|block| block["type"] == "tool_result"))
}

/// All text in a message's or a tool result's content.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts = blocks.iter().map(|block| match block["type"].as_str() {
                Some("text") => block["text"].as_str().unwrap_or("").to_owned(),
                Some("tool_result") => text_of(&block["content"]),
                _ => String::new(),
            });
            texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// What the placeholders stand for.
struct Known {
    user: String,
    rest: String,
    result: String,
    pulls: String,
}

impl Known {
    fn of(rule: &Rule, user: &str, messages: &[Value]) -> Self {
        let result = if ends_with_result(messages) { last_text(messages) } else { String::new() };
        let mut pulls = Vec::new();
        for word in result.split(|c: char| c.is_whitespace() || "\"'()<>,".contains(c)) {
            if word.starts_with("https://github.com/") && word.contains("/pull/") && !pulls.contains(&word) {
                pulls.push(word);
            }
        }
        Self {
            user: user.to_owned(),
            rest: user.strip_prefix(&rule.when.starts).unwrap_or_default().to_owned(),
            pulls: pulls.join("\n"),
            result,
        }
    }

    fn fill(&self, text: &str) -> String {
        let mut filled = String::new();
        let mut left = text;
        while let Some((before, after)) = left.split_once("{{") {
            filled.push_str(before);
            let Some((name, rest)) = after.split_once("}}") else {
                left = &left[before.len()..];
                break;
            };
            match name {
                "user" => filled.push_str(&self.user),
                "rest" => filled.push_str(&self.rest),
                "result" => filled.push_str(&self.result),
                "pulls" => filled.push_str(&self.pulls),
                unknown => filled.push_str(&format!("[no such placeholder: {unknown}]")),
            }
            left = rest;
        }
        filled + left
    }

    fn fill_value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.fill(text)),
            Value::Array(items) => items.iter().map(|item| self.fill_value(item)).collect(),
            Value::Object(fields) => Value::Object(self.fill_map(fields)),
            other => other.clone(),
        }
    }

    fn fill_map(&self, fields: &Map<String, Value>) -> Map<String, Value> {
        fields.iter().map(|(key, value)| (key.clone(), self.fill_value(value))).collect()
    }
}

fn fill_step(step: &Step, known: &Known) -> Step {
    let tools = step.tools.iter();
    let tools = tools.map(|call| Call { name: known.fill(&call.name), input: known.fill_map(&call.input) }).collect();
    Step { text: known.fill(&step.text), tools, ..step.clone() }
}

/// What a turn waits for before it is said.
pub(crate) struct Pace {
    gates: PathBuf,
    barriers: Mutex<Vec<(String, Arc<Barrier>)>>,
}

/// A barrier that nobody else comes to is a failed test, not one that hangs.
const BARRIER_LIMIT: Duration = Duration::from_secs(60);

impl Pace {
    pub(crate) fn new(record: &Path) -> Self {
        Self { gates: record.join("gates"), barriers: Mutex::new(Vec::new()) }
    }

    /// Returns when the turn may be said; an error says what it waited for in vain.
    pub(crate) async fn wait(&self, step: &Step) -> Result<(), String> {
        if let Some(wanted) = &step.barrier {
            let barrier = {
                let mut all = self.barriers.lock().await;
                let found = all.iter().find(|(name, _)| *name == wanted.name).map(|(_, barrier)| barrier.clone());
                found.unwrap_or_else(|| {
                    let made = Arc::new(Barrier::new(wanted.count));
                    all.push((wanted.name.clone(), made.clone()));
                    made
                })
            };
            let all_here = tokio::time::timeout(BARRIER_LIMIT, barrier.wait()).await;
            all_here.map_err(|_| format!("nobody else came to barrier '{}'", wanted.name))?;
        }
        if let Some(gate) = &step.gate {
            while tokio::fs::metadata(self.gates.join(gate)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(step.delay_ms)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scenario() -> Scenario {
        let text = json!({ "rules": [
            { "name": "sh", "when": { "starts": "sh: " }, "steps": [
                { "tools": [{ "name": "bash", "input": { "command": "{{rest}}", "list": ["{{user}}", 1] } }] },
                { "text": "{{result}} / {{pulls}} / {{nonsense}} / {{" },
            ] },
            { "name": "any", "steps": [{ "text": "{{user}}" }] },
        ] });
        serde_json::from_value(text).unwrap()
    }

    fn call() -> Value {
        json!({ "role": "assistant", "content": [{ "type": "tool_use", "id": "a", "name": "bash", "input": {} }] })
    }

    #[test]
    fn the_last_text_of_the_user_finds_the_rule_and_the_answers_since_are_the_step() {
        let mut talk = vec![json!({ "role": "user", "content": "hello" }), json!({ "role": "system", "content": [] })];
        assert_eq!(next(&scenario(), &talk).unwrap().step.text, "hello");
        talk.push(json!({ "role": "assistant", "content": [{ "type": "text", "text": "hello" }] }));
        assert!(next(&scenario(), &talk).is_err_and(|why| why == "rule 'any' has no step 1"));
        talk.push(json!({ "role": "user", "content": [{ "type": "text", "text": "sh: ls {{x}}" }] }));
        let turn = next(&scenario(), &talk).unwrap();
        assert_eq!((turn.rule.as_str(), turn.index), ("sh", 0));
        let input = Value::Object(turn.step.tools[0].input.clone());
        assert_eq!(input, json!({ "command": "ls {{x}}", "list": ["sh: ls {{x}}", 1] }));
    }

    #[test]
    fn a_result_is_found_before_a_message_of_the_system() {
        let result = json!([
            { "type": "tool_result", "tool_use_id": "a", "content": "see (https://github.com/o/r/pull/1)," },
            { "type": "tool_result", "tool_use_id": "b", "content": [{ "type": "text", "text": "two" }] },
        ]);
        let talk = [
            json!({ "role": "user", "content": "sh: ls" }),
            call(),
            json!({ "role": "user", "content": result }),
            json!({ "role": "system", "content": [] }),
        ];
        let said = next(&scenario(), &talk).unwrap().step.text;
        let pull = "https://github.com/o/r/pull/1";
        assert_eq!(said, format!("see ({pull}),\ntwo / {pull} / [no such placeholder: nonsense] / {{{{"));
    }
}
