//! The scored completions of one run, with their embeddings and what they are compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::groups::{Fit, Grouping, Row, matching, read_rows, within};
use super::measure::{Distances, Measurement, Metric, Rightness, Top};
use super::resample::Questions;
use crate::artifacts::completions::{ROWS, SCORES};
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::embeddings::{EMBEDDINGS, EmbeddingMatrix};
use crate::artifacts::table::Table;
use crate::engine::context::{Input, Labels, RunContext};
use crate::engine::facts::Known;
use crate::engine::stage::{Port, StageError};
use crate::excerpt::{NAME, excerpt};
use crate::stats::{Embeddings, TfIdf, nearest_distances, pairwise_distances};

/// TF-IDF vectors are dense here: rarer words than this many are left out.
const TFIDF_WORDS: usize = 4096;

/// The port that every comparison of policies has.
pub(super) fn scores_port() -> Port {
    Port::many(
        "scores",
        &[SCORES],
        "scored completions of every policy and seed",
    )
    .labelled()
}

/// Refuses a top K of more completions than a run is known to have.
pub(super) fn needs_top_k(known: &mut Known<'_>, top_k: usize) {
    let hint = "lower it, or raise the number of completions";
    known.needs("scores", ROWS, top_k, ("top_k", top_k), hint);
}

/// Refuses a column that a run cannot have; of the rows named, or of all if none is.
pub(super) fn needs_column(
    known: &mut Known<'_>,
    (axis, rows): (&str, &[String]),
    param: &str,
    column: &str,
) {
    let of = |labels: &Labels| {
        rows.is_empty() || labels.get(axis).is_some_and(|label| rows.contains(label))
    };
    let asks = format!("`{param}` asks for");
    known.needs_column("scores", column, of, (param, &asks));
}

/// The ports that metrics of diversity and novelty need.
pub(super) fn embedding_ports() -> [Port; 3] {
    [
        Port::optional_many(
            "embeddings",
            &[EMBEDDINGS],
            "embeddings of the completions, one row each",
        )
        .labelled(),
        Port::optional_many(
            "reference",
            &[EMBEDDINGS],
            "embeddings of the completions trained on, for novelty",
        )
        .labelled(),
        Port::optional_many(
            "reference_texts",
            &[DATASET],
            "the completions trained on, for TF-IDF novelty",
        )
        .labelled(),
    ]
}

/// Vectors of the completions in one space, and of those they may be copies of.
#[derive(Debug, Clone)]
pub(super) struct Space {
    pub(super) texts: EmbeddingMatrix,
    pub(super) reference: Option<Arc<EmbeddingMatrix>>,
}

/// What makes a question the same in two runs: its number and its text.
pub(super) type QuestionKey = (u64, String);

/// The scored completions of one run.
#[derive(Debug, Clone)]
pub(super) struct Scored {
    /// What the stage wrote: columns of [`crate::artifacts::completions`] and scores.
    pub(super) table: Table,
    /// Completions by question: their positions, questions in order of appearance.
    pub(super) questions: Vec<Vec<usize>>,
    /// Question and sample of each completion.
    pub(super) identities: Vec<(u64, u64)>,
    /// The embeddings of the `embeddings` port.
    pub(super) embedded: Option<Space>,
    /// TF-IDF vectors.
    pub(super) tfidf: Option<Space>,
}

impl Scored {
    /// Takes a table of scored completions.
    pub(super) fn new(table: Table) -> Result<Self, StageError> {
        let ids = table.all_numbers("question_id")?;
        let samples = table.all_numbers("sample")?;
        let mut order: Vec<u64> = Vec::new();
        let mut places: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut identities = Vec::with_capacity(ids.len());
        for (at, (id, sample)) in ids.iter().zip(&samples).enumerate() {
            let id = *id as u64;
            let positions = places.entry(id).or_default();
            if positions.is_empty() {
                order.push(id);
            }
            positions.push(at);
            identities.push((id, *sample as u64));
        }
        let questions = order.iter().filter_map(|id| places.remove(id)).collect();
        Ok(Self {
            table,
            questions,
            identities,
            embedded: None,
            tfidf: None,
        })
    }

    /// Adds the embeddings of the completions.
    pub(super) fn embed(
        &mut self,
        texts: EmbeddingMatrix,
        reference: Option<Arc<EmbeddingMatrix>>,
    ) -> Result<(), StageError> {
        let rows = texts.values.len().checked_div(texts.dimension).unwrap_or(0);
        if rows != self.table.height() {
            return Err(StageError::new(format!(
                "{rows} embeddings for {} completions",
                self.table.height()
            ))
            .hint("`embeddings` must come from the same completions as `scores`"));
        }
        self.embedded = Some(Space { texts, reference });
        Ok(())
    }

