#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzed::remote_url(data));

#[cfg(not(fuzzing))]
#[path = "../../replay.rs"]
mod replay;

#[cfg(not(fuzzing))]
fn main() {
    replay::main("remote_url", fuzzed::remote_url);
}
