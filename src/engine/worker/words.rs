//! Errors of stages in words for people, who know no folder of a try.

use std::path::Path;

use crate::engine::stage::StageError;

/// Replaces paths of caches and of this try, which mean nothing to a reader, by what they stand for.
pub(super) fn in_words(
    error: StageError,
    names: &[(String, String)],
    inputs: &[(String, String)],
    try_folder: &Path,
) -> StageError {
    let StageError::Failed { mut message, hint } = error else {
        return error;
    };
    for (path, name) in names {
        message = message.replace(path, name);
    }
    // Inputs are given by their canonical paths.
    let canonical = fs_err::canonicalize(try_folder);
    for folder in [Some(try_folder), canonical.as_deref().ok()]
        .into_iter()
        .flatten()
    {
        for (input, name) in inputs {
            let path = folder.join(input).display().to_string();
            message = message.replace(&format!("{path}/"), &format!("{name}, "));
            message = message.replace(&path, name);
        }
        message = message.replace(&format!("{}/", folder.display()), "");
    }
    StageError::Failed { message, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_inputs_are_named_by_their_ports() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path).display().to_string();
        let names = [
            ("data.10", "input 11 of `data`"),
            ("data.1", "input 2 of `data`"),
            ("policy.0", "input `policy`"),
        ]
        .map(|(path, name)| (path.to_owned(), name.to_owned()));
        for (path, expected) in [
            ("policy.0", "input `policy`: no end token"),
            (
                "policy.0/config.json",
                "input `policy`, config.json: no end token",
            ),
            ("data.10/a", "input 11 of `data`, a: no end token"),
            ("data.1", "input 2 of `data`: no end token"),
            ("model/config.json", "model/config.json: no end token"),
        ] {
            let error = StageError::new(format!("{}: no end token", at(path)));
            let StageError::Failed { message, .. } = in_words(error, &[], &names, folder.path())
            else {
                panic!("the error is another");
            };
            assert_eq!(message, expected);
        }
    }
}
