//! The real program against a real repository, the real git server and a scripted pi.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "helpers of tests")]
#![allow(clippy::disallowed_methods, reason = "tests start programs")]

mod beside;
mod cleanup;
mod crash;
mod delivery;
mod endings;
mod internet;
mod lab;
mod load;
mod refusals;
mod repositories;
mod spawn;
mod speed;
mod together;
