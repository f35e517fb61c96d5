//! One main program, everything it leaves behind, and the signals that are meant for it.
//!
//! It waits in one place, for a signal or for the next look at the clock. The main program gets every signal; the end of the main
//! program, or of the time it was given, ends the wait. Then `sweep` ends all other processes, and nothing runs when it returns.

use std::io;
use std::time::{Duration, Instant};

use crate::sys::process::{self, Change, Everyone, Group, Program};
use crate::sys::signals::{CHLD, CONT, IO, KILL, Received, Signals, TERM};
use crate::sys::terminal::Terminal;

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Exited(u8),
    Killed(i32),
}

/// Why it was asked to end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Terminated,
    Heartbeat,
    Timeout,
}

/// The end of the main program.
pub(crate) struct End {
    pub(crate) status: Status,
    /// `None`: nobody asked.
    pub(crate) cause: Option<Cause>,
    /// Whether it was killed from here, for not ending when asked.
    pub(crate) killed_by_us: bool,
}

/// How many changes of children are taken before a look at the clock: whoever stops and continues some makes new ones without end.
const AT_ONCE: usize = 10;

/// The last moment for the main program and for everything else to end.
#[derive(Clone, Copy)]
struct Deadline {
    main: Instant,
    rest: Instant,
}

pub(crate) struct Supervisor<'a> {
    signals: &'a Signals,
    /// PID 1 takes the terminal and gives the main program a group of its own: elsewhere both belong to the shell that started this.
    first: bool,
    terminal: Option<Terminal>,
    /// Set when this is PID 1 of a container: everyone else is ours.
    everyone: Option<Everyone>,
    grace: Duration,
    deadline: Option<Deadline>,
    main: i32,
    cause: Option<Cause>,
    /// Since when the main program should be dead: killed from here.
    killed: Option<Instant>,
    /// Whether pi has ended and what follows it runs: that gets no time to end by itself.
    after: bool,
    unreachable: bool,
}

impl Status {
    /// What a shell would say.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => u8::try_from(128 + signal).unwrap_or(255),
        }
    }
}

impl<'a> Supervisor<'a> {
    pub(crate) fn new(signals: &'a Signals, grace: Duration) -> Self {
        let first = process::own_pid() == 1;
        Self {
            signals,
            first,
            terminal: first.then(Terminal::open).flatten(),
            everyone: None,
            grace,
            deadline: None,
            main: 0,
            cause: None,
            killed: None,
            after: false,
            unreachable: false,
        }
    }

    /// Whether it was impossible to signal the main program.
    pub(crate) fn was_powerless(&self) -> bool {
        self.unreachable
    }

    /// Starts the program; it is executing when this returns.
    pub(crate) fn start(&mut self, program: &Program) -> Result<(), process::NotStarted> {
        let group = if self.first { Group::Own(self.terminal.as_ref()) } else { Group::Ours };
        let started = process::start(program, group, self.signals);
        // The program need not wait for this look.
        self.everyone = Everyone::below_this_init();
        self.main = started?;
        Ok(())
    }

    /// Stays with the program until it has ended, or could not be ended. `tick` is called every `interval`, when a socket has something
    /// to read, and as soon as the program has been asked to end; it is told whether that is so, and may ask for it.
    pub(crate) fn stay(&mut self, interval: Option<Duration>, mut tick: impl FnMut(bool) -> Option<Cause>) -> End {
        process::rest();
        let mut next_tick = interval.map(|interval| Instant::now() + interval);
        loop {
            let now = Instant::now();
            if next_tick.is_some_and(|at| now >= at) {
                next_tick = interval.map(|interval| now + interval);
                match (tick(self.cause.is_some()), self.cause) {
                    (Some(cause), None) => {
                        self.ask_to_end(cause);
                        next_tick = Some(now);
                    }
                    (Some(_), Some(_)) if self.after => self.kill_main(),
                    _ => {}
                }
            }
            let main_deadline = match self.enforce(now) {
                Ok(next) => next,
                Err(given_up) => return self.ended(given_up),
            };
            let wake = [next_tick, main_deadline].into_iter().flatten().min();
            match self.signals.wait(wake.map(|at| at.saturating_duration_since(Instant::now()))) {
                None => {}
                Some(signal) if signal.number == IO && signal.from_kernel => next_tick = Some(now),
                Some(signal) if signal.number == CHLD => {
                    if let Some(status) = self.reap() {
                        return self.ended(status);
                    }
                }
                Some(signal) => {
                    let before = self.cause;
                    self.forward(&signal);
                    if self.cause != before {
                        next_tick = Some(now);
                    }
                }
            }
        }
    }

    /// Runs one more program when everything has ended, for `limit` at most, and ends everything again. Whatever asks for the end
    /// kills it.
    pub(crate) fn run_after(
        &mut self,
        program: &Program,
        limit: Duration,
        interval: Option<Duration>,
        tick: impl FnMut(bool) -> Option<Cause>,
    ) -> Result<Status, process::NotStarted> {
        let now = Instant::now();
        self.terminal = None;
        self.after = true;
        self.cause = Some(Cause::Timeout);
        self.killed = None;
        self.deadline = Some(Deadline { main: now + limit, rest: now });
        self.start(program)?;
        let end = self.stay(interval, tick);
        self.sweep();
        Ok(end.status)
    }

