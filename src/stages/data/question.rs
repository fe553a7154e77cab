//! What is asked, and how it becomes a prompt.

use crate::ml::tokenizer::PromptTemplate;
use crate::ml::tokenizer::chat::Message;
use crate::sources::dialogue::{Speaker, turns};

/// How a question becomes a prompt.
pub(super) enum Template {
    /// As it stands.
    Plain,
    /// ChatML with what the system says if a question does not say it.
    Chat(Option<&'static str>),
    Text(PromptTemplate),
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const SMOLLM2_SYSTEM: &str =
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
        let text = match text {
            "plain" => return Ok(Self::Plain),
            "chatml" => return Ok(Self::Chat(None)),
            "smollm2" => return Ok(Self::Chat(Some(SMOLLM2_SYSTEM))),
            "stack_llama" => PromptTemplate::STACK_LLAMA.to_owned(),
            text if text.contains("{answer}") => text.to_owned(),
            text => format!("{text}{{answer}}"),
        };
        let template = PromptTemplate::parse(&text).map_err(|error| error.to_string())?;
        Ok(Self::Text(template))
    }

    /// The tokens that it writes itself, which texts must not spell.
    pub(super) fn special_tokens(&self) -> &'static [&'static str] {
        match self {
            Self::Chat(_) => &["<|im_start|>", "<|im_end|>"],
            Self::Plain | Self::Text(_) => &[],
        }
    }

    pub(super) fn prompt(&self, question: &Question) -> String {
        match self {
            Self::Plain => question.plain(),
            Self::Text(template) => template.prompt(&question.shown()),
            Self::Chat(system) => {
                let (before, turns) = question.turns();
                let stated = Some(before).filter(|before| !before.is_empty());
                let mut prompt = stated.or(*system).map_or_else(String::new, |system| {
                    format!("<|im_start|>system\n{system}<|im_end|>\n")
                });
                for (speaker, text) in turns {
                    let role = role_of(speaker);
                    prompt.push_str(&format!("<|im_start|>{role}\n{text}<|im_end|>\n"));
                }
                prompt + "<|im_start|>assistant\n"
            }
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The white space before it in the file; one that the file has no place for is made where it is needed.
    space: Option<String>,
    pub(super) text: String,
    /// The message that it is in the file.
    pub(super) message: Option<Message>,
}

impl Answer {
    /// An answer whose file does not join it to its question.
    pub(super) fn as_it_is(text: String) -> Self {
        Self {
            space: Some(String::new()),
            text,
            message: None,
        }
    }

    /// An answer that follows a tag such as `Assistant:`.
    pub(super) fn behind_a_tag(text: &str) -> Self {
        let space = &text[..text.len() - text.trim_start().len()];
        Self {
            space: Some(space.to_owned()),
            text: text.trim().to_owned(),
            message: None,
        }
    }

    /// An answer that must stand apart from what is before it.
    pub(super) fn of_text(text: String) -> Self {
        Self {
            space: None,
            text,
            message: None,
        }
    }

    /// A message as an answer.
    pub(super) fn of_message(message: Message) -> Self {
        Self {
            message: Some(message.clone()),
            ..Self::of_text(message.content.unwrap_or_default())
        }
    }

    /// Whether there is nothing in it.
    pub(super) fn is_blank(&self) -> bool {
        let more = self.message.iter().flat_map(|message| &message.more);
        self.text.trim().is_empty() && more.count() == 0
    }

    /// The answer behind a prompt. Where the question stands as it is, the space between them belongs to the answer;
    /// other templates say themselves what comes before it.
    pub(super) fn behind(self, prompt: &str, template: &Template) -> String {
        let text = self.text;
        match (template, self.space) {
            (Template::Plain, Some(space)) => space + &text,
            (Template::Plain, None) if !prompt.ends_with(char::is_whitespace) => format!(" {text}"),
            _ => text,
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Question {
    Text(String),
    /// A context in the layout of HH that ends with an open turn of the assistant.
    Dialogue(String),
    /// Messages of the user and the assistant, the last of which is to be answered; one of the system may be the first.
    Turns(Vec<Message>),
}

impl Question {
    /// The question as it stands; turns in the layout of HH.
    fn plain(&self) -> String {
        match self {
            Self::Text(text) | Self::Dialogue(text) => text.clone(),
            Self::Turns(_) => {
                let (before, turns) = self.turns();
                let mut text = before.to_owned();
                for (speaker, said) in turns {
                    text.push_str(&format!("{} {said}", speaker.tag()));
                }
                text + Speaker::Assistant.tag()
            }
        }
    }

    /// The question for people and for text templates.
    pub(super) fn shown(&self) -> String {
        if let Self::Text(text) = self {
            return text.clone();
        }
        let context = self.plain();
        let end = context.rfind(Speaker::Assistant.tag());
        let end = end.unwrap_or(context.len());
        context[..end].trim().to_owned()
    }

    /// What stands before the first turn, and the turns.
    pub(super) fn turns(&self) -> (&str, Vec<(Speaker, &str)>) {
        match self {
            Self::Text(text) => ("", vec![(Speaker::Human, text)]),
            Self::Dialogue(context) => turns(context),
            Self::Turns(messages) => {
                let mut before = "";
                let mut turns = Vec::with_capacity(messages.len());
                for message in messages {
                    let said = message.content.as_deref().unwrap_or_default();
                    match speaker(message) {
                        Some(speaker) => turns.push((speaker, said)),
                        None => before = said,
                    }
                }
                (before, turns)
            }
        }
    }

    /// How many bytes of text it holds.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) | Self::Dialogue(text) => text.len(),
            Self::Turns(messages) => {
                let said = messages.iter().flat_map(|message| &message.content);
                said.map(|said| said.len() + 32).sum()
            }
        }
    }

    /// How many characters it has when it is not cut.
    pub(super) fn length(&self) -> usize {
        self.plain().chars().count()
    }

    /// Shortens to at most `limit` characters; `false` if that is impossible.
    pub(super) fn cut(&mut self, limit: usize) -> bool {
        let mut left = self.length();
        match self {
            Self::Text(text) => *text = cut_end(text, limit).to_owned(),
            // The oldest turns go first; a dialogue still starts with the user.
            Self::Dialogue(context) => {
                let mut start = 0;
                let mut later = context.match_indices(Speaker::Human.tag());
                while left > limit {
                    let Some((next, _)) = later.find(|(at, _)| *at > start) else {
                        return false;
                    };
                    left -= context[start..next].chars().count();
                    start = next;
                }
                context.drain(..start);
            }
            Self::Turns(messages) => {
                let first = usize::from(messages.first().is_some_and(|it| speaker(it).is_none()));
                let mut start = first;
                while left > limit {
                    let mut later = messages[start..].iter().skip(1);
                    let next = later.position(|message| speaker(message) == Some(Speaker::Human));
                    let Some(next) = next.map(|next| start + 1 + next) else {
                        return false;
                    };
                    let gone = messages[start..next].iter().filter_map(|message| {
                        let said = message.content.as_deref().unwrap_or_default();
                        Some(speaker(message)?.tag().len() + 1 + said.chars().count())
                    });
                    left -= gone.sum::<usize>();
                    start = next;
                }
                messages.drain(first..start);
            }
        }
        true
    }
}

/// The role of a speaker's messages.
pub(super) fn role_of(speaker: Speaker) -> &'static str {
    match speaker {
        Speaker::Human => "user",
        Speaker::Assistant => "assistant",
    }
}

/// Whose message it is; `None` of one of the system.
pub(super) fn speaker(message: &Message) -> Option<Speaker> {
    let mut both = [Speaker::Human, Speaker::Assistant].into_iter();
    both.find(|speaker| role_of(*speaker) == message.role)
}

/// Cuts a text to at most `limit` characters, at the last white space if there is one.
pub(super) fn cut_end(text: &str, limit: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(limit) else {
        return text;
    };
    let whole = text[end..].starts_with(char::is_whitespace);
    let end = if whole {
        end
    } else {
        text[..end].rfind(char::is_whitespace).unwrap_or(end)
    };
    text[..end].trim_end()
}