    /// Returns a numeric column, finite in every row.
    pub(super) fn column(&self, name: &str) -> Result<Vec<f64>, StageError> {
        let values = self.table.all_numbers(name)?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(row) => Err(
                StageError::new(format!("`{name}` of row {row} is {}", values[row]))
                    .hint("scores must be finite; what made this one is the stage before"),
            ),
            None => Ok(values),
        }
    }

    /// Returns the mean of a column for each question, in order of appearance.
    pub(super) fn question_means(&self, name: &str) -> Result<Vec<f64>, StageError> {
        let values = self.column(name)?;
        Ok(self
            .questions
            .iter()
            .map(|places| places.iter().map(|at| values[*at]).sum::<f64>() / places.len() as f64)
            .collect())
    }

    /// Returns number and text of each question, in order of appearance: two runs answer the same question if both are
    /// equal.
    pub(super) fn question_keys(&self) -> Result<Vec<QuestionKey>, StageError> {
        let texts = self.table.all_texts("question")?;
        let firsts = self.questions.iter().map(|completions| completions[0]);
        Ok(firsts
            .map(|at| (self.identities[at].0, texts[at].clone()))
            .collect())
    }

    /// Returns how often each question is answered.
    pub(super) fn asked(&self) -> Result<BTreeMap<QuestionKey, usize>, StageError> {
        let counts = self.questions.iter().map(Vec::len);
        Ok(self.question_keys()?.into_iter().zip(counts).collect())
    }

    /// Returns number and text of each question, by number alone where a table has no texts.
    pub(super) fn known_questions(&self) -> Result<BTreeSet<QuestionKey>, StageError> {
        if self.table.has("question") {
            return Ok(self.question_keys()?.into_iter().collect());
        }
        let ids = self.identities.iter();
        Ok(ids.map(|(id, _)| (*id, String::new())).collect())
    }

    /// Returns the completions of each question, by its place among the questions of all runs.
    pub(super) fn placed(
        &self,
        questions: &mut Questions<QuestionKey>,
    ) -> Result<Vec<(usize, Vec<usize>)>, StageError> {
        let places = self.question_keys()?.into_iter();
        let places = places.map(|key| questions.place(key));
        Ok(places.zip(self.questions.iter().cloned()).collect())
    }

    /// Whether another run answers the same prompts, sample by sample, in the same order.
    pub(super) fn answers_the_same(&self, other: &Self) -> Result<bool, StageError> {
        Ok(self.asked_otherwise(other)?.is_none())
    }

    /// Says in what the prompts of another run differ, which must be the same sample by sample and in the same order.
    pub(super) fn asked_otherwise(&self, other: &Self) -> Result<Option<String>, StageError> {
        if self.identities != other.identities {
            let told = "they have other `question_id`s and `sample`s, or in another order";
            return Ok(Some(told.to_owned()));
        }
        for column in ["question", "prompt"] {
            if !(self.table.has(column) && other.table.has(column)) {
                continue;
            }
            let texts = (self.table.texts(column)?, other.table.texts(column)?);
            if let Some(at) = texts
                .0
                .iter()
                .zip(&texts.1)
                .position(|(one, two)| one != two)
            {
                let text = |texts: &[Option<String>]| {
                    excerpt(texts[at].as_deref().unwrap_or_default(), NAME).into_owned()
                };
                return Ok(Some(format!(
                    "`{column}` of question_id {} is `{}` and `{}`",
                    self.identities[at].0,
                    text(&texts.0),
                    text(&texts.1)
                )));
            }
        }
        Ok(None)
    }

    /// Prepares a metric of `column`; top-K metrics rank by it.
    pub(super) fn measure(
        &self,
        metric: Metric,
        column: &str,
        k: usize,
        rightness: Rightness<'_>,
    ) -> Result<Measurement, StageError> {
        let top = |values: Vec<f64>| -> Result<Top, StageError> {
            Ok(Top::new(&self.column(column)?, k, values)?)
        };
        Ok(match metric {
            Metric::Mean => {
                Measurement::Mean(self.column(column)?.into_iter().enumerate().collect())
            }
            Metric::Std => Measurement::Std(self.column(column)?),
            Metric::TopKMean => Measurement::TopMean(top(self.column(column)?)?),
            Metric::TopKStd => Measurement::TopStd(top(self.column(column)?)?),
            Metric::Entropy => self.entropy_of(column)?,
            Metric::Truncated => {
                Measurement::Mean(self.column("truncated")?.into_iter().enumerate().collect())
            }
            Metric::Diversity | Metric::TfidfDiversity => {
                Measurement::TopPairs(top(Vec::new())?, self.distances(metric)?)
            }
            Metric::DiversityAll | Metric::TfidfDiversityAll => {
                Measurement::Pairs(self.distances(metric)?)
            }
            Metric::DiversityPerPrompt | Metric::TfidfDiversityPerPrompt => {
                let distances = self.distances(metric)?;
                let several = self.questions.iter().filter(|places| places.len() > 1);
                let values = several.map(|places| {
                    let taken: Vec<(usize, f64)> = places.iter().map(|at| (*at, 1.0)).collect();
                    (places[0], distances.mean(&taken))
                });
                Measurement::Mean(values.collect())
            }
            Metric::Novelty | Metric::TfidfNovelty => {
                Measurement::TopMean(top(self.nearest(metric)?)?)
            }
            Metric::NoveltyAll | Metric::TfidfNoveltyAll => {
                Measurement::Mean(self.nearest(metric)?.into_iter().enumerate().collect())
            }
            Metric::PassAt(_)
            | Metric::MaxAt(_)
            | Metric::MajorityAt(_)
            | Metric::DistinctRight => {
                let values = self.attempts(metric, column, rightness)?;
                let firsts = self.questions.iter().map(|places| places[0]);
                Measurement::Mean(firsts.zip(values).collect())
            }
        })
    }

    /// Prepares the mean of any numeric column.
    pub(super) fn mean_of(&self, column: &str) -> Result<Measurement, StageError> {
        Ok(Measurement::Mean(
            self.column(column)?.into_iter().enumerate().collect(),
        ))
    }

    /// Prepares the entropy of a text column; an empty cell is a category of its own.
    pub(super) fn entropy_of(&self, column: &str) -> Result<Measurement, StageError> {
        let texts = self.table.texts(column)?;
        let known: BTreeSet<&Option<String>> = texts.iter().collect();
        let number: BTreeMap<&Option<String>, usize> = known.into_iter().zip(0..).collect();
        Ok(Measurement::Entropy {
            categories: texts.iter().map(|text| number[text]).collect(),
            count: number.len(),
        })
    }

    /// Whether a metric can be computed from what there is.
    pub(super) fn has(&self, metric: Metric) -> bool {
        let space = if metric.is_tfidf() {
            &self.tfidf
        } else {
            &self.embedded
        };
        match metric {
            Metric::Mean
            | Metric::Std
            | Metric::TopKMean
            | Metric::TopKStd
            | Metric::Truncated
            | Metric::Entropy
            | Metric::PassAt(_)
            | Metric::MaxAt(_)
            | Metric::MajorityAt(_)
            | Metric::DistinctRight => true,
            Metric::Diversity
            | Metric::DiversityAll
            | Metric::TfidfDiversity
            | Metric::TfidfDiversityAll => space.is_some(),
            Metric::DiversityPerPrompt | Metric::TfidfDiversityPerPrompt => {
                space.is_some() && self.questions.iter().any(|places| places.len() > 1)
            }
            Metric::Novelty
            | Metric::NoveltyAll
            | Metric::TfidfNovelty
            | Metric::TfidfNoveltyAll => space
                .as_ref()
                .is_some_and(|space| space.reference.is_some()),
        }
    }

    fn space(&self, metric: Metric) -> Result<&Space, StageError> {
        let (space, hint) = if metric.is_tfidf() {
            (&self.tfidf, "set `tfidf: true`")
        } else {
            (&self.embedded, "connect the port `embeddings`")
        };
        space.as_ref().ok_or_else(|| {
            StageError::new(format!(
                "`{}` needs vectors of the completions",
                metric.key()
            ))
            .hint(hint)
        })
    }

    fn distances(&self, metric: Metric) -> Result<Distances, StageError> {
        let texts = &self.space(metric)?.texts;
        Ok(Distances(pairwise_distances(&Embeddings::new(
            &texts.values,
            texts.dimension,
        )?)))
    }

    fn nearest(&self, metric: Metric) -> Result<Vec<f64>, StageError> {
        let space = self.space(metric)?;
        let reference = space
            .reference
            .as_ref()
            .filter(|reference| !reference.values.is_empty())
            .ok_or_else(|| {
                let port = if metric.is_tfidf() {
                    "reference_texts"
                } else {
                    "reference"
                };
                StageError::new(format!(
                    "`{}` needs the completions trained on",
                    metric.key()
                ))
                .hint(format!("connect the port `{port}`"))
            })?;
        let texts = Embeddings::new(&space.texts.values, space.texts.dimension)?;
        let reference = Embeddings::new(&reference.values, reference.dimension)?;
        Ok(nearest_distances(&texts, &reference)?)
    }
}

