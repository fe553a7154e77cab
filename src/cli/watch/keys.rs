//! Keys that are pressed at a terminal, without Enter.

use std::io::{IsTerminal, Stdin, stdin};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-C, as a terminal writes it when it sends no signal for it.
const INTERRUPT: u8 = 3;

/// Reads keys; the terminal is as it was when this is dropped.
pub(super) struct Keys {
    stdin: Stdin,
    before: Option<Termios>,
}

impl Keys {
    /// Asks the terminal to hand on keys one by one. Where there is none, none comes.
    pub(super) fn of_terminal() -> Self {
        let stdin = stdin();
        let before = stdin
            .is_terminal()
            .then(|| tcgetattr(&stdin).ok())
            .flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            // A signal would end the program and leave the terminal like this.
            raw.local_modes
                .remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
            let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
        }
        Self { stdin, before }
    }

    /// Waits, and says whether somebody wants to leave.
    pub(super) fn is_quit(&self, wait: Duration) -> bool {
        if self.before.is_none() {
            std::thread::sleep(wait);
            return false;
        }
        let mut fds = [PollFd::new(&self.stdin, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        };
        if !poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0) {
            return false;
        }
        let mut pressed = [0; 64];
        match rustix::io::read(&self.stdin, &mut pressed) {
            Ok(count) if count > 0 => {
                let is_quit = |key: &u8| [b'q', b'Q', INTERRUPT].contains(key);
                pressed[..count].iter().any(is_quit)
            }
            // The terminal is gone.
            _ => true,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(&self.stdin, OptionalActions::Now, before);
        }
    }
}
