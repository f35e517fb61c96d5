//! The private git directory against real git and a real kernel: each test has a repository of its own, lets "the container" work in the
//! mounts that `prepare` names (a mount namespace, git 2.39 or whatever the system has, no capability), and looks at the host after.
#![cfg(target_os = "linux")]
#![expect(clippy::disallowed_methods, reason = "tests start git and read the PATH")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

#[allow(dead_code, reason = "the launcher uses what the tests do not")]
#[path = "../../src/error.rs"]
mod error;
#[path = "../../../subagent/src/export.rs"]
mod export;
#[allow(dead_code, unused_imports, reason = "the launcher uses what the tests do not")]
#[path = "../../src/git/mod.rs"]
mod git;

mod asides;
mod attacks;
mod direct_mode;
mod gate;
mod kinds;
mod lenders;
mod limits;
mod lossless;
mod offered_again;
mod refusals;
mod scene;
mod speed;
