//! `semantic_diversity`: how different the completions of one prompt are.

use std::collections::BTreeMap;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::axes::Axes;
use super::bootstrap_params::check_bootstrap;
use super::groups::{Fit, Grouping, Row, add_axes, matching, read_rows, refuse_ungrouped, within};
use super::questions::{compare, drawn_questions};
use super::repeats::once;
use super::resample::{self, Questions, crossed_mean_of};
use super::scored::{QuestionKey, Scored};
use crate::artifacts::completions::{COMPLETIONS, ROWS_PER_PROMPT, SCORES};
use crate::artifacts::embeddings::{EMBEDDINGS, EmbeddingMatrix};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::random::Stream;
use crate::stages::defaults;
use crate::stats::{
    Bootstrap, Embeddings, distinct_n, diversity, mean, sample_std, self_bleu, vendi_score,
    words_of,
};

/// Measures how different the completions of each prompt are, and shows the mean over prompts for several policies.
///
/// With embeddings e_i of the n completions of a prompt, its semantic diversity is D = 1 - mean over pairs i < j of
/// cos(e_i, e_j) (GDPO: Kwon et al. 2024; Hu et al. 2024). Beside it stand distinct-n (Li et al. 2016), self-BLEU (Zhu
/// et al. 2018) and the Vendi score (Friedman and Dieng 2023), each computed within a prompt. The output `per_seed`
/// has one row for each run, with the standard error over its prompts; `table` has the mean over runs, and for D a
/// bootstrap interval that resamples runs and, once for all of them, prompts. Every prompt needs two completions.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SemanticDiversity {
    /// The axis whose values are the rows, or a list of axes.
    #[serde(default)]
    row: Axes,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The measures shown, in this order; `entropy` needs the column of that name, from `score_policy`.
    #[serde(default = "columns")]
    columns: Vec<Measure>,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// A paper's numbers: for each row (of several axes: `gdpo, 1.0`), measures with their values.
    #[serde(default)]
    reference_values: BTreeMap<String, BTreeMap<Measure, f64>>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// What else must be known to read the table.
    #[serde(default)]
    notes: Vec<String>,
    /// Coverage of the interval.
    #[serde(default = "defaults::level")]
    level: f64,
    /// Bootstrap replicates.
    #[serde(default = "defaults::replicates")]
    replicates: usize,
    /// Seed of the bootstrap.
    #[serde(default)]
    seed: u64,
}

/// A number that describes the completions of one prompt.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// 1 - mean cosine of pairs of embeddings.
    SemanticDiversity,
    /// Different words / words.
    #[serde(rename = "distinct_1")]
    Distinct1,
    /// Different bigrams / bigrams.
    #[serde(rename = "distinct_2")]
    Distinct2,
    /// Different trigrams / trigrams.
    #[serde(rename = "distinct_3")]
    Distinct3,
    /// Mean BLEU-4 of each completion against the others: less is more diverse.
    SelfBleu,
    /// Effective number of different completions, by the eigenvalues of their cosines.
    Vendi,
    /// Mean length in tokens.
    Tokens,
    /// Mean entropy, in nats, of the next-token distributions at temperature 1, over all tokens.
    Entropy,
}

impl Measure {
    fn heading(self) -> &'static str {
        match self {
            Self::SemanticDiversity => "Semantic diversity",
            Self::Distinct1 => "Distinct-1",
            Self::Distinct2 => "Distinct-2",
            Self::Distinct3 => "Distinct-3",
            Self::SelfBleu => "Self-BLEU",
            Self::Vendi => "Vendi score",
            Self::Tokens => "Tokens",
            Self::Entropy => "Entropy",
        }
    }

    fn needs_embeddings(self) -> bool {
        matches!(self, Self::SemanticDiversity | Self::Vendi)
    }
}

fn columns() -> Vec<Measure> {
    vec![
        Measure::SemanticDiversity,
        Measure::Distinct1,
        Measure::Distinct2,
        Measure::Distinct3,
        Measure::SelfBleu,
        Measure::Vendi,
        Measure::Tokens,
    ]
}

fn title() -> String {
    "Diversity of the completions of a prompt".to_owned()
}

/// One run: for each measure, in the order of the columns, its value at each prompt.
#[derive(Debug)]
struct Measured {
    completions: usize,
    /// What the prompts are.
    keys: Vec<QuestionKey>,
    prompts: Vec<Vec<f64>>,
}

