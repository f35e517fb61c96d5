//! `pi-docker verify`: the attacks of docs/security.md, tried on the user's own engine by the agent of a session that has no
//! repository, no login and no token: the shipped compose file, images and squid.conf. A line for each threat, and a status that
//! is not 0 if one succeeds. What stands beside a refusal is that the same thing is allowed where it should be; without that a
//! refusal proves nothing, and is not counted.

mod attacks;
mod container;

use std::time::Instant;

use anyhow::Result;
use nix::unistd::{getegid, geteuid};
use serde_json::{Value, json};

use crate::cli::{Options, Owner};
use crate::config::Config;
use crate::docker::Docker;
use crate::error::hinted;
use crate::facts::agent_user;
use crate::home::Home;
use crate::images;
use crate::repo::Place;
use crate::terminal::{Terminal, printable};
use crate::trial::{self, Ground};

/// What became of one attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Held,
    /// What went through.
    Failed(String),
    /// Why not.
    NotTried(String),
}

/// A threat by its number, and what must be so.
type Threat = (&'static str, &'static str);

/// Those that are tried, in order.
const TRIED: &[Threat] = &[
    ("N1", "an address is no way out"),
    ("N2", "only port 443 is one, and only by a tunnel"),
    ("N3", "an allowed name that leads to a private address is refused"),
    ("N4", "a name that is not on the list is refused"),
    ("N5", "outside names cannot be looked up"),
    ("N6", "this machine cannot be reached"),
    ("N7", "there is no IPv6"),
    ("N8", "no packets of one's own, no router, no neighbours"),
    ("N9", "the name in the TLS greeting has to be on the list too"),
    ("N10", "heads that parsers read in two ways lead nowhere"),
    ("N11", "squid shows nothing of itself"),
    ("N14", "a local model server can be used, not changed"),
    ("N15", "no line of the log can be forged"),
    ("S1", "what the supervisor was given is out of reach"),
    ("S2", "the engine keeps nothing that the agent prints"),
    ("S4", "processes, memory and core dumps are limited"),
    ("S5", "no capability, no setuid program, no engine's socket"),
    ("P4", "nothing outside the workspace, HOME and /tmp can be written"),
    ("P6", "a session has no open port on this machine"),
];

/// Those that are not, and why.
const NOT_TRIED: &[(&str, &str)] = &[
    ("N12", "takes a list that changes while a session runs"),
    ("N13", "an allowed host can be a drop box: not closed, see docs/security.md"),
    ("S3", "takes a launcher that dies"),
    ("S6-S10", "the launcher's own side, not the engine's"),
    ("P1-P3, P5", "take a login and a repository"),
    ("G1-G11", "take a repository"),
];

/// Names whose public address is a private one, by a service that answers with what a name spells.
const PRIVATE: &[&str] =
    &["127-0-0-1.sslip.io", "10-0-0-1.sslip.io", "169-254-169-254.sslip.io", "192-168-0-1.sslip.io"];

pub(crate) fn run(config: Config, options: &Options, as_json: bool) -> Result<u8> {
    let began = Instant::now();
    let terminal = Terminal::new(true, config.no_colour);
    let home = Home::find(&config)?;
    let config = config.with_file(&home, None)?;
    let images = images::wanted(&config, &home)?;
    let docker = Docker::new(&config, &images::hash_variables(&images));
    docker.engine()?;
    for image in &images {
        if docker.image_labels(&image.name)?.is_none() {
            return Err(hinted(
                format!("cannot find the image '{}'", image.name),
                "a first session builds it, or pi-docker --rebuild",
            ));
        }
    }
    let me = Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let user = match (options.user, Place::find(&config.cwd)) {
        (_, Ok(place)) => agent_user(options.user, &place, me)?,
        (Some(user), Err(_)) => user,
        (None, Err(_)) => me,
    };
    if user.uid == 0 {
        return Err(hinted("cannot be the agent as root", "pi-docker --user 1000:1000 verify"));
    }
    let ground = Ground { config: &config, home: &home, docker: &docker, terminal: &terminal, user, names: PRIVATE };
    let outcomes =
        trial::run(&ground, |trial| attacks::all(trial, &docker)).unwrap_or_else(|e| not_started(&format!("{e:#}")));
    Ok(report(&terminal, &outcomes, began, as_json))
}

/// A session that does not start is a wall that was found missing, or nothing at all.
fn not_started(why: &str) -> Vec<(Threat, Outcome)> {
    let found = match why {
        why if why.contains("can reach the host") => "N6",
        why if why.contains("by DNS") => "N5",
        _ => "",
    };
    let outcome = |id: &str| match id {
        id if id == found => Outcome::Failed(why.to_owned()),
        _ => Outcome::NotTried("the session did not start".to_owned()),
    };
    let mut outcomes: Vec<(Threat, Outcome)> = TRIED.iter().map(|threat| (*threat, outcome(threat.0))).collect();
    if found.is_empty() {
        outcomes.insert(0, (("start", "a session starts"), Outcome::Failed(why.to_owned())));
    }
    outcomes
}

fn report(terminal: &Terminal, outcomes: &[(Threat, Outcome)], began: Instant, as_json: bool) -> u8 {
    let failed = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_))).count();
    let not_tried = NOT_TRIED.iter().map(|(id, why)| ((*id, ""), Outcome::NotTried((*why).to_owned())));
    let all: Vec<(Threat, Outcome)> = outcomes.iter().cloned().chain(not_tried).collect();
    if as_json {
        let lines: Vec<Value> = all.iter().map(|((id, claim), outcome)| json_line(id, claim, outcome)).collect();
        let seconds = began.elapsed().as_secs_f64();
        terminal.answer(&json!({ "threats": lines, "failed": failed, "seconds": seconds }).to_string());
    } else {
        all.iter().for_each(|((id, claim), outcome)| terminal.answer(&printable(&line(id, claim, outcome))));
        let held = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Held).count();
        terminal.say(&format!("{held} held, {failed} failed, in {} s", began.elapsed().as_secs()));
    }
    u8::from(failed > 0)
}

fn line(id: &str, claim: &str, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Held => format!("ok         {id:<5} {claim}"),
        Outcome::Failed(why) => format!("failed     {id:<5} {claim}: {why}"),
        Outcome::NotTried(why) if claim.is_empty() => format!("not tried  {id:<5} {why}"),
        Outcome::NotTried(why) => format!("not tried  {id:<5} {claim}: {why}"),
    }
}

fn json_line(id: &str, claim: &str, outcome: &Outcome) -> Value {
    let (word, why) = match outcome {
        Outcome::Held => ("ok", None),
        Outcome::Failed(why) => ("failed", Some(why)),
        Outcome::NotTried(why) => ("not tried", Some(why)),
    };
    json!({ "id": id, "claim": claim, "outcome": word, "why": why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_does_not_start_names_the_wall_that_is_missing() {
        let outcomes = not_started("cannot start pi: the container can reach the host at 10.0.0.1:1");
        let failed: Vec<&str> =
            outcomes.iter().filter(|(_, o)| matches!(o, Outcome::Failed(_))).map(|((id, _), _)| *id).collect();
        assert_eq!(failed, ["N6"]);
        assert_eq!(not_started("no space left")[0].0.0, "start");
    }

    #[test]
    fn every_number_has_a_line() {
        let numbers = (1..=15).map(|n| format!("N{n}"));
        for number in numbers {
            let known = TRIED.iter().any(|(id, _)| *id == number) || NOT_TRIED.iter().any(|(id, _)| *id == number);
            assert!(known, "{number}");
        }
    }
}
