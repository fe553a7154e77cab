//! Where results are when nobody says: in the nearest store above the pipeline, or above the current folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::ArgMatches;

use super::output::Output;
use super::{Failure, exit_code};

/// The store of the current folder.
pub(super) const HERE: &str = ".flowgraph";

/// Returns the pipeline files that a command was given, whichever it is.
pub(super) fn pipelines(matches: &ArgMatches) -> Vec<PathBuf> {
    let Some((_, command)) = matches.subcommand() else {
        return Vec::new();
    };
    let given = |name| command.try_get_many::<PathBuf>(name).ok().flatten();
    let given = ["pipeline", "pipelines"].into_iter().filter_map(given);
    given.flatten().cloned().collect()
}

/// Returns the nearest store above the pipelines, else above the current folder, else where a run makes one: here. Says
/// which, where it is not here.
///
/// # Errors
/// If they have different ones: results would be looked for in one and stand in the other.
pub(super) fn nearest(pipelines: &[PathBuf], output: &Output) -> Result<PathBuf, Failure> {
    let here = std::env::current_dir().unwrap_or_default();
    // Above the name that was given, wherever a link of that name leads.
    let of_pipelines = pipelines.iter().filter_map(|pipeline| {
        let folder = pipeline.parent()?;
        above(&here.join(folder).canonicalize().ok()?)
    });
    let mut known = BTreeSet::new();
    let found = of_pipelines.chain(above(&here));
    let found: Vec<PathBuf> = found
        .filter(|store| known.insert(store.canonicalize().ok()))
        .collect();
    match found.as_slice() {
        [one, .., other] => Err(Failure::Other {
            message: format!(
                "two stores could be meant: {} and {}",
                one.display(),
                other.display()
            ),
            hint: Some(
                "`--store DIR` or FLOWGRAPH_STORE says which; without it the nearest one above the pipeline and above \
                 the current folder is taken"
                    .to_owned(),
            ),
            code: exit_code::USAGE,
        }),
        [store] if *store != here.join(HERE) => {
            if !output.quiet && !output.json {
                output.line(&format!("store: {}", store.display()));
            }
            Ok(store.clone())
        }
        _ => Ok(HERE.into()),
    }
}

fn above(folder: &Path) -> Option<PathBuf> {
    let mut stores = folder.ancestors().map(|folder| folder.join(HERE));
    stores.find(|store| store.is_dir())
}
