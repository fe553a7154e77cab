//! `flowgraph export`: copy results out of the store.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::model_card::{self, CARD, has_card};
use super::output::{Output, bytes, counted};
use super::results::{self, Found, Results};
use super::{Failure, PipelineOptions, exit_code, show};
use crate::artifacts::embeddings::EMBEDDINGS;
use crate::artifacts::language_model::{COPIED_FILES, LANGUAGE_MODEL, complete_copy};
use crate::artifacts::reward_model::REWARD_MODEL;
use crate::artifacts::table::{Table, TableError};
use crate::engine::artifact::{Digest, is_inside};
use crate::engine::plan::StagePlan;
use crate::engine::provenance::{Provenance, folder_name};
use crate::engine::spec::Pipeline;
use crate::engine::stage::Registry;
use crate::engine::store::Store;
use crate::files::write_whole;
use crate::ml::tokenizer::Tokenizer;
use crate::stages::data::chat_templates::chat_template;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Stage, or `stage.output`, or `stage[axis=value].output`; of several instances each gets a folder of its own
    #[arg(required_unless_present = "all")]
    result: Option<String>,
    /// Folder to copy into; made if it is not there
    #[arg(required_unless_present = "all")]
    folder: Option<PathBuf>,
    /// Instead: every result that the pipeline has, into a folder for each stage, instance and output
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["result", "folder"])]
    all: Option<PathBuf>,
    /// Replace files that are there already
    #[arg(long)]
    force: bool,
    /// Write rows in this format instead of copying their files; repeatable
    #[arg(long, value_enum)]
    format: Vec<Format>,
    /// With `--format`: write these columns alone, in this order; repeatable
    #[arg(long, value_name = "NAME", requires = "format")]
    column: Vec<String>,
    /// With `--format latex` or `markdown`: what stands above the table in place of its title
    #[arg(long, value_name = "TEXT", requires = "format")]
    caption: Option<String>,
    /// With `--format csv`: put an apostrophe before texts that a spreadsheet would run as formulas
    #[arg(long)]
    spreadsheet: bool,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Format {
    /// `table.md`, as people see it
    Markdown,
    /// `table.tex`, as people see it, with the rules of booktabs
    Latex,
    /// `table.csv`, every column, numbers in full
    Csv,
    /// `table.jsonl`, the same, an object a line
    Jsonl,
    /// `table.parquet`, the same
    Parquet,
}

impl Format {
    fn file_name(self) -> &'static str {
        match self {
            Self::Markdown => "table.md",
            Self::Latex => "table.tex",
            Self::Csv => "table.csv",
            Self::Jsonl => "table.jsonl",
            Self::Parquet => "table.parquet",
        }
    }
}

/// Columns of a table for which a page has room, about.
const OF_A_PAGE: usize = 9;

/// One artifact on its way out.
struct Job<'a> {
    /// What the user calls it.
    name: String,
    found: &'a Found,
    folder: PathBuf,
    /// Its rows, if they are to be written in a format.
    rows: Option<Table>,
}

pub(super) fn run(
    args: &ExportArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let results = match (&args.all, &args.result) {
        (None, Some(result)) => results::find(&pipeline, store, result, &[], |_| true)?,
        _ => all_results(&pipeline, store, output)?,
    };
    let jobs = args.jobs(&pipeline, &results);
    // Nothing is written where something cannot be.
    for job in &jobs {
        show::check_objects(store, &job.found.artifact)?;
        args.check(job)?;
        if !args.column.is_empty()
            && let Some(mut rows) = show::rows(store, &job.found.artifact)?
        {
            args.choose(&mut rows)
                .map_err(|error| Failure::usage(format!("`{}`: {error}", job.name)))?;
        }
    }
    for mut job in jobs {
        if !args.format.is_empty() {
            job.rows = show::rows(store, &job.found.artifact)?;
        }
        if let Some(rows) = &mut job.rows {
            args.choose(rows)
                .map_err(|error| Failure::usage(error.to_string()))?;
        }
        match &job.rows {
            Some(rows) => args.write_rows(&job, rows, store, output)?,
            None => copy(&job, &pipeline, &results.plans, store, output)?,
        }
    }
    Ok(exit_code::OK)
}

/// Finds every result, and says how many stages have none.
fn all_results(pipeline: &Pipeline, store: &Store, output: &Output) -> Result<Results, Failure> {
    let (results, missing) = results::find_all(pipeline, store)?;
    results::tell_missing(results.found.is_empty(), missing, output)?;
    Ok(results)
}

/// Returns the files that a model's folder must not have of another one.
fn left_of_models<'a>(job: &'a Job<'_>) -> impl Iterator<Item = PathBuf> + 'a {
    let kind = job.found.artifact.kind.as_str();
    let copied = COPIED_FILES
        .iter()
        .copied()
        .filter(move |_| [LANGUAGE_MODEL, REWARD_MODEL].contains(&kind));
    let card = has_card(kind).then_some(CARD);
    copied.chain(card).map(|name| job.folder.join(name))
}