impl Measured {
    fn count(&self) -> usize {
        self.prompts.first().map_or(0, Vec::len)
    }

    fn mean(&self, column: usize) -> Result<f64, StageError> {
        Ok(mean(&self.prompts[column])?)
    }

    /// The standard error of the mean over prompts; one prompt has none.
    fn error(&self, column: usize) -> Option<f64> {
        let values = &self.prompts[column];
        Some(sample_std(values).ok()? / (values.len() as f64).sqrt())
    }
}

impl Kind for SemanticDiversity {
    const NAME: &'static str = "semantic_diversity";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = r#"{ row: [policy, temperature], columns: [semantic_diversity, distinct_2, self_bleu, vendi, entropy],
      row_names: { gdpo: GDPO }, reference_values: { "gdpo, 1.0": { semantic_diversity: 0.690 } } }"#;

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::many(
                "completions",
                &[COMPLETIONS, SCORES],
                "several completions of each prompt, of every policy and seed",
            )
            .labelled(),
            Port::optional_many(
                "embeddings",
                &[EMBEDDINGS],
                "embeddings of the completions, one row each",
            )
            .labelled(),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE), Output::new("per_seed", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.columns.is_empty() {
            problems.push(
                Problem::new("columns", "`columns` is empty")
                    .hint("for example `columns: [semantic_diversity, distinct_2]`"),
            );
        }
        check_bootstrap(self.level, self.replicates, &mut problems);
        for (row, values) in &self.reference_values {
            for measure in values.keys().filter(|key| !self.columns.contains(key)) {
                problems.push(
                    Problem::new(
                        "reference_values",
                        format!("`{row}` has {}, which is not shown", measure.heading()),
                    )
                    .hint("`columns` says what is shown"),
                );
            }
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let hint = "diversity is a mean over pairs: raise `samples_per_prompt`";
        known.needs_always("completions", ROWS_PER_PROMPT, 2, hint);
        let grouping = self.grouping();
        refuse_ungrouped(known, "completions", grouping, false, ("row", &[]));
        let headings = self.columns.iter().map(|measure| measure.heading());
        let own = headings.flat_map(|heading| [heading.to_owned(), format!("{heading} se")]);
        let own = own.chain(["Prompts".to_owned()]);
        known.says_columns("per_seed", grouping.columns_with(own));
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let embeddings = ctx.inputs("embeddings");
        if embeddings.is_empty()
            && let Some(measure) = self.columns.iter().find(|m| m.needs_embeddings())
        {
            return Err(StageError::new(format!(
                "{} needs embeddings of the completions",
                measure.heading()
            ))
            .hint(
                "connect the port `embeddings`, or leave `semantic_diversity` and `vendi` out of `columns`",
            ));
        }
        let rows = read_rows(ctx.inputs("completions"), self.grouping(), false, Ok)?;
        let mut measured = Vec::new();
        for row in rows {
            // Runs are dropped as they are measured: their vectors are large.
            measured.push(row.try_map(&self.aggregate, |run| {
                let mut scored = Scored::new(Table::read(&run.content.path)?)?;
                if !embeddings.is_empty() {
                    let found = matching(&run.labels, embeddings, "embeddings", Fit::EveryAxis)?;
                    scored.embed(EmbeddingMatrix::read(&found.path)?, None)?;
                }
                self.measure(&scored)
            })?);
        }
        for row in self.reference_values.keys() {
            if measured.iter().all(|known| known.label != *row) {
                ctx.note(&format!("`reference_values` has `{row}`, which is no row"));
            }
        }
        self.table(&measured)?.write(&ctx.output("table")?)?;
        self.per_seed(&measured)?.write(&ctx.output("per_seed")?)?;
        Ok(())
    }
}

