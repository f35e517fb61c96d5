//! JSON as it is read and written here: objects, parsed by serde_json, written without its writer.
//!
//! That writer, and every way to write a fraction, would cost this program more than all of its parser. What is written is an auth.json,
//! which has none, and one more member for a settings.json, which stays as it is otherwise.

use serde_json::{Map, Value};

pub(crate) type Object = Map<String, Value>;

/// An object and nothing else around it.
pub(crate) fn object(text: &[u8]) -> Option<Object> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// The text of an object with one more member, which goes before one of the same name; `None` if it is not an object.
pub(crate) fn with_member(text: &[u8], name: &str, value: &str) -> Option<String> {
    let separator = if object(text)?.is_empty() { "" } else { "," };
    let head = std::str::from_utf8(text).ok()?.trim_end().strip_suffix('}')?;
    Some(format!("{head}{separator}{}: {}}}\n", string(name), string(value)))
}

/// The object with one member per line, as programs and people write such files; `None` if there is a fraction in it.
pub(crate) fn text(object: &Object) -> Option<String> {
    let mut out = String::new();
    write_object(&mut out, object, 1)?;
    out.push('\n');
    Some(out)
}

fn write_value(out: &mut String, value: &Value, depth: usize) -> Option<()> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => out.push_str(&number.to_string()),
            (_, Some(number)) => out.push_str(&number.to_string()),
            _ => return None,
        },
        Value::String(text) => out.push_str(&string(text)),
        Value::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_value(out, value, depth)?;
            }
            out.push(']');
        }
        Value::Object(object) => write_object(out, object, depth + 1)?,
    }
    Some(())
}

fn write_object(out: &mut String, object: &Object, depth: usize) -> Option<()> {
    let mut separator = '{';
    for (name, value) in object {
        out.push(separator);
        indent(out, depth);
        out.push_str(&string(name));
        out.push_str(": ");
        write_value(out, value, depth)?;
        separator = ',';
    }
    if object.is_empty() {
        out.push('{');
    } else {
        indent(out, depth - 1);
    }
    out.push('}');
    Some(())
}

fn indent(out: &mut String, depth: usize) {
    out.push('\n');
    (0..depth).for_each(|_| out.push_str("  "));
}

/// A JSON string, which is also a YAML one.
pub(crate) fn string(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            '\0'..='\x1f' | '\x7f' => {
                let byte = character as usize;
                out.push_str("\\u00");
                out.push(HEX[byte >> 4].into());
                out.push(HEX[byte & 15].into());
            }
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let texts = [
            r#"{}"#,
            r#"{"a": {}, "b": [], "c": [1, [2, {"d": null}], -3, true, false], "e": 18446744073709551615}"#,
            r#"{"quote \" and \\ and \n and \u0000 and \u007f": "ä 😀 \t"}"#,
        ];
        for source in texts {
            let read = object(source.as_bytes()).expect(source);
            let written = text(&read).expect(source);
            assert_eq!(object(written.as_bytes()), Some(read), "{written}");
        }
        let expires = object(br#"{"anthropic": {"expires": 1790000000000}}"#).expect("an object");
        let written = "{\n  \"anthropic\": {\n    \"expires\": 1790000000000\n  }\n}\n";
        assert_eq!(text(&expires).as_deref(), Some(written));
        assert_eq!(text(&object(br#"{"a": [0.5]}"#).expect("an object")), None);
    }

    #[test]
    fn a_member_is_added_to_the_text_as_it_is_and_goes_before_another_of_its_name() {
        let added = |text: &str| with_member(text.as_bytes(), "trust", "never");
        assert_eq!(added("{}").as_deref(), Some("{\"trust\": \"never\"}\n"));
        assert_eq!(added("{\"a\": 0.10}\n").as_deref(), Some("{\"a\": 0.10,\"trust\": \"never\"}\n"));
        let twice = added(r#"{"trust": "always"}"#).and_then(|text| object(text.as_bytes())).expect("an object");
        assert_eq!(twice["trust"], "never");
        assert_eq!(added("[]"), None);
    }

    #[test]
    fn anything_but_one_object_is_none() {
        for other in ["", "[]", "null", "{", "{} {}", "\0"] {
            assert_eq!(object(other.as_bytes()), None);
        }
    }
}
