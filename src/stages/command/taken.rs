//! What a command wrote as an artifact of some kind: checked, and written as our own stages write it.

use std::path::{Path, PathBuf};

use super::outputs::TypedOutput;
use super::same_rows;
use crate::artifacts::curve::{CURVE, SUMMARY, Status, TrainingSummary};
use crate::artifacts::figure::FIGURE;
use crate::artifacts::format::{self, ArtifactFormat, Rows, RowsFormat, read_rows};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::reward_model::{REWARD_MODEL, RewardModel};
use crate::artifacts::table::TABLE;
use crate::artifacts::text_encoder::{
    TEXT_CLASSIFIER, TEXT_ENCODER, TextClassifier, TextEncoder, save,
};
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::files::{read_text, regular};
use crate::ml::formats::hugging_face::{EncoderOptions, load_encoder, load_encoder_classifier};
use crate::ml::placement::Placement;
use crate::stages::data::load_reward::described;

/// No figure or summary is longer.
const MOST_TEXT: u64 = 64 << 20;
/// What rows in a folder may be called.
const ROWS_FILES: [&str; 3] = ["table.parquet", "table.jsonl", "table.csv"];

/// Takes an output of some kind.
pub(super) fn take(
    typed: &TypedOutput,
    name: &str,
    work: &Path,
    ctx: &mut RunContext,
) -> Result<(), StageError> {
    let format = format::find(&typed.kind)
        .ok_or_else(|| StageError::new(format!("unknown artifact kind `{}`", typed.kind)))?;
    let written = work.join(&typed.path);
    let folder = ctx.output(name)?;
    let taken = match &format.rows {
        Some(rows) => take_rows(typed, format, rows, &written, &folder, ctx),
        None if typed.kind == FIGURE => take_figures(&written, &typed.path, &folder),
        None => take_model(typed, &written, &folder),
    };
    taken.map_err(|error| told(error, typed, name, work))
}

/// Says of which output an error is, by the path that the pipeline names, and where what it must hold is written.
fn told(error: StageError, typed: &TypedOutput, name: &str, work: &Path) -> StageError {
    let StageError::Failed { message, hint } = error else {
        return error;
    };
    // Whatever else the working directory is called, it is not there any more.
    let here = format!("{}/", work.display());
    let message = message.replace(&here, "");
    let formats = format!(
        "`flowgraph kinds --artifacts {}` says what it must hold",
        typed.kind
    );
    StageError::new(format!("output `{name}`: {message}")).hint(match hint {
        Some(hint) => format!("{hint}; {formats}"),
        None => formats,
    })
}

fn take_rows(
    typed: &TypedOutput,
    format: &ArtifactFormat,
    columns: &RowsFormat,
    written: &Path,
    folder: &Path,
    ctx: &mut RunContext,
) -> Result<(), StageError> {
    let (file, shown) = rows_file(written, &typed.path)?;
    let rows = read_rows(format, columns, &file, &shown)?;
    if typed.has_rows_of_input() {
        same_rows::check(&typed.kind, &rows, &shown, ctx)?;
    }
    let mut table = match rows {
        Rows::Vectors(matrix) => return Ok(matrix.write(folder)?),
        Rows::Table(table) => table,
    };
    let (name, _) = shown.rsplit_once('.').unwrap_or((&shown, ""));
    table.title = name.to_owned();
    match &*typed.kind {
        TABLE => table.write(folder)?,
        CURVE => {
            let steps = table.all_numbers("step")?;
            if let Some(at) = steps.windows(2).position(|pair| pair[0] >= pair[1]) {
                return Err(StageError::new(format!(
                    "{shown}, row {}: `step` is {}, expected more than the {} of the row before",
                    at + 2,
                    steps[at + 1],
                    steps[at]
                )));
            }
            let last = steps.last().copied().unwrap_or_default();
            let summary = summary(written, &typed.path, last as u64, ctx)?;
            table.write_data(folder)?;
            let text = serde_json::to_string_pretty(&summary).map_err(std::io::Error::from)?;
            fs_err::write(folder.join(SUMMARY), text)?;
        }
        _ => table.write_data(folder)?,
    }
    Ok(())
}