/// Copies the files of an artifact, and makes a model's what other programs expect.
fn copy(
    job: &Job<'_>,
    pipeline: &Pipeline,
    plans: &[StagePlan],
    store: &Store,
    output: &Output,
) -> Result<(), Failure> {
    let artifact = &job.found.artifact;
    fs_err::create_dir_all(&job.folder)?;
    // What another model left in the folder would be taken for a part of this one.
    for path in left_of_models(job).filter(|path| path.exists()) {
        fs_err::remove_file(path)?;
    }
    for file in &artifact.files {
        let target = job.folder.join(&file.path);
        let mut source = fs_err::File::open(store.object_path(&file.digest))?;
        write_whole(&target, &mut source)?;
        if file.executable {
            fs_err::set_permissions(&target, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    let is_model = [LANGUAGE_MODEL, REWARD_MODEL].contains(&&*artifact.kind);
    let template = is_model.then(|| model_card::template_of(pipeline, job.found.stage));
    let template = template.flatten();
    let chats = chats_of(&job.folder, template.as_deref())?;
    if [LANGUAGE_MODEL, REWARD_MODEL, "tokenizer"].contains(&&*artifact.kind) {
        complete_copy(&job.folder, chats.as_deref()).map_err(failed)?;
    }
    if has_card(&artifact.kind) {
        let wanted = pipeline.graph.upstream([job.found.stage]);
        let provenance = Provenance::of(pipeline, store, plans, &wanted);
        let stage = &pipeline.stages[job.found.stage].name;
        let made = &job.found.output;
        if let Some(mut card) = model_card::card(&pipeline.name, stage, made, artifact, &provenance)
        {
            if artifact.kind == LANGUAGE_MODEL {
                card.push_str(&model_card::of_chats(
                    &job.folder,
                    template.as_deref(),
                    chats.as_deref(),
                )?);
            }
            write_whole(&job.folder.join(CARD), &mut card.as_bytes())?;
        }
    }
    output.line(&format!(
        "{} ({}, {}) -> {}",
        job.name,
        counted(artifact.files.len(), "file"),
        bytes(artifact.size()),
        job.folder.display()
    ));
    Ok(())
}

/// The Jinja of a loader's template for the tokenizer in a folder. Training began prompts with what the tokenizer puts
/// before every text; who applies a template of chats is used to nothing being added, so that the template says it.
fn chats_of(folder: &Path, template: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(turns) = template.and_then(chat_template) else {
        return Ok(None);
    };
    let tokenizer = Tokenizer::load(folder).map_err(failed)?;
    let (before, _) = tokenizer.surroundings();
    let before = before.iter().map(|id| {
        if Some(*id) == tokenizer.bos_id() {
            return "{{ bos_token }}".to_owned();
        }
        let token = tokenizer.id_to_token(*id).unwrap_or_default();
        format!("{{{{ {} }}}}", serde_json::Value::from(token))
    });
    Ok(Some(before.chain([turns]).collect()))
}

/// Makes of a result's name one that LaTeX takes as a label; a changed name gets a digest, so that no two are one.
fn label(name: &str) -> String {
    const DIGITS: usize = 6;
    let plain = name.replace(
        |sign: char| !sign.is_ascii_alphanumeric() && !"_.".contains(sign),
        "-",
    );
    if plain == name {
        return plain;
    }
    let digest = Digest::of(name.as_bytes()).to_string();
    format!("{}-{}", plain.trim_matches('-'), &digest[..DIGITS])
}

fn failed(error: impl std::error::Error) -> Failure {
    Failure::Other {
        message: error.to_string(),
        hint: None,
        code: exit_code::STAGE_FAILED,
    }
}

/// Refuses to write over what is there without `--force`; `what` else may be chosen.
pub(super) fn refuse_existing(target: &Path, force: bool, what: &str) -> Result<(), Failure> {
    if target.exists() && !force {
        return Err(Failure::Other {
            message: format!("{} exists", target.display()),
            hint: Some(format!("choose another {what}, or give `--force`")),
            code: exit_code::USAGE,
        });
    }
    Ok(())
}

impl ExportArgs {
    /// Says where each result goes.
    fn jobs<'a>(&self, pipeline: &Pipeline, results: &'a Results) -> Vec<Job<'a>> {
        let is_one = results.found.len() == 1;
        let root = self.all.as_ref().or(self.folder.as_ref());
        let jobs = results.found.iter().map(|found| {
            let instance = &pipeline.stages[found.stage];
            let mut folder = root.cloned().unwrap_or_default();
            if self.all.is_some() {
                folder.extend(instance.template.split('/').map(folder_name));
            }
            if !found.axes.is_empty() && (self.all.is_some() || !is_one) {
                let axes = found.axes.iter();
                let axes: Vec<String> = axes
                    .map(|(axis, value)| format!("{axis}={value}"))
                    .collect();
                folder.push(folder_name(&axes.join(",")));
            }
            if self.all.is_some() && instance.stage.outputs().len() > 1 {
                folder.push(&found.output);
            }
            let name = match &self.result {
                Some(result) if is_one => result.clone(),
                _ => format!("{}.{}", instance.name, found.output),
            };
            Job {
                name,
                found,
                folder,
                rows: None,
            }
        });
        jobs.collect()
    }

    /// Checks that a result can be written where it goes.
    fn check(&self, job: &Job<'_>) -> Result<(), Failure> {
        let artifact = &job.found.artifact;
        if !self.format.is_empty() && show::has_rows(artifact) {
            let formats = || self.format.iter();
            if artifact.kind == EMBEDDINGS && formats().any(|format| *format == Format::Parquet) {
                return Err(Failure::Other {
                    message: format!(
                        "`{}` is embeddings, which are not written as parquet",
                        job.name
                    ),
                    hint: Some(
                        "`--format jsonl` writes them; without it they are safetensors".to_owned(),
                    ),
                    code: exit_code::USAGE,
                });
            }
            let has = |wanted: Format| formats().any(|format| *format == wanted);
            if self.caption.is_some() && !has(Format::Latex) && !has(Format::Markdown) {
                return Err(Failure::usage(
                    "`--caption` is for `--format latex` and `markdown`: the others have no title",
                ));
            }
            if self.spreadsheet && !has(Format::Csv) {
                return Err(Failure::usage("`--spreadsheet` is for `--format csv`"));
            }
            if !self.column.is_empty() && has(Format::Parquet) {
                return Err(Failure::usage(
                    "`--format parquet` copies the whole table: `--column` cannot choose of it",
                ));
            }
            return formats()
                .try_for_each(|format| self.refuse_existing(&job.folder.join(format.file_name())));
        }
        if !self.format.is_empty() && self.all.is_none() {
            return Err(Failure::Other {
                message: format!("`{}` is no table but {}", job.name, artifact.kind),
                hint: Some("leave `--format` out to copy its files".to_owned()),
                code: exit_code::USAGE,
            });
        }
        for file in &artifact.files {
            if !is_inside(&file.path) {
                return Err(Failure::usage(format!(
                    "artifact path `{}` leaves its tree",
                    file.path
                )));
            }
            self.refuse_existing(&job.folder.join(&file.path))?;
        }
        left_of_models(job).try_for_each(|path| self.refuse_existing(&path))
    }

    /// Leaves of a table what was asked for.
    fn choose(&self, table: &mut Table) -> Result<(), TableError> {
        if !self.column.is_empty() {
            table.keep_columns(&self.column)?;
        }
        if let Some(caption) = &self.caption {
            table.title.clone_from(caption);
        }
        Ok(())
    }

    fn refuse_existing(&self, target: &Path) -> Result<(), Failure> {
        refuse_existing(target, self.force, "folder")
    }

    /// Writes rows in the formats asked for.
    fn write_rows(
        &self,
        job: &Job<'_>,
        table: &Table,
        store: &Store,
        output: &Output,
    ) -> Result<(), Failure> {
        let formats: BTreeSet<Format> = self.format.iter().copied().collect();
        let is_embeddings = job.found.artifact.kind == EMBEDDINGS;
        for format in formats {
            let target = job.folder.join(format.file_name());
            let text = match format {
                Format::Markdown => table.markdown(),
                Format::Latex => table.latex(&format!("tab:{}", label(&job.name))),
                Format::Csv => table.csv(self.spreadsheet),
                Format::Jsonl if is_embeddings => {
                    let rows = table.texts("embedding").unwrap_or_default().into_iter();
                    rows.flatten()
                        .map(|row| format!("{{\"embedding\":{row}}}\n"))
                        .collect()
                }
                Format::Jsonl => table.json_lines(),
                Format::Parquet => {
                    let mut files = job.found.artifact.files.iter();
                    let parquet = files.find(|file| file.path == "table.parquet");
                    if let Some(parquet) = parquet {
                        let mut source = fs_err::File::open(store.object_path(&parquet.digest))?;
                        write_whole(&target, &mut source)?;
                        output.line(&format!("{} -> {}", job.name, target.display()));
                    }
                    continue;
                }
            };
            write_whole(&target, &mut text.as_bytes())?;
            output.line(&format!("{} -> {}", job.name, target.display()));
            let shown = table.shown().len();
            if format == Format::Latex && shown > OF_A_PAGE {
                output.line(&format!("note: {shown} columns are wider than most pages; `--column NAME` chooses of them"));
            }
            let formulas = table.formulas();
            if format == Format::Csv && !self.spreadsheet && formulas > 0 {
                output.line(&format!(
                    "note: {} begin with =, +, -, @ or a tab, which a spreadsheet runs as formulas; `--spreadsheet` puts an \
                     apostrophe before them",
                    counted(formulas, "cell")
                ));
            }
        }
        Ok(())
    }
}