/// Reads the scored completions of the `scores` port, without embeddings.
pub(super) fn load_scores(
    ctx: &RunContext,
    grouping: Grouping<'_>,
) -> Result<Vec<Row<Scored>>, StageError> {
    read_rows(ctx.inputs("scores"), grouping, false, |input| {
        Scored::new(Table::read(&input.path)?)
    })
}

/// Reads the scored completions with their embeddings, and computes TF-IDF vectors if asked to.
pub(super) fn load(
    ctx: &RunContext,
    grouping: Grouping<'_>,
    tfidf: bool,
) -> Result<Vec<Row<Scored>>, StageError> {
    let mut rows = load_scores(ctx, grouping)?;
    let (embeddings, references) = (ctx.inputs("embeddings"), ctx.inputs("reference"));
    let mut read: BTreeMap<usize, Arc<EmbeddingMatrix>> = BTreeMap::new();
    for row in rows.iter_mut().filter(|_| !embeddings.is_empty()) {
        for run in &mut row.runs {
            let texts = matching(&run.labels, embeddings, "embeddings", Fit::EveryAxis)?;
            let texts = EmbeddingMatrix::read(&texts.path)?;
            let reference = match reference_of(&run.labels, references, "reference")? {
                Some((at, input)) => Some(match read.get(&at) {
                    Some(matrix) => Arc::clone(matrix),
                    None => Arc::clone(
                        read.entry(at)
                            .or_insert(Arc::new(EmbeddingMatrix::read(&input.path)?)),
                    ),
                }),
                None => None,
            };
            let place = format!("{} {}", row.label, run.label);
            run.content
                .embed(texts, reference)
                .map_err(|error| within(place.trim(), error))?;
        }
    }
    if tfidf {
        let datasets = ctx.inputs("reference_texts");
        let mut texts = Vec::new();
        for input in datasets {
            let dataset = Dataset::read(&input.path)?;
            // Copies do not change which one is nearest.
            let chosen: BTreeSet<String> = dataset
                .examples
                .into_iter()
                .filter_map(|example| example.chosen)
                .collect();
            texts.push(chosen.into_iter().collect());
        }
        add_tfidf(&mut rows, &texts, |labels| {
            Ok(reference_of(labels, datasets, "reference_texts")?.map(|(at, _)| at))
        })?;
    }
    Ok(rows)
}

