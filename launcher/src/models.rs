//! `pi-docker models`: connects sessions to an Ollama server by three files in `<home>`, each of which is added to what is shipped
//! and none of which is shipped. The session's proxy gets a second port, which leads to that server and to nothing else, and lets
//! only inference through: pi would tunnel through the first one, where a path cannot be seen.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::{ModelsCommand, OllamaCommand};
use crate::config::Config;
use crate::credentials::read_bounded;
use crate::docker::Docker;
use crate::error::hinted;
use crate::home::Home;
use crate::ollama::{PORT, Server, is_model};
use crate::terminal::Terminal;

const MARK: &str = "# Written by `pi-docker models ollama enable`; `disable` removes it.";
const SERVER: &str = "# server ";
const OVERRIDE: &str = "docker-compose.override.yml";
const SQUID: &str = "squid-local.conf";
const MODELS: &str = "models.json";
/// pi's name for the server, and the name that its address has in a session.
const PROVIDER: &str = "ollama";

pub(crate) fn run(config: Config, what: &ModelsCommand) -> Result<u8> {
    let terminal = Terminal::new(true, config.no_colour);
    let home = Home::find(&config)?;
    let config = config.with_file(&home, None)?;
    match what {
        ModelsCommand::Status => status(&home, &terminal)?,
        ModelsCommand::Ollama(OllamaCommand::Enable { host }) => enable(&config, &home, host.as_deref(), &terminal)?,
        ModelsCommand::Ollama(OllamaCommand::Disable) => disable(&home, &terminal)?,
        ModelsCommand::Ollama(OllamaCommand::List) => list(&home, &terminal)?,
        ModelsCommand::Ollama(OllamaCommand::Sync) => {
            let models = connected(&home)?.models()?;
            offer(&home, &models)?;
            terminal.say(&offers(models.len()));
        }
        ModelsCommand::Ollama(OllamaCommand::Add { models }) => add(&home, models, &terminal)?,
        ModelsCommand::Ollama(OllamaCommand::Remove { models }) => remove(&home, models, &terminal)?,
    }
    Ok(0)
}

fn enable(config: &Config, home: &Home, host: Option<&str>, terminal: &Terminal) -> Result<()> {
    for name in [OVERRIDE, SQUID] {
        if home.join(name).exists() && !is_ours(&home.join(name)) {
            return Err(hinted(
                format!("cannot write '{}': you have one of your own", home.join(name).display()),
                "move it away, or name it in PI_DOCKER_COMPOSE_FILES",
            ));
        }
    }
    let (asked, target) = match host.map(str::parse::<Server>).transpose()? {
        Some(server) if !["localhost", "127.0.0.1"].contains(&server.host.as_str()) => (server.clone(), server),
        Some(server) => on_this_machine(config, server)?,
        None => on_this_machine(config, Server { host: "127.0.0.1".into(), port: PORT })?,
    };
    let (version, models) = (asked.version()?, asked.models()?);
    let known = read_models(home)?;
    replace(&home.join(SQUID), &squid_conf(&asked, &target))?;
    replace(&home.join(OVERRIDE), &override_file())?;
    write_models(home, known, Some(&models))?;
    terminal.say(&format!(
        "connected to Ollama {version} at {asked}: pi offers {} models from the next session on",
        models.len()
    ));
    if models.is_empty() {
        terminal.warn("the server has no model yet", "ollama pull MODEL, then pi-docker models ollama sync");
    }
    Ok(())
}

/// A server of this machine: as the user reaches it, and as a container does.
fn on_this_machine(config: &Config, server: Server) -> Result<(Server, Server)> {
    let docker = Docker::new(config, &std::collections::BTreeMap::new());
    let not_running =
        |e: anyhow::Error| hinted(format!("{e:#}"), "start it with `ollama serve`, or name it with --host");
    if docker.engine()?.desktop {
        server.version().map_err(not_running)?;
        let target = Server { host: "host.docker.internal".into(), port: server.port };
        return Ok((server, target));
    }
    let target = Server { host: docker.bridge_address()?, port: server.port };
    if target.is_open() {
        return Ok((target.clone(), target));
    }
    server.version().map_err(not_running)?;
    Err(hinted(
        format!(
            "cannot use the server: it listens on this machine's loopback only, where no container can reach it (tried '{target}')"
        ),
        format!("start it with OLLAMA_HOST={target}, which is this machine's address for containers"),
    ))
}

