//! When a run has to end although pi goes on: wall clock, silence, a tool that never returns, budgets. Pure: the time is given.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::failure::{Code, Failure};
use crate::report::Usage;
use crate::stream::PiEvent;
use crate::task::Spec;

/// The limits of a run; none means without limit.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    wall: Option<Duration>,
    idle: Option<Duration>,
    tool: Option<Duration>,
    cost: Option<f64>,
    tokens: Option<u64>,
    turns: Option<u64>,
}

/// How long a pi that has said it is done may take to end.
const SETTLE: Duration = Duration::from_secs(10);

impl Limits {
    pub(crate) fn of(spec: &Spec) -> Self {
        let seconds = |wanted: Option<u64>, default: u64| match wanted.unwrap_or(default) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        };
        Limits {
            wall: seconds(spec.timeout, 30 * 60),
            idle: seconds(spec.idle_timeout, 10 * 60),
            tool: seconds(spec.tool_timeout, 15 * 60),
            cost: spec.max_cost.filter(|limit| *limit > 0.0),
            tokens: spec.max_tokens.filter(|limit| *limit > 0),
            turns: spec.max_turns.filter(|limit| *limit > 0),
        }
    }
}

/// What a run has done so far, as far as a limit looks at it.
#[derive(Debug)]
pub(crate) struct Watch {
    limits: Limits,
    started: Instant,
    heard: Instant,
    tools: HashMap<String, (String, Instant)>,
    settled: Option<Instant>,
    pub(crate) usage: Usage,
    pub(crate) turns: u64,
}

/// Why pi is told to stop.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A limit: the run has failed, its work is kept.
    Limit(Failure),
    /// It has said that it is done and does not end: a success.
    Settled,
}

impl Watch {
    pub(crate) fn start(limits: Limits, now: Instant) -> Self {
        Watch {
            limits,
            started: now,
            heard: now,
            tools: HashMap::new(),
            settled: None,
            usage: Usage::default(),
            turns: 0,
        }
    }

    /// Takes an event; says so if it exceeds a budget.
    pub(crate) fn event(&mut self, event: &PiEvent, now: Instant) -> Option<Failure> {
        self.heard = now;
        match event {
            PiEvent::TurnStart => {
                self.settled = None;
                if self.limits.turns.is_some_and(|limit| self.turns >= limit) {
                    return Some(budget(format!("{} turns", self.turns)));
                }
                self.turns += 1;
            }
            PiEvent::Message { usage, assistant } => {
                if let Some(usage) = usage {
                    self.usage.add(usage);
                }
                // An answer that is already the last one is not thrown away for being too dear.
                let last = assistant.as_ref().is_some_and(|message| message.stop_reason == "stop");
                return if last { None } else { self.overspent() };
            }
            PiEvent::ToolStart { id, name, .. } => {
                self.tools.insert(id.clone(), (name.clone(), now));
            }
            PiEvent::ToolEnd { id } => {
                self.tools.remove(id);
            }
            PiEvent::Settled { .. } => self.settled = Some(now),
            PiEvent::Session | PiEvent::RetryStart { .. } | PiEvent::Other => {}
        }
        None
    }

    fn overspent(&self) -> Option<Failure> {
        if self.limits.cost.is_some_and(|limit| self.usage.cost.total >= limit) {
            return Some(budget(format!("${:.2}", self.usage.cost.total)));
        }
        if self.limits.tokens.is_some_and(|limit| self.usage.total_tokens >= limit) {
            return Some(budget(format!("{} tokens", self.usage.total_tokens)));
        }
        None
    }

    /// Whether pi has to stop now.
    pub(crate) fn due(&self, now: Instant) -> Option<Stop> {
        let over =
            |since: Instant, limit: Option<Duration>| limit.is_some_and(|limit| now.duration_since(since) >= limit);
        if let Some(settled) = self.settled {
            return over(settled, Some(SETTLE)).then_some(Stop::Settled);
        }
        let stop = |code, text: String, option: &str| {
            let hint = format!("its work is kept; go on with resume, {option}");
            Some(Stop::Limit(Failure::new(code, text).hint(hint)))
        };
        if over(self.started, self.limits.wall) {
            let text = format!("stopped after {}", spell(now.duration_since(self.started)));
            return stop(Code::Timeout, text, "with a longer --timeout if need be");
        }
        if let Some((name, _)) = self.tools.values().find(|(_, since)| over(*since, self.limits.tool)) {
            let text =
                format!("stopped: the tool '{name}' did not return in {}", spell(self.limits.tool.unwrap_or_default()));
            return stop(Code::ToolTimeout, text, "with a longer --tool-timeout if need be");
        }
        if self.tools.is_empty() && over(self.heard, self.limits.idle) {
            let text = format!("stopped: nothing came from pi for {}", spell(self.limits.idle.unwrap_or_default()));
            return stop(Code::Idle, text, "with a longer --idle-timeout if need be");
        }
        None
    }