/// Finds the file of rows: the output itself, or the one in its folder that is called like an artifact's own.
fn rows_file(written: &Path, shown: &str) -> Result<(PathBuf, String), StageError> {
    if !written.is_dir() {
        return Ok((written.to_owned(), shown.to_owned()));
    }
    let there: Vec<&str> = ROWS_FILES
        .into_iter()
        .filter(|name| written.join(name).exists())
        .collect();
    match there.as_slice() {
        [name] => Ok((written.join(name), format!("{shown}/{name}"))),
        there => Err(StageError::new(format!(
            "{shown}: the folder holds {} of {}, expected one",
            match there.len() {
                0 => "none".to_owned(),
                count => count.to_string(),
            },
            ROWS_FILES.join(", ")
        ))),
    }
}

/// Reads how a training ended, or says that nobody said it.
fn summary(
    written: &Path,
    shown: &str,
    last: u64,
    ctx: &mut RunContext,
) -> Result<TrainingSummary, StageError> {
    let path = written.join(SUMMARY);
    if written.is_dir() && path.exists() {
        let text = read_text(&path, MOST_TEXT)?;
        let summary = serde_json::from_str(&text)
            .map_err(|error| StageError::new(format!("{shown}/{SUMMARY}: {error}")))?;
        return Ok(summary);
    }
    ctx.note(&format!(
        "{shown}: no {SUMMARY} says how the training ended and what it cost: taken for completed, at no cost"
    ));
    Ok(TrainingSummary {
        status: Status::Completed,
        reason: None,
        steps: last,
        trained_tokens: 0,
        generated_tokens: 0,
        flops: 0.0,
        trained_parameters: 0,
    })
}

/// Takes one figure, or a folder of them.
fn take_figures(written: &Path, shown: &str, folder: &Path) -> Result<(), StageError> {
    let mut figures = vec![(written.to_owned(), shown.to_owned())];
    if written.is_dir() {
        figures.clear();
        for entry in fs_err::read_dir(written)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            figures.push((path.clone(), format!("{shown}/{name}")));
        }
        figures.sort();
    }
    if figures.is_empty() {
        return Err(StageError::new(format!(
            "{shown}: an empty folder, expected at least one .svg file"
        )));
    }
    for (path, shown) in figures {
        if path.extension().is_none_or(|extension| extension != "svg") {
            return Err(StageError::new(format!("{shown}: expected an .svg file")));
        }
        let text = read_text(&path, MOST_TEXT)?;
        let end = text.trim_end();
        if !text.contains("<svg") || !(end.ends_with("</svg>") || end.ends_with("/>")) {
            return Err(StageError::new(format!(
                "{shown}: found no whole `<svg>` element, expected a figure"
            )));
        }
        fs_err::write(folder.join(path.file_name().unwrap_or_default()), text)?;
    }
    Ok(())
}

/// Takes a model: reads it as our stages would, and writes it as they do.
fn take_model(typed: &TypedOutput, written: &Path, folder: &Path) -> Result<(), StageError> {
    let shown = &typed.path;
    if !written.is_dir() {
        return Err(StageError::new(format!(
            "{shown}: a file, expected a folder with config.json, model.safetensors and tokenizer.json"
        )));
    }
    only_files(written)?;
    match &*typed.kind {
        LANGUAGE_MODEL => LanguageModel::load(written)?.save_copy(folder, None)?,
        REWARD_MODEL => {
            let (model, score) = LanguageModel::load_classifier(written, &[], &Placement::HOST)?;
            let classes = score.dim(0)?;
            if classes != 1 {
                return Err(StageError::new(format!(
                    "{shown}: its head has {classes} classes, expected 1: a reward is one score"
                )));
            }
            model.save_copy(folder, Some(&score))?;
            described(written, &[], &model.eos)?.save(folder)?;
            RewardModel::load(folder)?;
        }
        TEXT_ENCODER => {
            let encoder = load_encoder(written, &EncoderOptions::default())?;
            save(folder, &encoder, None)?;
            TextEncoder::load(folder)?;
        }
        TEXT_CLASSIFIER => {
            save(folder, &load_encoder_classifier(written, &[])?, None)?;
            TextClassifier::load(folder)?;
        }
        other => return Err(StageError::new(format!("no command can write a `{other}`"))),
    }
    Ok(())
}

/// Checks that a folder holds files, and folders of them: to open anything else could wait forever.
fn only_files(folder: &Path) -> Result<(), StageError> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            only_files(&entry.path())?;
        } else {
            regular(&entry.path())?;
        }
    }
    Ok(())
}
