//! What people mean who know another tool's words for commands and options.

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue};

use super::Cli;

/// Options of other tools, without their dashes, and what does the same here.
const OPTIONS: [(&[&str], &str); 9] = [
    (
        &["dry-run", "dryrun", "dry", "n"],
        "`flowgraph plan PIPELINE` says what a run would do, and why",
    ),
    (
        &["force", "f", "forceall", "F", "no-cache", "forcerun"],
        "`run --rerun STAGE` makes a stage again, `--from STAGE` also all that comes after it",
    ),
    (
        &[
            "cores",
            "c",
            "threads",
            "workers",
            "max-workers",
            "parallel",
        ],
        "`run --jobs N` says how many stages run at once, `resources: { cpus: N }` of a stage its threads",
    ),
    (
        &[
            "config",
            "C",
            "param",
            "params",
            "set-param",
            "S",
            "override",
        ],
        "`--set KEY=VALUE` changes a param, `--profile NAME` several",
    ),
    (
        &["cache-dir", "cache", "work-dir", "workspace", "d"],
        "`--store DIR` names the folder of results",
    ),
    (
        &["gpu", "gpus", "cuda"],
        "`run --device cuda` or `cuda:N`; `resources: { gpus: N }` of a stage says how many it needs",
    ),
    (
        &["keep-going", "k"],
        "`run` goes on with all that does not need a failed stage; `--fail-fast` stops",
    ),
    (
        &["resume", "continue"],
        "the same command goes on where a run was stopped",
    ),
    (
        &["until", "target", "targets", "stage", "stages", "step"],
        "`run --only GLOB` runs the stages that match and what they need",
    ),
];

/// Commands of other tools, and what does the same here.
const COMMANDS: [(&[&str], &str); 8] = [
    (
        &["repro", "exec", "execute", "build", "make", "train"],
        "`flowgraph run PIPELINE`",
    ),
    (
        &["dry-run", "explain"],
        "`flowgraph plan PIPELINE` says what would run, and why",
    ),
    (&["validate", "lint"], "`flowgraph check PIPELINE`"),
    (
        &["dag", "visualize", "viz", "draw"],
        "`flowgraph graph PIPELINE`",
    ),
    (
        &["metrics", "params", "cat", "get", "results", "outputs"],
        "`flowgraph show PIPELINE STAGE` prints a result, `compare` those of several runs",
    ),
    (
        &["clean", "prune", "purge", "remove"],
        "`flowgraph gc` takes away what nothing needs",
    ),
    (
        &["list", "ls", "log", "history"],
        "`flowgraph runs` lists runs, `flowgraph kinds` stage kinds",
    ),
    (
        &["reproduce", "replicate"],
        "`flowgraph run PIPELINE` makes results, `flowgraph audit PIPELINE` makes them again and compares",
    ),
];

/// Returns what may be meant by the word that a command line failed on, of all its `words`.
pub(super) fn hint(error: &clap::Error, words: &[String]) -> Option<&'static str> {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(said)) => Some(said.as_str()),
        _ => None,
    };
    let find = |table: &'static [(&[&str], &str)], word: &str| {
        let found = table.iter().find(|(words, _)| words.contains(&word));
        found.map(|(_, hint)| *hint)
    };
    // The words are those for running; other commands have options of the same names.
    let commands = Cli::command();
    let mut names = commands.get_subcommands().map(clap::Command::get_name);
    let other =
        |name: &str| !["run", "plan"].contains(&name) && words.iter().any(|word| word == name);
    let runs = !names.any(other);
    let option = said(ContextKind::InvalidArg)
        .filter(|_| runs)
        .filter(|said| said.starts_with('-'))
        .and_then(|said| find(&OPTIONS, said.trim_start_matches('-').split('=').next()?));
    let meant = said(ContextKind::InvalidSubcommand).and_then(|said| find(&COMMANDS, said));
    option.or(meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint_of(words: &[&str]) -> Option<&'static str> {
        let given: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let words = [&["flowgraph"], words].concat();
        let error = Cli::command().try_get_matches_from(words).unwrap_err();
        hint(&error, &given)
    }

    #[test]
    fn words_of_other_tools_lead_to_ours() {
        for (words, expected) in [
            (&["run", "p.yaml", "--dry-run"][..], "plan"),
            (&["run", "-n", "p.yaml"], "plan"),
            (&["--store", "x", "run", "p.yaml", "--dry-run"], "plan"),
            (&["run", "p.yaml", "--cores=2"], "--jobs"),
            (&["run", "p.yaml", "--force"], "--rerun"),
            (&["plan", "p.yaml", "--until", "a"], "--only"),
            (&["repro"], "flowgraph run"),
            (&["explain", "p.yaml"], "flowgraph plan"),
        ] {
            let hint = hint_of(words);
            assert!(
                hint.is_some_and(|hint| hint.contains(expected)),
                "{words:?}: {hint:?}"
            );
        }
        assert_eq!(hint_of(&["gc", "-n"]), None);
        assert_eq!(hint_of(&["run", "p.yaml", "--unheard-of"]), None);
        assert_eq!(hint_of(&["unheard-of"]), None);
    }

    #[test]
    fn no_word_of_another_tool_is_one_of_ours() {
        let ours = Cli::command();
        let commands: Vec<&str> = ours
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        for word in COMMANDS.iter().flat_map(|(words, _)| *words) {
            assert!(!commands.contains(word), "{word}");
        }
        for command in ["run", "plan"] {
            let command = ours.find_subcommand(command).unwrap();
            for word in OPTIONS.iter().flat_map(|(words, _)| *words) {
                let takes = |option: &clap::Arg| {
                    let short = option.get_short().map(String::from);
                    option.get_long() == Some(word) || short.as_deref() == Some(word)
                };
                assert!(!command.get_arguments().any(takes), "{word}");
            }
        }
    }
}