fn disable(home: &Home, terminal: &Terminal) -> Result<()> {
    let mut found = false;
    for name in [SQUID, OVERRIDE] {
        let path = home.join(name);
        if path.exists() && is_ours(&path) {
            fs::remove_file(&path).with_context(|| format!("cannot remove '{}'", path.display()))?;
            found = true;
        }
    }
    let known = read_models(home)?;
    if offered(&known).is_some() {
        write_models(home, known, None)?;
        found = true;
    }
    terminal.say(if found { "disconnected, from the next session on" } else { "no server is connected" });
    Ok(())
}

fn list(home: &Home, terminal: &Terminal) -> Result<()> {
    let server = connected(home).unwrap_or_else(|_| Server { host: "127.0.0.1".into(), port: PORT });
    let known = read_models(home)?;
    let offered = offered(&known).unwrap_or_default();
    let installed = server.models().map_err(|e| {
        hinted(format!("{e:#}"), "start it with `ollama serve`, or `pi-docker models ollama enable --host HOST`")
    })?;
    for name in &installed {
        terminal.answer(&format!("{} {name}", if offered.contains(name) { "*" } else { " " }));
    }
    for name in offered.iter().filter(|name| !installed.contains(name)) {
        terminal.answer(&format!("! {name}  (offered, but the server does not have it: pi-docker models ollama sync)"));
    }
    Ok(())
}

fn add(home: &Home, models: &[String], terminal: &Terminal) -> Result<()> {
    let installed = connected(home)?.models()?;
    let mut offered = offered(&read_models(home)?).unwrap_or_default();
    for model in models {
        if !is_model(model) {
            bail!("cannot add '{model}': it is not a model's name");
        }
        // Ollama's own shorthand.
        let name = if model.contains(':') { model.clone() } else { format!("{model}:latest") };
        if !installed.contains(&name) {
            return Err(hinted(
                format!("cannot add '{name}': the server does not have it"),
                format!("ollama pull {name}"),
            ));
        }
        if !offered.contains(&name) {
            offered.push(name);
        }
    }
    offer(home, &offered)?;
    terminal.say(&offers(offered.len()));
    Ok(())
}

fn remove(home: &Home, models: &[String], terminal: &Terminal) -> Result<()> {
    connected(home)?;
    let mut offered = offered(&read_models(home)?).unwrap_or_default();
    for model in models {
        let named = |name: &String| name == model || *name == format!("{model}:latest");
        if !offered.iter().any(named) {
            return Err(hinted(
                format!("cannot remove '{model}': pi does not offer it"),
                "pi-docker models ollama list",
            ));
        }
        offered.retain(|name| !named(name));
    }
    offer(home, &offered)?;
    terminal.say(&offers(offered.len()));
    Ok(())
}

fn offers(count: usize) -> String {
    format!("pi offers {count} model{} of the server", if count == 1 { "" } else { "s" })
}

fn status(home: &Home, terminal: &Terminal) -> Result<()> {
    let Ok(server) = connected(home) else {
        terminal.answer("ollama   not connected (pi-docker models ollama enable)");
        return Ok(());
    };
    terminal.answer(&format!("ollama   connected to {server}"));
    match server.version() {
        Ok(version) => terminal.answer(&format!("server   answers, version {version}")),
        Err(e) => terminal.answer(&format!("server   does not answer: {e:#}")),
    }
    let offered = offered(&read_models(home)?).unwrap_or_default();
    terminal.answer(&format!("models   {}", if offered.is_empty() { "none".to_owned() } else { offered.join(", ") }));
    Ok(())
}

/// The server that is connected.
pub(crate) fn connected(home: &Home) -> Result<Server> {
    let text = fs::read_to_string(home.join(SQUID)).unwrap_or_default();
    match text.lines().find_map(|line| line.strip_prefix(SERVER)) {
        Some(server) => server.parse(),
        None => Err(hinted("no server is connected", "pi-docker models ollama enable")),
    }
}

