//! JSON as it is read and written here: objects, parsed by serde_json, written without its writer.
//!
//! serde_json's writer costs this program more than all of its parser; what is written here is an auth.json, a settings.json and two
//! lines for the launcher.

use serde_json::{Map, Number, Value};

pub(crate) type Object = Map<String, Value>;

/// An object and nothing else around it.
pub(crate) fn object(text: &[u8]) -> Option<Object> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// The object in one line per field, as programs and people write such files.
pub(crate) fn text(object: &Object) -> String {
    let mut out = String::new();
    write_object(&mut out, object, 1);
    out.push('\n');
    out
}

fn write_value(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => out.push_str(&string(text)),
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                out.push(if index == 0 { '[' } else { ',' });
                write_value(out, value, depth);
            }
            out.push_str(if values.is_empty() { "[]" } else { "]" });
        }
        Value::Object(object) => write_object(out, object, depth + 1),
    }
}

fn write_number(out: &mut String, number: &Number) {
    let text = if let Some(number) = number.as_u64() {
        number.to_string()
    } else if let Some(number) = number.as_i64() {
        number.to_string()
    } else {
        // JSON has no other numbers than finite ones.
        number.as_f64().unwrap_or_default().to_string()
    };
    out.push_str(&text);
}

fn write_object(out: &mut String, object: &Object, depth: usize) {
    let mut separator = '{';
    for (name, value) in object {
        out.push(separator);
        indent(out, depth);
        out.push_str(&string(name));
        out.push_str(": ");
        write_value(out, value, depth);
        separator = ',';
    }
    if object.is_empty() {
        out.push('{');
    } else {
        indent(out, depth - 1);
    }
    out.push('}');
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
            r#"{"a": {}, "b": [], "c": [1, [2, {"d": null}], -3.5e-7, true, false], "e": 18446744073709551615}"#,
            r#"{"quote \" and \\ and \n and \u0000 and \u007f": "ä 😀 \t"}"#,
        ];
        for source in texts {
            let read = object(source.as_bytes()).expect(source);
            let written = text(&read);
            assert_eq!(object(written.as_bytes()), Some(read.clone()), "{written}");
            assert_eq!(serde_json::from_str::<Object>(&written).expect("a second reader"), read);
        }
        let expires = object(br#"{"anthropic": {"expires": 1790000000000}}"#).expect("an object");
        assert_eq!(text(&expires), "{\n  \"anthropic\": {\n    \"expires\": 1790000000000\n  }\n}\n");
    }

    #[test]
    fn anything_but_one_object_is_none() {
        for other in ["", "[]", "null", "{", "{} {}", "\0"] {
            assert_eq!(object(other.as_bytes()), None);
        }
    }
}
