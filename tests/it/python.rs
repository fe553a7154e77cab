//! Python with packages from PyPI, for tests that hold what we write against what others read.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::space::Space;

/// A Python of its own in a space.
pub(crate) struct Python<'a> {
    space: &'a Space,
    program: PathBuf,
}

impl<'a> Python<'a> {
    /// Installs packages.
    pub(crate) fn with(space: &'a Space, packages: &[&str]) -> Self {
        let system = Self {
            space,
            program: "python3".into(),
        };
        system.run(&["-m", "venv", "venv"], &[]);
        let python = Self {
            space,
            program: space.path("venv/bin/python"),
        };
        python.run(
            &[&["-m", "pip", "--quiet", "install"], packages].concat(),
            &[],
        );
        python
    }

    /// Runs it in the space, and returns what it prints.
    pub(crate) fn run(&self, args: &[&str], environment: &[(&str, &str)]) -> Vec<u8> {
        let output = Command::new(&self.program)
            .args(args)
            .envs(environment.iter().copied())
            .current_dir(self.space.path(""))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// The folder of the examples that come with the program.
    pub(crate) fn example(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples")
            .join(name)
    }
}
