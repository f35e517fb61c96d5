//! `pi-subagent doctor`: what a task would need, asked for one by one. Changes nothing, here or on the remote.

use serde_json::{Value, json};

use crate::config::Config;
use crate::failure::{Code, Failure, Result};
use crate::preflight;
use crate::repo::Workspace;
use crate::sys;
use crate::task::PrMode;

/// Less than this, and not even the worktree of a small repository fits.
const LEAST: u64 = 64 << 20;

/// Gives the answer and whether all is well.
pub(crate) async fn doctor(config: &Config) -> (Value, bool) {
    let mut checks = Vec::new();
    // Each needs what the ones before it have found.
    if let Err((what, failure)) = ask(config, &mut checks).await {
        checks.push((what, Err(failure)));
    }
    let (mut tasks, mut lines) = (Vec::new(), Vec::new());
    for (what, found) in &checks {
        let (state, said, hint) = match found {
            Ok(said) => ("ok", said.clone(), None),
            Err(failure) => ("failed", failure.message.clone(), failure.hint.clone()),
        };
        lines.push(format!("{state:<7} {what}: {said}"));
        lines.extend(hint.iter().map(|hint| format!("        hint: {hint}")));
        tasks.push(json!({"check": what, "ok": found.is_ok(), "said": said, "hint": hint}));
    }
    let well = checks.iter().all(|(_, found)| found.is_ok());
    (json!({"v": 1, "ok": well, "checks": tasks, "text": lines.join("\n")}), well)
}

type Check = (&'static str, Result<String>);

async fn ask(config: &Config, checks: &mut Vec<Check>) -> std::result::Result<(), (&'static str, Failure)> {
    let workspace = Workspace::discover(&config.cwd).map_err(|failure| ("repository", failure))?;
    checks.push(("repository", Ok(workspace.root.display().to_string())));
    let free = sys::free_space(&workspace.root).unwrap_or(u64::MAX);
    checks.push(match free {
        0..LEAST => ("disk", Err(Failure::new(Code::Setup, format!("only {} MB are free", free >> 20)))),
        _ => ("disk", Ok(format!("{} MB are free", free >> 20))),
    });
    let base = workspace.base(None).map_err(|failure| ("base", failure))?;
    checks.push(("base", Ok(format!("'{}'", base.branch))));
    let remote = preflight::connect(config, &workspace, PrMode::Auto).await.map_err(|failure| ("remote", failure))?;
    checks.push(("remote", Ok("it answers, and the token may push".into())));
    preflight::base_exists(&remote, &base.branch).await.map_err(|failure| ("base on the remote", failure))?;
    checks.push(("base on the remote", Ok("it is there".into())));
    preflight::rights(&remote, &base.branch).await.map_err(|failure| ("pull requests", failure))?;
    checks.push(("pull requests", Ok("the token may open them".into())));
    Ok(())
}
