//! Prompt templates: how a question becomes a prompt.

use std::fmt;

const QUESTION: &str = "{question}";
const ANSWER: &str = "{answer}";

/// A template that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateError {
    /// A placeholder is absent or repeated.
    #[error("prompt template has {count} `{placeholder}`, expected exactly one")]
    Count {
        /// The placeholder.
        placeholder: &'static str,
        /// How often it occurs.
        count: usize,
    },

    /// Something follows the answer.
    #[error(
        "prompt template has `{0}` after `{{answer}}`; the answer must be last, because the end token follows it"
    )]
    AfterAnswer(String),

    /// A placeholder that nothing fills.
    #[error(
        "prompt template has the unknown placeholder `{0}`; `{{question}}` and `{{answer}}` are known"
    )]
    UnknownPlaceholder(String),
}

/// A text with one `{question}`, ending in `{answer}`.
///
/// The prompt is everything before the answer, white space included. Substituted texts are not searched
/// for placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    before: String,
    between: String,
}

impl PromptTemplate {
    /// StackLLaMA's template; its prompt ends in a space.
    pub const STACK_LLAMA: &str = "Question: {question}\n\nAnswer: {answer}";

    /// ChatML without a system message.
    pub const CHATML: &str =
        "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}";

    /// ChatML with the system message that SmolLM2-Instruct's own template puts first.
    pub const SMOLLM2: &str = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, \
        trained by Hugging Face<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n\
        <|im_start|>assistant\n{answer}";

    /// Parses a template.
    pub fn parse(template: &str) -> Result<Self, TemplateError> {
        for placeholder in [QUESTION, ANSWER] {
            let count = template.matches(placeholder).count();
            if count != 1 {
                return Err(TemplateError::Count { placeholder, count });
            }
        }
        if let Some(unknown) = unknown_placeholder(template) {
            return Err(TemplateError::UnknownPlaceholder(unknown.to_owned()));
        }
        let count = |placeholder| TemplateError::Count {
            placeholder,
            count: 0,
        };
        let (prompt, after) = template.split_once(ANSWER).ok_or(count(ANSWER))?;
        if !after.is_empty() {
            return Err(TemplateError::AfterAnswer(after.to_owned()));
        }
        let (before, between) = prompt.split_once(QUESTION).ok_or(count(QUESTION))?;
        Ok(Self {
            before: before.to_owned(),
            between: between.to_owned(),
        })
    }

    /// Returns the prompt for a question.
    pub fn prompt(&self, question: &str) -> String {
        format!("{}{question}{}", self.before, self.between)
    }

    /// Returns the prompt and the answer.
    pub fn document(&self, question: &str, answer: &str) -> String {
        format!("{}{question}{}{answer}", self.before, self.between)
    }

    /// Returns the answer within a document of this question, if it is one.
    pub fn answer<'a>(&self, question: &str, document: &'a str) -> Option<&'a str> {
        document
            .strip_prefix(&*self.before)?
            .strip_prefix(question)?
            .strip_prefix(&*self.between)
    }
}

impl fmt::Display for PromptTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}{QUESTION}{}{ANSWER}",
            self.before, self.between
        )
    }
}

/// Finds a `{name}` that is not known; other braces are text.
fn unknown_placeholder(template: &str) -> Option<&str> {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    template.match_indices('{').find_map(|(start, _)| {
        let end = start + template[start..].find('}')?;
        let placeholder = &template[start..=end];
        let unknown =
            is_name(&template[start + 1..end]) && placeholder != QUESTION && placeholder != ANSWER;
        unknown.then_some(placeholder)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_what_precedes_the_answer() {
        let template = PromptTemplate::parse(PromptTemplate::STACK_LLAMA).unwrap();
        assert_eq!(template.prompt("why?"), "Question: why?\n\nAnswer: ");
        assert_eq!(
            template.document("why?", "so."),
            "Question: why?\n\nAnswer: so."
        );
        let document = template.document("why?", "so.");
        assert_eq!(template.answer("why?", &document), Some("so."));
        assert_eq!(template.answer("how?", &document), None);
        assert_eq!(template.to_string(), PromptTemplate::STACK_LLAMA);
    }

    #[test]
    fn substituted_texts_are_not_templates() {
        let template = PromptTemplate::parse(PromptTemplate::CHATML).unwrap();
        assert_eq!(
            template.prompt("{answer} {x}"),
            "<|im_start|>user\n{answer} {x}<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn the_system_message_is_one_line() {
        let template = PromptTemplate::parse(PromptTemplate::SMOLLM2).unwrap();
        assert_eq!(
            template.prompt("Hi"),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
             Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn bad_templates_say_what_is_wrong() {
        let error = |template| PromptTemplate::parse(template).unwrap_err().to_string();
        assert_eq!(
            error("{answer}"),
            "prompt template has 0 `{question}`, expected exactly one"
        );
        assert_eq!(
            error("{question}{question}{answer}"),
            "prompt template has 2 `{question}`, expected exactly one"
        );
        assert_eq!(
            error("{question} {answer}!"),
            "prompt template has `!` after `{answer}`; the answer must be last, because the end \
             token follows it"
        );
        assert_eq!(
            error("{prompt} {question} {answer}"),
            "prompt template has the unknown placeholder `{prompt}`; `{question}` and `{answer}` \
             are known"
        );
        assert!(PromptTemplate::parse("{\"q\": {question}, \"a\": {answer}").is_ok());
    }
}
