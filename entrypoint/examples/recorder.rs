//! A main program for the tests: writes down every signal it gets, and nothing else ends it but SIGKILL and its last argument.
//!
//! recorder FILE [NUMBER]: appends `ready` to FILE, then `got-N.` for each signal N; ends with status 0 at the signal NUMBER.
#![expect(unsafe_code, reason = "raw system calls: the C library hides some signals")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a program of the tests")]

use std::io::Write;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap();
    let last: Option<i32> = arguments.next().map(|number| number.parse().unwrap());
    let all = u64::MAX;
    // SAFETY: the mask is as long as the size says.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, 0, 8) };
    let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
    file.write_all(b"ready\n").unwrap();
    loop {
        // SAFETY: the mask is as long as the size says; nothing else is asked for.
        let number = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const all, 0, 0, 8) };
        if number > 0 {
            file.write_all(format!("got-{number}.\n").as_bytes()).unwrap();
        }
        if last.is_some_and(|last| i64::from(last) == number) {
            return;
        }
    }
}
