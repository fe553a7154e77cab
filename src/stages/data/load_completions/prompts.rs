//! The data set whose prompts were completed.

use std::collections::BTreeMap;

use crate::artifacts::dataset::Dataset;
use crate::engine::context::Input;
use crate::engine::stage::StageError;
use crate::excerpt::excerpt;

/// What a message shows of a prompt.
const SHOWN: usize = 60;

/// The prompts of a data set.
pub(super) struct Prompts {
    all: Vec<Asked>,
    by_prompt: BTreeMap<String, usize>,
    by_question: BTreeMap<String, usize>,
    /// Prompts of a question.
    by_id: BTreeMap<u64, Vec<usize>>,
}

/// What was asked.
pub(super) struct Asked {
    pub(super) question_id: u64,
    pub(super) question: String,
    pub(super) prompt: String,
}

impl Prompts {
    /// Reads the data set, if there is one.
    pub(super) fn of(input: Option<&Input>) -> Result<Option<Self>, StageError> {
        let Some(input) = input else {
            return Ok(None);
        };
        let mut prompts = Self {
            all: Vec::new(),
            by_prompt: BTreeMap::new(),
            by_question: BTreeMap::new(),
            by_id: BTreeMap::new(),
        };
        let dataset = Dataset::read(&input.path)?;
        for (at, (_, example)) in dataset.distinct_prompts().into_iter().enumerate() {
            prompts.by_prompt.insert(example.prompt.clone(), at);
            prompts
                .by_question
                .entry(example.question.clone())
                .or_insert(at);
            prompts
                .by_id
                .entry(example.question_id)
                .or_default()
                .push(at);
            prompts.all.push(Asked {
                question_id: example.question_id,
                question: example.question.clone(),
                prompt: example.prompt.clone(),
            });
        }
        Ok(Some(prompts))
    }

    /// Finds what a row is about, by its number or else by its prompt or question. A prompt that `is_cut` has lost its
    /// beginning.
    pub(super) fn find(
        &self,
        question_id: Option<u64>,
        prompt: Option<&str>,
        is_cut: bool,
        question: Option<&str>,
    ) -> Result<&Asked, String> {
        if let Some(id) = question_id {
            let places = self
                .by_id
                .get(&id)
                .ok_or_else(|| format!("`prompts` has no question {id}"))?;
            let mut asked = places.iter().map(|at| &self.all[*at]);
            let Some(prompt) = prompt else {
                let is_it = |asked: &&Asked| {
                    question.is_none_or(|text| asked.question == text || asked.prompt == text)
                };
                return asked.find(is_it).ok_or_else(|| {
                    let shown = excerpt(question.unwrap_or_default(), SHOWN);
                    format!("the question {shown:?} is not that of number {id} in `prompts`")
                });
            };
            let mut same = asked.filter(|asked| {
                asked.prompt == prompt
                    || asked.question == prompt
                    || (is_cut && asked.prompt.ends_with(prompt))
            });
            return same.next().ok_or_else(|| {
                let shown = excerpt(prompt, SHOWN);
                format!("the prompt {shown:?} is not that of question {id} in `prompts`")
            });
        }
        let texts = [prompt, question].into_iter().flatten();
        let mut places = texts.filter_map(|text| {
            let known = [&self.by_prompt, &self.by_question];
            known.iter().find_map(|places| places.get(text).copied())
        });
        match places.next() {
            Some(at) => Ok(&self.all[at]),
            None => {
                let asked = prompt
                    .or(question)
                    .ok_or("nothing says which prompt it completes")?;
                let shown = excerpt(asked, SHOWN);
                Err(format!("{shown:?} is no prompt or question of `prompts`"))
            }
        }
    }
}
