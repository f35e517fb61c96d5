//! The main job, shown to a person: a throw-away machine of an ordinary user, one prompt, two subagents, two pull requests.
//! Nothing here is a recording: every figure of the table is read back from the part that knows it, and what is not as it should
//! be makes the demo fail.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::internet::Request;
use e2e::launch::{Ran, Running};
use e2e::{World, evidence, wait_until};

const PROMPT: &str = "Add input validation to the API and write tests for it";
const BRANCH: &str = "feature/api";
const TASKS: [&str; 2] = ["add-validation", "add-validation-tests"];
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let started = Instant::now();
    let world = World::new("story")?;
    world.log_in_with_key()?;
    world.begin_branch(BRANCH, "src/api.js", "export const users = [];\n")?;
    println!("A throw-away machine: user {}, a repository on branch '{BRANCH}' whose origin is", world.user.numbers());
    println!(
        "https://github.com/octo/app, a login in ~/.pi/agent/auth.json, a GitHub token. What is real: this project's"
    );
    println!(
        "images, compose file and squid, pi, git, the engine. What is played: api.anthropic.com, api.github.com and"
    );
    println!("github.com, by one program behind squid, under their own names.\n");
    println!("$ pi-docker -p \"{PROMPT}\"");

    let run = world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", PROMPT]).start()?;
    let (ran, squid) = watch(&world, run)?;
    println!("\npi said, and ended with status {}:", ran.code());
    for line in ran.stdout.trim().lines() {
        println!("  {line}");
    }
    let ran = ran.expect(0)?;
    let table = table(&world, &ran, &squid)?;
    println!();
    for (name, lines) in table {
        for (index, line) in lines.iter().enumerate() {
            println!("{:<15}{line}", if index == 0 { name } else { "" });
        }
    }
    println!("\nAll of it took {:.1} s.", started.elapsed().as_secs_f64());
    Ok(())
}

/// Tells what happens while it happens, until pi has ended; gives squid's log, which ends with the session.
fn watch(world: &World, mut run: Running) -> Result<(Ran, Vec<String>)> {
    let (begun, mut told, mut squid) = (Instant::now(), 0, Vec::new());
    wait_until("pi has ended", LIMIT, || {
        let requests = world.internet.requests()?;
        for request in &requests[told..] {
            if let Some(line) = narration(request) {
                println!("{:>5.1} s  {line}", begun.elapsed().as_secs_f64());
            }
            // The orchestrator is about to report: the proxy is still there to be asked.
            if request.body["rule"] == "orchestrator" && request.body["step"] == 1 {
                squid = world.wait_for_session()?.squid_log()?;
                world.internet.open_gate("report")?;
            }
        }
        told = requests.len();
        Ok(run.has_ended()?.then_some(()))
    })?;
    Ok((run.finish()?, squid))
}

/// A request as a person would tell it, if it is worth telling.
fn narration(request: &Request) -> Option<String> {
    let rule = request.body["rule"].as_str().unwrap_or_default();
    let line = match (request.host.as_str(), request.method.as_str()) {
        ("api.anthropic.com", _) if rule == "orchestrator" => "pi asks the model".to_owned(),
        ("api.anthropic.com", _) if request.status == 200 => format!("subagent '{rule}' asks the model"),
        // It cannot succeed, and how it fails tells what the token may do.
        ("api.github.com", "POST") if request.status == 422 && text(request, "head") == text(request, "base") => {
            "a subagent asks GitHub whether the token may open pull requests: it may".to_owned()
        }
        ("api.github.com", "POST") if request.status == 201 => {
            format!("a pull request is opened: {} <- {}", text(request, "base"), text(request, "head"))
        }
        ("github.com", "POST") if request.path.ends_with("git-receive-pack") && request.status == 200 => {
            "a branch is pushed".to_owned()
        }
        (host, method) if request.status >= 400 && request.auth == "token ok" => {
            format!("{host} refuses {method} {} with {}", request.path, request.status)
        }
        _ => return None,
    };
    Some(line)
}

fn text<'a>(request: &'a Request, key: &str) -> &'a str {
    request.body[key].as_str().unwrap_or_default()
}

/// The evidence, a name and its lines each. What is not as it should be is an error.
fn table(world: &World, ran: &Ran, squid: &[String]) -> Result<Vec<(&'static str, Vec<String>)>> {
    let mut table = Vec::new();
    let pulls = evidence::pulls(world)?;
    ensure!(pulls.len() == 2, "{} pull requests were opened, not 2", pulls.len());
    for pull in &pulls {
        ensure!(ran.stdout.contains(&pull.url), "pi did not report {}", pull.url);
        ensure!(pull.base == BRANCH, "{} goes to '{}'", pull.url, pull.base);
        table.push((
            "pull request",
            vec![
                pull.url.clone(),
                format!("base {}, head {}", pull.base, pull.head),
                format!("commits: {}", pull.commits.join("; ")),
                format!("files: {}", pull.files.join(", ")),
            ],
        ));
    }

    let model = world.internet.model()?;
    let spans: Vec<_> = TASKS.iter().filter_map(|task| evidence::span(&model, task)).collect();
    ensure!(spans.len() == 2, "the model was not asked for both tasks");
    let shared = evidence::overlap(spans[0], spans[1]);
    ensure!(shared.is_some(), "the two subagents were never at work at the same time");
    let zero = model[0].ts;
    let seconds = |time: u64| format!("{:.2} s", Duration::from_micros(time).as_secs_f64());
    let mut lines = vec![format!("{} at the same time", seconds(shared.unwrap_or_default()))];
    for (task, span) in TASKS.iter().zip(&spans) {
        lines.push(format!("{task}: from {} to {}", seconds(span.0 - zero), seconds(span.1 - zero)));
    }
    table.push(("overlap", lines));

    let refused = evidence::refused(squid);
    ensure!(!refused.is_empty(), "squid refused nothing");
    table.push(("refused", refused.iter().map(|host| format!("{host}, by squid")).collect()));
    let strays = world.internet.strays()?;
    ensure!(strays.is_empty(), "something got out: {strays:?}");
    table.push(("got out", vec!["nothing but what is named above".into()]));

    let auth = fs::read_to_string(world.auth_json())?;
    ensure!(auth == "{}", "auth.json was not wiped");
    let leftovers = world.leftovers()?;
    ensure!(leftovers.is_empty(), "still there: {leftovers:?}");
    table.push(("left behind", vec![format!("~/.pi/agent/auth.json: {auth}"), "containers and networks: none".into()]));
    let status = world.git(["status", "--porcelain", "--ignored"])?;
    ensure!(status.is_empty(), "the repository was changed: {status}");
    table.push(("repository", vec!["as it was: git status shows nothing".into()]));
    Ok(table)
}