fn reference_of<'a>(
    labels: &Labels,
    candidates: &'a [Input],
    port: &str,
) -> Result<Option<(usize, &'a Input)>, StageError> {
    if candidates.is_empty() {
        return Ok(None);
    }
    let found = matching(labels, candidates, port, Fit::CommonAxes)?;
    let at = candidates
        .iter()
        .position(|candidate| std::ptr::eq(candidate, found));
    Ok(at.map(|at| (at, found)))
}

/// Adds TF-IDF vectors, with weights fitted on all completions and all reference texts together, so that
/// every row is measured in the same space and no word is passed over.
pub(super) fn add_tfidf(
    rows: &mut [Row<Scored>],
    references: &[Vec<String>],
    reference_of: impl Fn(&Labels) -> Result<Option<usize>, StageError>,
) -> Result<(), StageError> {
    let mut completions: Vec<Vec<String>> = Vec::new();
    for run in rows.iter().flat_map(|row| &row.runs) {
        completions.push(run.content.table.all_texts("completion")?);
    }
    let documents = references
        .iter()
        .chain(&completions)
        .flatten()
        .map(String::as_str);
    let weights = TfIdf::fit(documents, TFIDF_WORDS)?;
    let vectors = |texts: &[String]| EmbeddingMatrix {
        values: weights.embed(texts.iter().map(String::as_str)),
        dimension: weights.dimension(),
    };
    let references: Vec<Arc<EmbeddingMatrix>> = references
        .iter()
        .map(|texts| Arc::new(vectors(texts)))
        .collect();
    for (run, texts) in rows
        .iter_mut()
        .flat_map(|row| &mut row.runs)
        .zip(&completions)
    {
        let reference = reference_of(&run.labels)?.map(|at| Arc::clone(&references[at]));
        run.content.tfidf = Some(Space {
            texts: vectors(texts),
            reference,
        });
    }
    Ok(())
}
