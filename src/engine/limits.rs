//! Limits of the operating system, in words.

use std::io::Error;

use rustix::process::{Resource, getrlimit};

use super::stage::StageError;

/// Says what failed, and which limit it met if it met one.
pub fn explain(what: &str, error: &Error) -> StageError {
    let failed = StageError::new(format!("{what}: {error}"));
    match error.raw_os_error() {
        Some(libc::EAGAIN) => failed.hint(format!(
            "{}; processes and threads count, and a container may set a lower limit",
            limit("processes of this user", Resource::Nproc, 'u')
        )),
        Some(libc::EMFILE) => failed.hint(limit("open files", Resource::Nofile, 'n')),
        Some(libc::EFBIG) => failed.hint(limit("bytes of a file", Resource::Fsize, 'f')),
        Some(libc::ENOMEM) => failed
            .hint("there is not enough memory: fewer stages at once (`--jobs`) take less of it"),
        _ => failed,
    }
}

/// Says why a process may have been ended by a signal, if a limit can be the cause.
pub fn explain_signal(signal: i32) -> Option<String> {
    match signal {
        libc::SIGXFSZ => Some(limit("bytes of a file", Resource::Fsize, 'f')),
        libc::SIGXCPU => Some(limit("seconds of a process", Resource::Cpu, 't')),
        libc::SIGKILL => Some(
            "it was killed; if memory ran out, give it fewer neighbours with `--jobs` or `resources.memory`".to_owned(),
        ),
        _ => None,
    }
}

fn limit(of: &str, resource: Resource, option: char) -> String {
    match getrlimit(resource).current {
        Some(limit) => format!("the limit on {of} is {limit} (`ulimit -{option}`)"),
        None => format!("there is no limit on {of} (`ulimit -{option}`) but the machine's own"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_was_met_is_named_and_others_are_not() {
        let hint = |code| match explain("cannot do it", &Error::from_raw_os_error(code)) {
            StageError::Failed { hint, .. } => hint.unwrap_or_default(),
            StageError::Interrupted => unreachable!(),
        };
        assert!(hint(libc::EAGAIN).contains("`ulimit -u`"));
        assert!(hint(libc::EMFILE).contains("`ulimit -n`"));
        assert_eq!(hint(libc::ENOENT), "");
        assert!(explain_signal(25).unwrap().contains("`ulimit -f`"));
        assert_eq!(explain_signal(libc::SIGTERM), None);
    }
}
