//! `flowgraph push`, `pull`, `remote`, and `gc --remote`: the shared store of a group.

mod bar;
mod collect;
mod config;
mod pull;
mod push;
mod status;

use clap::builder::StringValueParser;
use clap::{Args, Subcommand};

use super::output::Output;
use super::{Failure, exit_code, interrupts};
use crate::engine::store::{Remote, RemoteError, Store};

pub(super) use collect::{Collection, collect};
pub(super) use pull::{PullArgs, pull};
pub(super) use push::{PushArgs, push};

/// Which shared store.
#[derive(Debug, Args)]
pub(super) struct RemoteOptions {
    /// Shared store of a group: s3://bucket/path, gs://bucket/path, az://container/path, file:///path, or none (default:
    /// `remote:` of ~/.config/flowgraph/config.yaml)
    #[arg(
        long,
        value_name = "ADDRESS",
        env = config::VARIABLE,
        hide_env_values = true,
        value_parser = StringValueParser::new()
    )]
    remote: Option<String>,
}

impl RemoteOptions {
    fn given(&self) -> &str {
        self.remote.as_deref().unwrap_or_default()
    }

    /// Opens the shared store, if there is one.
    pub(super) fn open(&self) -> Result<Option<Remote>, Failure> {
        config::open(self.given())
    }

    fn needed(&self) -> Result<Remote, Failure> {
        needed(self.given())
    }
}

#[derive(Debug, Args)]
pub(super) struct RemoteArgs {
    #[command(subcommand)]
    command: RemoteCommand,
}

#[derive(Debug, Subcommand)]
enum RemoteCommand {
    /// Say what is there, what is here alone, and whether the first writer wins there
    Status {
        #[command(flatten)]
        remote: RemoteOptions,
    },
    /// Read all that is there, and name what is damaged
    Verify {
        #[command(flatten)]
        remote: RemoteOptions,
        /// Remove what is damaged there, so that `push` and `run` send it again
        #[arg(long)]
        repair: bool,
    },
}

pub(super) fn run(args: &RemoteArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    match &args.command {
        RemoteCommand::Status { remote } => status::status(&remote.needed()?, store, output),
        RemoteCommand::Verify { remote, repair } => {
            status::verify(&remote.needed()?, *repair, output)
        }
    }
}

/// Returns the address of the shared store that a run would ask, without asking it.
pub(super) fn address_of_run() -> Option<String> {
    let settings = config::settings("").ok()??;
    Some(settings.name().to_owned())
}

fn needed(given: &str) -> Result<Remote, Failure> {
    config::open(given)?.ok_or_else(|| Failure::Other {
        message: "no shared store is named".to_owned(),
        hint: Some(
            "`--remote=s3://bucket/path` or `--remote=file:///path`, FLOWGRAPH_REMOTE, or `remote:` in ~/.config/flowgraph/config.yaml"
                .to_owned(),
        ),
        code: exit_code::USAGE,
    })
}

/// What a command says whose question was not answered; `so_far` is what it had done.
fn failure(remote: &Remote, error: &RemoteError, so_far: &str) -> Failure {
    if interrupts::is_interrupted() {
        return Failure::Other {
            message: format!("interrupted{so_far}"),
            hint: Some("the same command goes on from there".to_owned()),
            code: exit_code::INTERRUPTED,
        };
    }
    let said = remote.said(error);
    if error.is_of_this_machine() {
        return Failure::Other {
            message: format!("{said}{so_far}"),
            hint: None,
            code: exit_code::STAGE_FAILED,
        };
    }
    let address = remote.address();
    let variables = [
        (
            "s3",
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL names a server other than Amazon's",
        ),
        ("gs", "GOOGLE_SERVICE_ACCOUNT"),
        (
            "az",
            "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        ),
    ];
    let variables = variables
        .iter()
        .find(|(scheme, _)| address.starts_with(scheme));
    let hint = variables.filter(|_| error.is_refusal()).map(|(_, names)| {
        format!(
            "credentials come from variables such as {names}; they need to read, write and list"
        )
    });
    Failure::Other {
        message: format!("shared store {address}: {said}{so_far}"),
        hint,
        code: exit_code::STAGE_FAILED,
    }
}

/// Asks, and fails if there is no answer.
fn asked<T>(remote: &Remote, answer: Result<T, RemoteError>) -> Result<T, Failure> {
    answer.map_err(|error| failure(remote, &error, ""))
}

/// Refuses to write where the user said not to.
fn writable(remote: &Remote) -> Result<(), Failure> {
    if remote.is_read_only() {
        return Err(Failure::usage(format!(
            "{} is `read_only` in the user's config.yaml: nothing is changed there",
            remote.address()
        )));
    }
    Ok(())
}
