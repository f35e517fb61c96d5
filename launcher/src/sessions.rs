//! The sessions that run: ending them, listing them, what they said.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::config::Config;
use crate::docker::Docker;
use crate::error::Silent;
use crate::home::Home;
use crate::repo::Place;
use crate::run_dir;
use crate::terminal::Terminal;

/// Ends the sessions of the repository that the user is in, or all of them.
pub(crate) fn stop(config: Config, all: bool) -> Result<u8> {
    let terminal = Terminal::new(true, config.no_colour);
    let home = Home::find(&config)?;
    let repository = if all { None } else { Some(Place::find(&config.cwd)?.id()) };
    let docker = Docker::new(&config, &BTreeMap::new());
    let mut ended = 0;
    for record in run_dir::running(&home)? {
        if repository.as_ref().is_none_or(|id| *id == record.repository_id) {
            terminal.say(&format!("ending {} …", record.project));
            docker.stop(&record.container)?;
            ended += 1;
        }
    }
    if ended == 0 {
        terminal.say(if all { "no session is running" } else { "no session of this repository is running" });
        return Err(Silent(1).into());
    }
    Ok(0)
}
