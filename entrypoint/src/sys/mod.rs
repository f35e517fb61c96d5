//! The kernel's side: the only folder that names nix or libc, and the only one with `unsafe`.
//!
//! Everything here is mechanism; what is done with it, and in which order, is decided outside. It imports nothing of ours.

mod entry;
pub(crate) mod files;
pub(crate) mod net;
pub(crate) mod privileges;
pub(crate) mod process;
pub(crate) mod signals;
pub(crate) mod terminal;