    pub(crate) fn settled(&self) -> bool {
        self.settled.is_some()
    }

    /// The tool that has been running longest, and for how long.
    pub(crate) fn tool(&self, now: Instant) -> Option<(&str, Duration)> {
        let oldest = self.tools.values().min_by_key(|(_, since)| *since)?;
        Some((&oldest.0, now.duration_since(oldest.1)))
    }
}

fn budget(spent: String) -> Failure {
    Failure::new(Code::Budget, format!("stopped: the budget is used up ({spent})"))
        .hint("its work is kept; go on with resume and a larger budget")
}

/// A duration as a person says it.
pub(crate) fn spell(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Cost;
    use crate::stream::Assistant;

    fn watch(spec: Spec) -> (Watch, Instant) {
        let now = Instant::now();
        (Watch::start(Limits::of(&spec), now), now)
    }

    fn code(stop: Option<Stop>) -> Option<Code> {
        match stop {
            Some(Stop::Limit(failure)) => Some(failure.code),
            _ => None,
        }
    }

    fn tool(id: &str) -> PiEvent {
        PiEvent::ToolStart { id: id.into(), name: "bash".into(), summary: String::new() }
    }

    #[test]
    fn silence_counts_only_while_no_tool_runs() {
        let (mut watch, now) = watch(Spec { idle_timeout: Some(5), tool_timeout: Some(60), ..Spec::default() });
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(code(watch.due(at(4))), None);
        assert_eq!(code(watch.due(at(5))), Some(Code::Idle));
        watch.event(&tool("a"), at(4));
        assert_eq!(code(watch.due(at(63))), None);
        assert_eq!(code(watch.due(at(64))), Some(Code::ToolTimeout));
        watch.event(&PiEvent::ToolEnd { id: "a".into() }, at(64));
        assert_eq!(code(watch.due(at(68))), None);
    }

    #[test]
    fn a_pi_that_is_done_has_ten_seconds_to_end_and_no_other_limit() {
        let (mut watch, now) = watch(Spec { timeout: Some(1), ..Spec::default() });
        watch.event(&PiEvent::Settled { aborted: false }, now);
        assert!(watch.due(now + Duration::from_secs(9)).is_none());
        assert!(matches!(watch.due(now + Duration::from_secs(10)), Some(Stop::Settled)));
    }

    #[test]
    fn a_budget_stops_the_next_step_but_not_the_last_answer() {
        let message = |stop_reason: &str| PiEvent::Message {
            usage: Some(Usage { total_tokens: 10, cost: Cost { total: 0.5, ..Cost::default() }, ..Usage::default() }),
            assistant: Some(Assistant { stop_reason: stop_reason.into(), ..Assistant::default() }),
        };
        for spec in [Spec { max_cost: Some(0.5), ..Spec::default() }, Spec { max_tokens: Some(10), ..Spec::default() }]
        {
            let (mut watch, now) = watch(spec);
            assert!(watch.event(&message("stop"), now).is_none());
            assert_eq!(watch.event(&message("toolUse"), now).unwrap().code, Code::Budget);
        }
        let (mut watch, now) = watch(Spec { max_turns: Some(1), ..Spec::default() });
        assert!(watch.event(&PiEvent::TurnStart, now).is_none());
        assert!(watch.event(&PiEvent::TurnStart, now).is_some());
    }

    #[test]
    fn zero_is_no_limit() {
        let (watch, now) = watch(Spec { timeout: Some(0), idle_timeout: Some(0), ..Spec::default() });
        assert!(watch.due(now + Duration::from_secs(1 << 20)).is_none());
    }
}
