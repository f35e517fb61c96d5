//! The session's overlay for docker compose, as JSON: what differs from session to session. Every `$` is doubled, for compose
//! would fill in a variable there.

use serde_json::{Value, json};

use crate::git::report::is_hidden;
use crate::plan::{Mount, Network, Plan};

/// Stands for a YAML tag that takes away what docker-compose.yml has there; JSON has none.
const RESET: &str = "!reset";
/// What the shipped file has of the proxy.
const PROXY_VARIABLES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];

/// The overlay's text.
pub(crate) fn render(plan: &Plan) -> String {
    let labels = json!({
        "pi-docker.session": plan.names.session,
        "pi-docker.repository": plan.names.repository_id,
    });
    let mut pi = json!({
        "environment": plan.environment,
        "volumes": plan.mounts.iter().map(bind).collect::<Vec<_>>(),
        "labels": labels,
    });
    let mut overlay = match plan.network {
        Network::Proxy => {
            let volumes: Vec<Value> = plan.proxy_mounts.iter().map(bind).collect();
            json!({ "services": { "proxy": { "volumes": volumes, "labels": labels } } })
        }
        Network::Direct => {
            // Without a value here, a variable is the one of the environment that docker compose has: the host's own proxy, if any.
            for name in PROXY_VARIABLES {
                pi["environment"][name] = Value::Null;
            }
            pi["dns"] = RESET.into();
            pi["depends_on"] = RESET.into();
            pi["networks"] = json!({ "pi-net": RESET, "login-net": {} });
            // Not taken out of the files, where an overlay of the user's may name it: nothing starts it, nor makes its networks.
            json!({ "services": { "proxy": { "profiles": ["session"] } }, "networks": { "login-net": { "enable_ipv6": false } } })
        }
    };
    if let Some(volume) = &plan.cache {
        push(&mut pi["volumes"], json!({ "type": "volume", "source": "cache", "target": "/home/pi/.cache" }));
        overlay["volumes"] = json!({ "cache": { "external": true, "name": volume } });
    }
    if plan.selinux {
        // Relabelling a user's repository would change it; without a label the container is as on other hosts.
        pi["security_opt"] = json!(["label=disable"]);
        if plan.network == Network::Proxy {
            overlay["services"]["proxy"]["security_opt"] = json!(["label=disable"]);
        }
    }
    overlay["services"]["pi"] = pi;
    escape(&mut overlay);
    // With the colon: within a string the quote would have a backslash before it.
    printable(&format!("{overlay:#}")).replace(&format!(": \"{RESET}\""), ": !reset null")
}

/// JSON leaves the upper control characters as they are, and those that turn a line round; YAML, which docker compose reads, refuses the
/// former, and a terminal obeys them.
fn printable(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'.. if is_hidden(c) => text += &format!("\\u{:04x}", u32::from(c)),
            _ => text.push(c),
        }
    }
    text
}

fn push(list: &mut Value, value: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(value);
    }
}

fn bind(mount: &Mount) -> Value {
    json!({
        "type": "bind",
        "source": mount.source,
        "target": mount.target,
        "read_only": mount.read_only,
        "bind": { "create_host_path": false },
    })
}

fn escape(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace('$', "$$"),
        Value::Array(values) => values.iter_mut().for_each(escape),
        Value::Object(values) => values.values_mut().for_each(escape),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{login, plan};

    #[test]
    fn a_path_with_colon_and_dollar_reaches_the_engine_as_it_is() {
        let overlay: Value = serde_json::from_str(&render(&plan("a$b", &[]))).unwrap();
        let first = &overlay["services"]["pi"]["volumes"][0];
        assert_eq!(first["source"], "/r/a b:$$x");
        assert_eq!(first["bind"]["create_host_path"], false);
        assert_eq!(overlay["services"]["pi"]["environment"]["PI_DOCKER_WORKDIR"], "/workspace/a$$b");
    }

    #[test]
    fn a_login_has_neither_repository_nor_proxy() {
        let text = render(&login());
        assert!(text.contains("\"dns\": !reset null") && text.contains("\"pi-net\": !reset null"), "{text}");
        assert!(!text.contains("/workspace") && !text.contains("squid") && !text.contains("cache"), "{text}");
        assert!(text.contains("\"HTTPS_PROXY\": null"), "{text}");
    }

    #[test]
    fn the_overlay_holds_the_sessions_own_values_and_no_network_or_right() {
        let overlay: Value = serde_json::from_str(&render(&plan("", &[]))).unwrap();
        let pi = overlay["services"]["pi"].as_object().unwrap();
        assert_eq!(pi.keys().collect::<Vec<_>>(), ["environment", "labels", "volumes"]);
        assert_eq!(pi["environment"]["PI_DOCKER_UID"], "1000");
        assert_eq!(pi["environment"]["PI_DOCKER_CANARY"], "10.0.0.2:4711");
        assert_eq!(overlay["volumes"]["cache"]["name"], "pi-docker-cache-id");
    }

    #[test]
    fn a_folder_whose_name_ends_in_a_tag_or_has_upper_control_characters_stays_what_it_is() {
        let mut plan = plan("", &[]);
        plan.mounts[0].source = "/r/\"!reset\u{9b}".into();
        plan.mounts[1].source = "/r/\"!reset".into();
        let text = render(&plan);
        assert!(!text.contains('\u{9b}'), "{text}");
        let overlay: Value = serde_json::from_str(&text).unwrap();
        let volumes = &overlay["services"]["pi"]["volumes"];
        assert_eq!(volumes[0]["source"], "/r/\"!reset\u{9b}");
        assert_eq!(volumes[1]["source"], "/r/\"!reset");
    }
}