/// The proxy's second port. `asked` is where the user found the server, `target` where the proxy does.
fn squid_conf(asked: &Server, target: &Server) -> String {
    let Server { host, port } = target;
    format!(
        "{MARK}\n{SERVER}{asked}\n\
         http_port 0.0.0.0:{PORT} accel defaultsite=localhost no-vhost name=ollama\n\
         cache_peer {host} parent {port} 0 no-query no-digest no-netdb-exchange originserver name=ollama forceddomain=localhost\n\
         acl ollama_port myportname ollama\n\
         acl ollama_get method GET\n\
         acl ollama_post method POST\n\
         acl ollama_models urlpath_regex ^/v1/models$\n\
         acl ollama_inference urlpath_regex ^/v1/(chat/completions|completions|embeddings)$\n\
         cache_peer_access ollama allow ollama_port\n\
         cache_peer_access ollama deny all\n\
         never_direct allow ollama_port\n\
         http_access allow ollama_port ollama_get ollama_models\n\
         http_access allow ollama_port ollama_post ollama_inference\n\
         http_access deny ollama_port\n"
    )
}

/// The proxy's own name is reached without the proxy, or pi would ask for a tunnel to it.
fn override_file() -> String {
    format!("{MARK}\nservices:\n  pi:\n    environment:\n      NO_PROXY: proxy\n      no_proxy: proxy\n")
}

fn is_ours(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK))
}

fn read_models(home: &Home) -> Result<Value> {
    let path = home.join(MODELS);
    let text = match read_bounded(&path, 1 << 20) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(json!({})),
        Err(e) => return Err(e).with_context(|| format!("cannot read '{}'", path.display())),
    };
    match serde_json::from_slice(&text) {
        Ok(Value::Object(models)) => Ok(Value::Object(models)),
        _ => Err(hinted(
            format!("cannot use '{}': it is not a JSON object", path.display()),
            "repair it, or move it away",
        )),
    }
}

/// The models that pi offers of the server; `None` if the server is not in the file.
fn offered(models: &Value) -> Option<Vec<String>> {
    let list = models["providers"][PROVIDER]["models"].as_array()?;
    Some(list.iter().filter_map(|model| model["id"].as_str()).map(str::to_owned).collect())
}

fn offer(home: &Home, names: &[String]) -> Result<()> {
    let known = read_models(home)?;
    write_models(home, known, Some(names))
}

/// Puts the server's models into the file, or takes the server out of it; a file that holds nothing else is removed.
fn write_models(home: &Home, mut models: Value, names: Option<&[String]>) -> Result<()> {
    match names {
        Some(names) => {
            // What the user has written about a model stays.
            let known = models["providers"][PROVIDER]["models"].as_array().cloned().unwrap_or_default();
            let entry = |name: &String| {
                known.iter().find(|model| model["id"] == **name).cloned().unwrap_or_else(|| json!({ "id": name }))
            };
            models["providers"][PROVIDER] = json!({
                "baseUrl": format!("http://proxy:{PORT}/v1"),
                "api": "openai-completions",
                "apiKey": "ollama",
                "models": names.iter().map(entry).collect::<Vec<_>>(),
            });
        }
        None => {
            if let Some(providers) = models["providers"].as_object_mut() {
                providers.remove(PROVIDER);
                if providers.is_empty()
                    && let Some(file) = models.as_object_mut()
                {
                    file.remove("providers");
                }
            }
        }
    }
    let path = home.join(MODELS);
    if models.as_object().is_some_and(serde_json::Map::is_empty) {
        return fs::remove_file(&path).with_context(|| format!("cannot remove '{}'", path.display()));
    }
    replace(&path, &format!("{models:#}\n"))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("new");
    fs::write(&draft, text)
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("cannot write '{}'", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inference_has_a_way_to_the_server() {
        let server: Server = "10.0.0.9".parse().unwrap();
        let conf = squid_conf(&server, &server);
        let allowed: Vec<&str> = conf.lines().filter(|line| line.starts_with("http_access allow")).collect();
        assert_eq!(
            allowed,
            [
                "http_access allow ollama_port ollama_get ollama_models",
                "http_access allow ollama_port ollama_post ollama_inference"
            ]
        );
        assert!(
            conf.trim_end().ends_with("http_access deny ollama_port")
                && conf.contains("cache_peer_access ollama deny all")
        );
    }
}
