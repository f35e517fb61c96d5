//! From the command line and the JSON to one specification. Reads the files it is told to, standard input at most once.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::cli::{ResumeArgs, RunArgs, SpawnArgs, check_cost};
use crate::failure::{Code, Failure, OrFail, Result};
use crate::task::Spec;

/// More than any task needs; a mistake in a pipe should not fill the memory.
const LARGEST: u64 = 4 << 20;

/// The specification, a flag before the JSON.
pub(crate) fn read(args: SpawnArgs) -> Result<Spec> {
    let mut spec = match &args.spec {
        Some(path) => {
            let text = text_of(path)?;
            let what = || format!("cannot understand the specification in '{}'", path.display());
            serde_json::from_str(&text).or_fail(Code::Usage, what)?
        }
        None => Spec::default(),
    };
    if let Some(path) = &args.instructions_file {
        if path.as_os_str() == "-" && args.spec.as_deref().is_some_and(|spec| spec.as_os_str() == "-") {
            return Err(Failure::new(Code::Usage, "cannot read two things from standard input"));
        }
        spec.instructions = text_of(path)?;
    }
    fn set<T>(field: &mut T, flag: Option<T>) {
        if let Some(value) = flag {
            *field = value;
        }
    }
    set(&mut spec.task, args.task);
    set(&mut spec.if_exists, args.if_exists);
    set(&mut spec.pr, args.pr);
    spec.base = args.base.or(spec.base);
    spec.title = args.title.or(spec.title);
    spec.take(&of_run(args.run));
    spec.push_base |= args.push_base;
    spec.no_wait_slot |= args.no_wait_slot;
    spec.allow_empty |= args.allow_empty;
    if spec.task.is_empty() {
        return Err(Failure::new(Code::Usage, "cannot start a subagent without a name").hint("give one with --task"));
    }
    if let Some(cost) = spec.max_cost {
        check_cost(cost).or_fail(Code::Usage, || "cannot understand the specification".into())?;
    }
    Ok(spec)
}

/// What a resumed task is told to do differently.
pub(crate) fn changes(args: ResumeArgs) -> Result<Spec> {
    let mut spec = of_run(args.run);
    if let Some(path) = &args.instructions_file {
        spec.instructions = text_of(path)?;
    }
    spec.pr = args.pr.unwrap_or_default();
    spec.no_wait_slot = args.no_wait_slot;
    Ok(spec)
}

fn of_run(run: RunArgs) -> Spec {
    Spec {
        model: run.model,
        thinking: run.thinking,
        tools: run.tools,
        exclude_tools: run.exclude_tools,
        trusted: run.trusted,
        timeout: run.timeout,
        idle_timeout: run.idle_timeout,
        tool_timeout: run.tool_timeout,
        max_cost: run.max_cost,
        max_tokens: run.max_tokens,
        max_turns: run.max_turns,
        ..Spec::default()
    }
}

fn text_of(path: &Path) -> Result<String> {
    let mut text = String::new();
    let what = || format!("cannot read '{}'", path.display());
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(LARGEST + 1).read_to_string(&mut text).or_fail(Code::Usage, what)?;
    } else {
        fs::File::open(path)
            .and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text))
            .or_fail(Code::Usage, what)?;
    }
    if text.len() as u64 > LARGEST {
        return Err(Failure::new(Code::Usage, format!("{}: it is larger than {} MB", what(), LARGEST >> 20)));
    }
    Ok(text)
}
