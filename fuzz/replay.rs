//! A target without a fuzzer: every input of its corpus, and as many changed ones as there is time for. With cargo-fuzz the same targets
//! are guided by what they reach.
//!
//! usage: fuzz-TARGET [CORPUS] [SECONDS]

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub fn main(name: &str, target: fn(&[u8])) {
    let mut args = std::env::args().skip(1);
    let corpus = args.next().map_or_else(|| PathBuf::from("corpus").join(name), PathBuf::from);
    let seconds: u64 = args.next().map_or(0, |text| text.parse().expect("seconds"));
    let entries = std::fs::read_dir(&corpus).unwrap_or_else(|e| panic!("cannot read '{}': {e}", corpus.display()));
    let mut inputs: Vec<(PathBuf, Vec<u8>)> = entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.clone(), std::fs::read(path).expect("an input")))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "there is nothing in '{}'", corpus.display());
    inputs.iter().for_each(|(_, input)| target(input));
    let mut changed = 0_u64;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    while Instant::now() < end {
        let mut input = inputs[random.below(inputs.len())].1.clone();
        for _ in 0..=random.below(6) {
            change(&mut input, &inputs[random.below(inputs.len())].1, &mut random);
        }
        // What ended it can be read from here.
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            let file = std::env::temp_dir().join(format!("fuzz-{name}-crash"));
            std::fs::write(&file, &input).expect("the input can be kept");
            panic!("the input is in '{}'", file.display());
        }
        changed += 1;
    }
    println!("{name}: {} inputs, {changed} changed ones", inputs.len());
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or(0)
    }
}

/// Bytes that mean something to one reader or another.
const TELLING: &[u8] = b"\0\n\r\t \"'\\/.:@#%$!*[]{}-_,0\x7f\x80\x9b\xc2\xff\x1b";

fn change(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(input.len() + 1);
    match random.below(6) {
        0 => input.insert(at, TELLING[random.below(TELLING.len())]),
        1 if at < input.len() => input[at] = TELLING[random.below(TELLING.len())],
        2 if at < input.len() => input[at] ^= 1 << random.below(8),
        3 => input.truncate(at),
        4 if !other.is_empty() => {
            let from = random.below(other.len());
            let part = &other[from..(from + 1 + random.below(24)).min(other.len())];
            input.splice(at..at, part.iter().copied());
        }
        _ if at < input.len() => {
            let end = (at + 1 + random.below(16)).min(input.len());
            input.drain(at..end);
        }
        _ => {}
    }
}
