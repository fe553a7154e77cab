//! `flowgraph init`: a pipeline to begin with.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::output::Output;
use super::{Failure, exit_code};
use crate::files::write_whole;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Folder for the pipeline and what belongs to it; made if it is not there
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// What to begin with
    #[arg(long, short, value_enum, default_value = "hello")]
    template: Template,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Template {
    /// Two commands, one after the other
    Hello,
    /// Preferences of your own: a reward model, DPO and GFlowNet-DPO on three seeds, and a table
    Preferences,
    /// A reward and a verifier in Python, with a policy gradient and two GFlowNets that learn from them
    Reward,
    /// The tables of the FlowHF paper, at miniature scale (four minutes on two cores)
    Flowhf,
}

impl Template {
    /// The files by name; the first is the pipeline.
    fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Hello => &[("hello.yaml", include_str!("../../examples/hello.yaml"))],
            Self::Preferences => &[
                (
                    "preferences.yaml",
                    include_str!("../../examples/preferences/pipeline.yaml"),
                ),
                (
                    "preferences.jsonl",
                    include_str!("../../examples/preferences/preferences.jsonl"),
                ),
                (
                    "held_out.jsonl",
                    include_str!("../../examples/preferences/held_out.jsonl"),
                ),
            ],
            Self::Reward => &[
                (
                    "reward.yaml",
                    include_str!("../../examples/python_reward/pipeline.yaml"),
                ),
                (
                    "reward.py",
                    include_str!("../../examples/python_reward/reward.py"),
                ),
                (
                    "verifier.py",
                    include_str!("../../examples/python_reward/verifier.py"),
                ),
            ],
            Self::Flowhf => &[("flowhf.yaml", include_str!("../../pipelines/flowhf.yaml"))],
        }
    }
}

pub(super) fn run(args: &InitArgs, output: &Output) -> Result<u8, Failure> {
    let files = args.template.files().iter();
    let files: Vec<(PathBuf, &str)> = files
        .map(|(name, text)| (args.folder.join(name), *text))
        .collect();
    if let Some((path, _)) = files
        .iter()
        .find(|(path, _)| path.symlink_metadata().is_ok())
    {
        return Err(Failure::Other {
            message: format!("{} exists", path.display()),
            hint: Some("`flowgraph init FOLDER` writes into another folder".to_owned()),
            code: exit_code::USAGE,
        });
    }
    fs_err::create_dir_all(&args.folder)?;
    for (path, text) in &files {
        write_whole(path, &mut text.as_bytes())?;
        if !output.quiet && !output.json {
            output.line(&format!("wrote {}", path.display()));
        }
    }
    if output.json {
        let paths = files.iter().map(|(path, _)| path.display().to_string());
        let paths: Vec<String> = paths.collect();
        output.json(&json!({ "files": paths }));
    } else if let Some((pipeline, _)) = files.first().filter(|_| !output.quiet) {
        let pipeline = quoted(&pipeline.display().to_string());
        output.line(&format!(
            "next: `flowgraph plan {pipeline}` says what would run, `flowgraph run {pipeline}` runs it"
        ));
    }
    Ok(exit_code::OK)
}

/// Writes a path as a shell takes it.
fn quoted(path: &str) -> String {
    let plain = |sign: char| sign.is_ascii_alphanumeric() || "/._-+=,".contains(sign);
    let path = if path.starts_with('-') {
        format!("./{path}")
    } else {
        path.to_owned()
    };
    if path.chars().all(plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}