impl SemanticDiversity {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: self.row.names(),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }

    fn measure(&self, scored: &Scored) -> Result<Measured, StageError> {
        let alone: Vec<String> = scored
            .questions
            .iter()
            .filter(|places| places.len() < 2)
            .map(|places| scored.identities[places[0]].0.to_string())
            .collect();
        if !alone.is_empty() {
            const SHOWN: usize = 10;
            let more = match alone.len().saturating_sub(SHOWN) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let named = &alone[..alone.len().min(SHOWN)];
            return Err(StageError::new(format!(
                "one completion does not differ from itself; prompts with only one: question_id {}{more}",
                named.join(", ")
            ))
            .hint("raise `samples_per_prompt` of the stage that sampled"));
        }
        let texts = scored.table.all_texts("completion")?;
        let words: Vec<Vec<String>> = texts.par_iter().map(|text| words_of(text)).collect();
        let prompts = self
            .columns
            .iter()
            .map(|measure| prompt_values(scored, &words, *measure))
            .collect::<Result<_, _>>()?;
        Ok(Measured {
            completions: texts.len(),
            keys: scored.question_keys()?,
            prompts,
        })
    }

    fn table(&self, rows: &[Row<Measured>]) -> Result<Table, StageError> {
        let (rows, repeats) = once(rows, &self.aggregate);
        let rows = rows.as_slice();
        let several = rows.iter().any(|row| row.runs.len() > 1);
        let mut table = Table::new(&self.title);
        add_axes(&mut table, self.row.names(), rows.iter());
        let total = |of: fn(&Measured) -> usize| {
            rows.iter().map(move |row| {
                let runs = row.runs.iter();
                Some(runs.map(|run| of(run.content)).sum::<usize>() as f64)
            })
        };
        table.whole_column("Prompts", total(Measured::count));
        table.whole_column("n", total(|run| run.completions));
        if several {
            let runs = rows.iter().map(|row| Some(row.runs.len() as f64));
            table.whole_column("Runs", runs);
        }
        for (at, measure) in self.columns.iter().enumerate() {
            let means = rows
                .iter()
                .map(|row| row.runs.iter().map(|run| run.content.mean(at)).collect())
                .collect::<Result<Vec<Vec<f64>>, _>>()?;
            let overall = means.iter().map(|runs| Ok(Some(mean(runs)?)));
            let overall = overall.collect::<Result<Vec<_>, StageError>>()?;
            table.number_column(measure.heading(), 3, overall);
            if several {
                table.spread_of_last("sd", means.iter().map(|runs| sample_std(runs).ok()));
            } else {
                let errors = rows.iter().map(|row| row.runs[0].content.error(at));
                table.spread_of_last("se", errors);
            }
            if *measure == Measure::SemanticDiversity {
                let bounds = rows
                    .iter()
                    .map(|row| self.interval(row, at))
                    .collect::<Result<Vec<_>, _>>()?;
                table.interval_of_last(bounds);
            }
            let reported = |row: &Row<&Measured>| {
                let values = self.reference_values.get(&row.label)?;
                values.get(measure).copied()
            };
            if rows.iter().any(|row| reported(row).is_some()) {
                let heading = format!("{} (paper)", measure.heading());
                table.number_column(heading, 3, rows.iter().map(reported));
            }
        }
        let asked = compare(rows, &self.aggregate, |run| {
            Ok(run.keys.iter().cloned().collect())
        })?;
        table.notes = self.standard_notes(several, asked.shared);
        table.notes.extend(asked.notes);
        table.notes.extend(repeats);
        Ok(table)
    }

    fn interval(
        &self,
        row: &Row<&Measured>,
        column: usize,
    ) -> Result<(Option<f64>, Option<f64>), StageError> {
        let stream = Stream::new(self.seed, "semantic_diversity").child(&row.label);
        let mut prompts = Questions::new();
        let runs: Vec<resample::Measured> = row
            .runs
            .iter()
            .map(|run| {
                let keys = run.content.keys.iter().cloned();
                let places = keys.map(|key| prompts.place(key));
                resample::Measured::mean_of(&run.content.prompts[column], places)
            })
            .collect();
        let found = Bootstrap::new(self.replicates, self.level, stream)
            .and_then(|bootstrap| crossed_mean_of(&bootstrap, &runs, &prompts))
            .map_err(|error| within(&row.label, error))?;
        Ok((Some(found.low), Some(found.high)))
    }

    fn per_seed(&self, rows: &[Row<Measured>]) -> Result<Table, StageError> {
        let mut table = Table::new(format!("{}, run by run", self.title));
        let runs = || {
            rows.iter()
                .flat_map(|row| row.runs.iter().map(move |run| (row, run)))
        };
        add_axes(&mut table, self.row.names(), runs().map(|(row, _)| row));
        let labels = runs().map(|(_, run)| Some(run.label.clone()));
        table.label_column(&self.aggregate, labels);
        let count = runs().map(|(_, run)| Some(run.content.count() as f64));
        table.whole_column("Prompts", count);
        for (at, measure) in self.columns.iter().enumerate() {
            let means = runs().map(|(_, run)| run.content.mean(at).map(Some));
            let means = means.collect::<Result<Vec<_>, _>>()?;
            table.number_column(measure.heading(), 3, means);
            table.spread_of_last("se", runs().map(|(_, run)| run.content.error(at)));
        }
        table
            .notes
            .push("±: standard error over the prompts of the run.".to_owned());
        Ok(table)
    }

    fn standard_notes(&self, several: bool, shared: bool) -> Vec<String> {
        let has = |measure: Measure| self.columns.contains(&measure);
        let mut notes = self.notes.clone();
        notes.push(
            "Each number is computed from the completions of one prompt, then averaged over prompts."
                .to_owned(),
        );
        if has(Measure::SemanticDiversity) {
            let percent = self.level * 100.0;
            let over = if several {
                format!(
                    "runs ({}) and {}; with few runs it is too narrow",
                    self.aggregate,
                    drawn_questions("prompts", shared)
                )
            } else {
                "prompts alone: one run does not show how runs differ".to_owned()
            };
            notes.push(format!(
                "Semantic diversity: 1 - mean cosine of pairs of embeddings. [low, high]: {percent}% bootstrap \
                 interval over {over}."
            ));
        }
        notes.push(if several {
            format!(
                "±: sample standard deviation over the runs ({}).",
                self.aggregate
            )
        } else {
            "±: standard error over prompts.".to_owned()
        });
        let words = [
            Measure::Distinct1,
            Measure::Distinct2,
            Measure::Distinct3,
            Measure::SelfBleu,
        ];
        if words.into_iter().any(has) {
            notes.push(
                "Words: runs of letters and digits in lower case, every other visible character by itself."
                    .to_owned(),
            );
        }
        if has(Measure::SelfBleu) {
            notes.push(
                "Self-BLEU: BLEU-4 of each completion against the others, no match counted as 0.1 (method 1 of Chen \
                 and Cherry 2014); less is more diverse."
                    .to_owned(),
            );
        }
        notes
    }
}

