//! A terminal of a test's own.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::wait_for;

/// A pseudo-terminal: the test is the person in front of it.
pub(crate) struct Terminal {
    keyboard: File,
    /// The end that programs have.
    pub(crate) line: File,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    /// The person has gone away.
    pub(crate) fn unread() -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        Self { keyboard: pty.master.into(), line: pty.slave.into(), screen: Arc::default() }
    }

    pub(crate) fn new() -> Self {
        let terminal = Self::unread();
        let (mut reader, shown) = (terminal.keyboard.try_clone().unwrap(), terminal.screen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        terminal
    }

    pub(crate) fn screen(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn await_text(&self, text: &str) {
        wait_for(
            || format!("{text:?} on the screen: {:?}", self.screen()),
            || self.screen().contains(text).then_some(()),
        );
    }

    /// What `stty` does or says with these words.
    pub(crate) fn stty(&self, words: &[&str]) -> String {
        let said = Command::new("stty").args(words).stdin(self.line.try_clone().unwrap()).output().unwrap();
        String::from_utf8(said.stdout).unwrap()
    }
}
