//! How pi is called for a task: its arguments, environment, rules and instructions.

use crate::agent::Agent;
use crate::config::Config;
use crate::failure::Result;
use crate::job::Job;
use crate::limits::Limits;
use crate::sys;
use crate::task::PrMode;

/// The instructions go through stdin: no length limit, and nothing in them is taken for an option, a file or a command,
/// because the first line is ours.
pub(crate) fn agent(config: &Config, job: &Job, instructions: &str) -> Result<Agent> {
    let (state, spec) = (&job.state, &job.state.spec);
    job.dir.write("rules.md", rules(job).as_bytes())?;
    job.dir.write("instructions.md", spec.instructions.as_bytes())?;
    Ok(Agent {
        args: arguments(job),
        env: environment(config, job),
        cwd: job.worktree.path.clone(),
        input: format!("Task: {}\n\n{}\n", state.task, instructions.trim()),
        limits: Limits::of(spec),
        log: job.dir.path("pi.ndjson"),
        stderr: job.dir.path("stderr.log"),
        git: job.worktree.git(),
        base: state.base_oid.clone(),
    })
}

fn arguments(job: &Job) -> Vec<String> {
    let spec = &job.state.spec;
    let path = |name: &str| job.dir.path(name).display().to_string();
    let mut args: Vec<String> = ["--mode", "json", "-p"].map(str::to_owned).to_vec();
    let mut option = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
    option("--session-dir", &path("sessions"));
    option("--session-id", &job.state.session);
    option("--name", &format!("subagent:{}", job.state.task));
    option("--append-system-prompt", &path("rules.md"));
    let excluded = spec.exclude_tools.as_deref().map(|tools| format!("{tools},spawn_subagent"));
    option("--exclude-tools", excluded.as_deref().unwrap_or("spawn_subagent"));
    for (name, value) in [("--model", &spec.model), ("--thinking", &spec.thinking), ("--tools", &spec.tools)] {
        if let Some(value) = value {
            option(name, value);
        }
    }
    args.push(if spec.trusted { "--approve" } else { "--no-approve" }.to_owned());
    args
}

fn environment(config: &Config, job: &Job) -> Vec<(String, String)> {
    let set = [
        ("PI_SUBAGENT_DEPTH", (config.depth + 1).to_string()),
        ("PI_SUBAGENT_TASK", job.state.task.to_string()),
        (sys::MARK, job.state.run.clone()),
        ("PI_OFFLINE", "1".into()),
        ("PI_SKIP_VERSION_CHECK", "1".into()),
        ("PI_TELEMETRY", "0".into()),
        ("GIT_TERMINAL_PROMPT", "0".into()),
        ("GIT_EDITOR", "true".into()),
    ];
    set.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

fn rules(job: &Job) -> String {
    let template = match job.state.spec.pr {
        PrMode::None => "",
        _ => " Follow the repository's pull-request template if it has one.",
    };
    include_str!("rules.md")
        .replace("{task}", job.state.task.as_str())
        .replace("{worktree}", &job.worktree.path.display().to_string())
        .replace("{branch}", &job.state.branch)
        .replace("{base}", &job.state.base)
        .replace("{pr}", &job.dir.path("pr.md").display().to_string())
        .replace("{template}", template)
}
