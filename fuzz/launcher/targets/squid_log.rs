#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzed::squid_log(data));

#[cfg(not(fuzzing))]
#[path = "../../replay.rs"]
mod replay;

#[cfg(not(fuzzing))]
fn main() {
    replay::main("squid_log", fuzzed::squid_log);
}