/// Returns a measure of each prompt, in order of appearance.
fn prompt_values(
    scored: &Scored,
    words: &[Vec<String>],
    measure: Measure,
) -> Result<Vec<f64>, StageError> {
    let texts = |places: &[usize]| -> Vec<Vec<String>> {
        places.iter().map(|at| words[*at].clone()).collect()
    };
    let per_prompt = |of: &(dyn Fn(&[usize]) -> Result<f64, StageError> + Sync)| {
        let questions = scored.questions.par_iter();
        questions.map(|places| of(places)).collect()
    };
    let embedded = |of: fn(&Embeddings) -> Result<f64, crate::stats::StatsError>| {
        let space = scored
            .embedded
            .as_ref()
            .ok_or_else(|| StageError::new("BUG: a measure of embeddings without any"))?;
        let width = space.texts.dimension;
        per_prompt(&|places: &[usize]| {
            let rows = places.iter();
            let rows: Vec<f32> = rows
                .flat_map(|at| &space.texts.values[at * width..(at + 1) * width])
                .copied()
                .collect();
            Ok(of(&Embeddings::new(&rows, width)?)?)
        })
    };
    let distinct =
        |n: usize| per_prompt(&move |places: &[usize]| Ok(distinct_n(&texts(places), n)));
    match measure {
        Measure::SemanticDiversity => embedded(diversity),
        Measure::Vendi => embedded(vendi_score),
        Measure::Distinct1 => distinct(1),
        Measure::Distinct2 => distinct(2),
        Measure::Distinct3 => distinct(3),
        Measure::SelfBleu => per_prompt(&|places: &[usize]| Ok(self_bleu(&texts(places))?)),
        Measure::Tokens => scored.question_means("tokens"),
        Measure::Entropy => {
            let (entropies, tokens) = (scored.column("entropy")?, scored.column("tokens")?);
            per_prompt(&|places: &[usize]| {
                // A mean over tokens, not over completions: a long completion has more of them.
                let total: f64 = places.iter().map(|at| tokens[*at]).sum();
                let sum: f64 = places.iter().map(|at| entropies[*at] * tokens[*at]).sum();
                Ok(sum / total)
            })
        }
    }
}

#[cfg(test)]
mod tests;
