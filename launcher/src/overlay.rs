//! The session's overlay for docker compose, as JSON: what differs from session to session. Every `$` is doubled, for compose
//! would fill in a variable there.

use serde_json::{Value, json};

use crate::plan::{Mount, Plan};

/// The overlay's text.
pub(crate) fn render(plan: &Plan) -> String {
    let mut volumes: Vec<Value> = plan.mounts.iter().map(bind).collect();
    volumes.push(json!({ "type": "volume", "source": "cache", "target": "/home/pi/.cache" }));
    let labels = json!({
        "pi-docker.session": plan.names.session,
        "pi-docker.repository": plan.names.repository_id,
    });
    let mut pi = json!({
        "environment": plan.environment,
        "volumes": volumes,
        "labels": labels,
    });
    let mut proxy = json!({
        "volumes": plan.proxy_mounts.iter().map(bind).collect::<Vec<_>>(),
        "labels": labels,
    });
    if plan.selinux {
        // Relabelling a user's repository would change it; without a label the container is as on other hosts.
        pi["security_opt"] = json!(["label=disable"]);
        proxy["security_opt"] = json!(["label=disable"]);
    }
    let mut overlay = json!({
        "services": { "pi": pi, "proxy": proxy },
        "volumes": { "cache": { "external": true, "name": plan.names.cache_volume() } },
    });
    escape(&mut overlay);
    format!("{overlay:#}")
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
    use crate::plan::tests::plan;

    #[test]
    fn a_path_with_colon_and_dollar_reaches_the_engine_as_it_is() {
        let overlay: Value = serde_json::from_str(&render(&plan("a$b", &[]))).unwrap();
        let first = &overlay["services"]["pi"]["volumes"][0];
        assert_eq!(first["source"], "/r/a b:$$x");
        assert_eq!(first["bind"]["create_host_path"], false);
        assert_eq!(overlay["services"]["pi"]["environment"]["PI_DOCKER_WORKDIR"], "/workspace/a$$b");
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
}
