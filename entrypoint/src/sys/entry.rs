//! Where the process begins: the C entry point instead of Rust's own start-up code.
//!
//! The kernel drops what is sent to a PID 1 that neither handles nor blocks it, so blocking signals has to be the first thing the
//! process does. Rust's start-up code would come before that, and would leave SIGPIPE ignored in every program started from here.
#![expect(unsafe_code, reason = "a C entry point")]

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;

#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, expect(dead_code, reason = "the test harness has an entry point of its own"))]
extern "C" fn main(argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    let signals = super::signals::Signals::block();
    super::files::fill_standard_descriptors();
    let args = (0..usize::try_from(argc).unwrap_or(0)).map(|index| {
        // SAFETY: the C runtime passes `argc` valid, NUL-terminated strings that live as long as the process.
        let arg = unsafe { CStr::from_ptr(*argv.add(index)) };
        OsStr::from_bytes(arg.to_bytes()).to_owned()
    });
    crate::story(args.collect(), &signals).into()
}