    fn ended(&self, status: Status) -> End {
        if let (Some(terminal), Status::Killed(_)) = (&self.terminal, status) {
            terminal.reset();
        }
        End { status, cause: self.cause, killed_by_us: self.killed.is_some() }
    }

    /// Waits for what has ended, up to the main program, whose status it gives. One SIGCHLD may stand for many.
    fn reap(&mut self) -> Option<Status> {
        for _ in 0..AT_ONCE {
            match process::next_change() {
                Ok(Some(Change::Exited { pid, code })) if pid == self.main => {
                    return Some(Status::Exited(u8::try_from(code).unwrap_or(255)));
                }
                Ok(Some(Change::Killed { pid, signal })) if pid == self.main => return Some(Status::Killed(signal)),
                Ok(Some(Change::Stopped { pid })) if pid == self.main => self.resume(),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
        // There may be more, after a look at everything else.
        let _ = process::send(process::own_pid(), CHLD);
        None
    }

    /// Nobody could bring a stopped main program of a container back; outside, the shell that started this one can.
    fn resume(&self) {
        if self.everyone.is_some() {
            if let Some(terminal) = &self.terminal {
                terminal.give_to(self.main);
            }
            let _ = process::send(-self.main, CONT);
        } else {
            process::stop_self();
            let _ = process::send(self.main, CONT);
        }
    }

    fn forward(&mut self, signal: &Received) {
        if self.everyone.is_none() && (signal.from_kernel || signal.sender == self.main) {
            // In one process group with the main program, which has got it too.
            return;
        }
        if signal.sender == process::own_pid() {
            return;
        }
        if signal.number == TERM && self.cause.is_some() {
            self.kill_main();
        } else if signal.number == TERM {
            self.ask_to_end(Cause::Terminated);
        } else {
            self.send_to_main(signal.number);
        }
    }

    fn ask_to_end(&mut self, cause: Cause) {
        let now = Instant::now();
        // What the main program leaves behind gets its share of the time.
        self.deadline = Some(Deadline { main: now + self.grace * 7 / 8, rest: now + self.grace });
        self.cause = Some(cause);
        self.send_to_main(TERM);
    }

    /// Does what is due by now: kills a main program that was asked in vain, and everyone if that was in vain too, as its end is told to
    /// whoever traces it, and to nobody else until the tracer has ended. The next moment to look; an error if even that was in vain.
    fn enforce(&mut self, now: Instant) -> Result<Option<Instant>, Status> {
        const UNKILLABLE: Duration = Duration::from_secs(1);
        let Some(Deadline { main, rest }) = self.deadline else { return Ok(None) };
        match self.killed {
            None if now < main => return Ok(Some(main)),
            None => self.kill_main(),
            Some(killed) if now >= rest.max(killed) + UNKILLABLE => return Err(Status::Killed(KILL)),
            Some(_) if now >= rest => {
                self.signal_rest(KILL);
                return Ok(Some(now + Duration::from_millis(50)));
            }
            Some(_) => {}
        }
        Ok(Some(rest))
    }

    fn kill_main(&mut self) {
        self.killed.get_or_insert_with(Instant::now);
        self.send_to_main(KILL);
    }

    fn send_to_main(&mut self, signal: i32) {
        // The main program has not been waited for, so its number is still its own.
        if let Err(error) = process::send(self.main, signal) {
            self.unreachable |= error.kind() == io::ErrorKind::PermissionDenied;
        }
    }

    /// Ends every process that is left: asks, waits, kills, and waits until none is there. A process that cannot be killed, because the
    /// kernel is busy for it, is given up after a while; false then.
    pub(crate) fn sweep(&mut self) -> bool {
        const UNKILLABLE: Duration = Duration::from_secs(2);
        let deadline = self.deadline.take().map_or_else(|| Instant::now() + self.grace, |deadline| deadline.rest);
        if !self.signal_rest(TERM) {
            return true;
        }
        self.signal_rest(CONT);
        if self.wait_for_rest(deadline, None) {
            return true;
        }
        self.wait_for_rest(Instant::now() + UNKILLABLE, Some(KILL))
    }

    /// Reaps until nobody is left; true then. Signals them again at every look, as new ones may come from old ones.
    fn wait_for_rest(&mut self, deadline: Instant, signal: Option<i32>) -> bool {
        let mut pause = Duration::from_millis(1);
        loop {
            let children = (0..AT_ONCE).find_map(|_| match process::next_change() {
                Ok(Some(_)) => None,
                Ok(None) => Some(true),
                Err(_) => Some(false),
            });
            // Signal 0 only asks who is there.
            let others = self.signal_rest(signal.unwrap_or(0));
            if children == Some(false) && !others {
                return true;
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            let wait = if children.is_none() { Duration::ZERO } else { pause.min(deadline - now) };
            // A second request to end: no more patience.
            if self.signals.wait(Some(wait)).is_some_and(|s| s.number == TERM) && signal.is_none() {
                return false;
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Signals whoever is left; false if there is nobody.
    fn signal_rest(&mut self, signal: i32) -> bool {
        match &self.everyone {
            Some(everyone) => everyone.send(signal).unwrap_or(true),
            None => process::send_to_descendants(signal),
        }
    }
}
