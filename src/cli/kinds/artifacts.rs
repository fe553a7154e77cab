//! What each artifact kind is made of, for people and programs, from the table that checks it.

use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::super::output::Output;
use super::super::{Failure, exit_code};
use crate::artifacts::format::{ArtifactFormat, FORMATS, Presence, find};
use crate::engine::diagnostic::did_you_mean;

/// Prints the format of one artifact kind, or lists all of them.
pub(super) fn run(kind: Option<&str>, output: &Output) -> Result<u8, Failure> {
    let Some(name) = kind else {
        if output.json {
            let rows: Vec<Json> = FORMATS
                .iter()
                .map(|format| json!({ "kind": format.kind, "about": format.about }))
                .collect();
            output.json(&rows);
        } else {
            let width = FORMATS.iter().map(|format| format.kind.len()).max();
            let width = width.unwrap_or(0);
            let lines: Vec<String> = FORMATS
                .iter()
                .map(|format| format!("{:width$}  {}", format.kind, format.about))
                .collect();
            output.data(&lines.join("\n"));
        }
        return Ok(exit_code::OK);
    };
    let Some(format) = find(name) else {
        return Err(Failure::Other {
            message: format!("unknown artifact kind `{name}`"),
            hint: did_you_mean(name, FORMATS.iter().map(|format| format.kind))
                .or_else(|| Some("`flowgraph kinds --artifacts` lists them".to_owned())),
            code: exit_code::USAGE,
        });
    };
    if output.json {
        output.json(&as_json(format));
    } else {
        output.data(&describe(format));
    }
    Ok(exit_code::OK)
}

fn as_json(format: &ArtifactFormat) -> Json {
    let files: Vec<Json> = format
        .files
        .iter()
        .map(|file| json!({ "name": file.name, "optional": file.is_optional, "about": file.about }))
        .collect();
    let mut value = json!({
        "kind": format.kind, "about": format.about, "files": files, "writable": format.is_writable,
    });
    if let Some(rows) = &format.rows {
        let columns = rows.columns.iter().map(|column| {
            json!({
                "name": column.name,
                "type": column.holds.stored_as(),
                "holds": column.holds.in_words(),
                "required": column.presence == Presence::Required,
                "nullable": column.presence == Presence::MayBeNull,
                "about": column.about,
                "example": serde_json::from_str::<Json>(column.example).unwrap_or_default(),
            })
        });
        value["columns"] = columns.collect();
        value["further_columns"] = json!(rows.further.in_words());
    }
    value
}

fn describe(format: &ArtifactFormat) -> String {
    let mut text = format!("{}: {}\n\nfiles:\n", format.kind, format.about);
    let width = |names: &mut dyn Iterator<Item = usize>| names.max().unwrap_or(0);
    let names = width(&mut format.files.iter().map(|file| file.name.len()));
    for file in format.files {
        let optional = if file.is_optional { " (optional)" } else { "" };
        let _ = writeln!(text, "  {:names$}  {}{optional}", file.name, file.about);
    }
    if let Some(rows) = &format.rows {
        let names = width(&mut rows.columns.iter().map(|column| column.name.len()));
        let types = rows
            .columns
            .iter()
            .map(|column| column.holds.stored_as().len());
        let types = width(&mut { types });
        text.push_str("\ncolumns:\n");
        for column in rows.columns {
            let null = match column.presence {
                Presence::Required => "",
                Presence::MayBeLeftOut => "; may be left out",
                Presence::MayBeNull => "; may be null or left out",
            };
            let _ = writeln!(
                text,
                "  {:names$}  {:types$}  {} ({}{null})",
                column.name,
                column.holds.stored_as(),
                column.about,
                column.holds.in_words()
            );
        }
        let _ = writeln!(text, "  {}", rows.further.in_words());
        if let Some(example) = format.example() {
            let _ = write!(text, "\nexample row:\n\n  {example}\n");
        }
    }
    let _ = write!(
        text,
        "\nan output of `command`: {}",
        match (format.is_writable, &format.rows) {
            (false, _) => "no".to_owned(),
            (true, Some(_)) => format!(
                "{{ path: {0}.jsonl, kind: {0} }}, or .parquet or .csv with these columns",
                format.kind
            ),
            (true, None) => format!("{{ path: PATH, kind: {} }}", format.kind),
        }
    );
    text
}
