//! Paths in a command's working directory: one spelling each, and none within another.

use serde::{Deserialize, Deserializer};

use crate::engine::artifact::is_inside;
use crate::engine::stage::Problem;

/// Writes a path as short as it gets, so that `./d`, `d/` and `d` are one. What cannot be one in the working directory
/// stays as it is, for the message.
pub(super) fn normal(path: String) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let short = parts.collect::<Vec<_>>().join("/");
    if path.starts_with('/') || short.is_empty() {
        path
    } else {
        short
    }
}

pub(in crate::stages) fn in_list<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<String>, D::Error> {
    Ok(Vec::deserialize(from)?.into_iter().map(normal).collect())
}

fn lies_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Checks that every path is in the working directory, and that no two are the same or one within another.
pub(in crate::stages) fn check(
    outputs: &[(&str, &str)],
    code: &[String],
    problems: &mut Vec<Problem>,
) {
    for (at, (name, path)) in outputs.iter().enumerate() {
        let mut add = |message: String, hint: &str| {
            problems.push(Problem::new(&format!("outputs.{name}"), message).hint(hint));
        };
        if !is_inside(path) {
            add(
                format!("`{path}` leaves the working directory"),
                "outputs are written in the working directory: a relative path without `..`",
            );
            continue;
        }
        for (other, theirs) in &outputs[..at] {
            if path == theirs {
                add(
                    format!("outputs `{other}` and `{name}` are the same path, `{path}`"),
                    "leave one out: several stages can take the same output",
                );
            } else if lies_within(path, theirs) || lies_within(theirs, path) {
                let ((inner, short), (outer, long)) = if lies_within(path, theirs) {
                    ((*name, *path), (*other, *theirs))
                } else {
                    ((*other, *theirs), (*name, *path))
                };
                add(
                    format!("output `{inner}` (`{short}`) lies within output `{outer}` (`{long}`)"),
                    "a file belongs to one output: write it elsewhere, or take the folder and read the file in it",
                );
            }
        }
        for file in code {
            if *path == file || lies_within(file, path) {
                add(
                    format!("output `{name}` (`{path}`) would hold `{file}`, which is in `code`"),
                    "write outputs beside the code, not over it",
                );
            }
        }
    }
    for (at, path) in code.iter().enumerate() {
        let mut add = |message: String, hint: &str| {
            problems.push(Problem::new("code", message).hint(hint));
        };
        if !is_inside(path) {
            add(
                format!("`{path}` is not a relative path without `..`"),
                "code is copied into the working directory under its relative path",
            );
            continue;
        }
        for other in &code[..at] {
            if path == other {
                add(format!("`{path}` is in `code` twice"), "leave one out");
            } else if lies_within(path, other) || lies_within(other, path) {
                let short = if lies_within(path, other) {
                    other
                } else {
                    path
                };
                add(
                    format!("`{path}` and `{other}` are both in `code`"),
                    &format!("`{short}` brings all that it holds: leave the other out"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling() {
        for (path, expected) in [
            ("./z", "z"),
            ("dir/", "dir"),
            ("a//b", "a/b"),
            ("./a/./b//", "a/b"),
            ("a/../b", "a/../b"),
            ("/a", "/a"),
            (".", "."),
            ("", ""),
            ("./", "./"),
        ] {
            assert_eq!(normal(path.to_owned()), expected);
        }
    }

    #[test]
    fn paths_that_overlap_or_lead_out_are_problems() {
        let messages = |outputs: &[(&str, &str)], code: &[&str]| -> Vec<String> {
            let code: Vec<String> = code.iter().map(ToString::to_string).collect();
            let mut problems = Vec::new();
            check(outputs, &code, &mut problems);
            problems
                .into_iter()
                .map(|problem| problem.message)
                .collect()
        };
        assert_eq!(
            messages(&[("a", "d"), ("b", "d2"), ("c", "e/f")], &["d.py", "e"]),
            [""; 0]
        );
        let expected = ["output `b` (`d/f`) lies within output `a` (`d`)"];
        assert_eq!(messages(&[("a", "d"), ("b", "d/f")], &[]), expected);
        let expected = ["output `a` (`d/f`) lies within output `b` (`d`)"];
        assert_eq!(messages(&[("a", "d/f"), ("b", "d")], &[]), expected);
        let expected = ["outputs `a` and `b` are the same path, `d`"];
        assert_eq!(messages(&[("a", "d"), ("b", "d")], &[]), expected);
        let expected = ["output `a` (`d`) would hold `d/x`, which is in `code`"];
        assert_eq!(messages(&[("a", "d")], &["d/x"]), expected);
        let expected = ["`d` is in `code` twice", "`d/x` and `d` are both in `code`"];
        assert_eq!(messages(&[("a", "o")], &["d", "d", "d/x"])[..2], expected);
        assert_eq!(messages(&[("a", ".."), ("b", ".")], &["/etc"]).len(), 3);
    }
}
