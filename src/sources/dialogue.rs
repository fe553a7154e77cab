//! Dialogues in the layout of Anthropic's HH data: `\n\nHuman: ...\n\nAssistant: ...`, two of which differ in their
//! last answer (Bai et al. 2022, arXiv 2204.05862).

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// A pair of dialogues taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialoguePair<'a> {
    /// What both have in common, from `\n\nHuman:` to the last `\n\nAssistant:`.
    pub context: &'a str,
    /// The end of the preferred dialogue, with the white space that follows `Assistant:`.
    pub chosen: &'a str,
    /// The end of the other one.
    pub rejected: &'a str,
}

/// Splits two dialogues behind the last `\n\nAssistant:` of their longest common beginning.
///
/// `None` if they have none in common.
pub fn split_pair<'a>(chosen: &'a str, rejected: &'a str) -> Option<DialoguePair<'a>> {
    let letters = chosen.char_indices().zip(rejected.chars());
    let common = letters
        .take_while(|((_, first), second)| first == second)
        .last()
        .map_or(0, |((start, letter), _)| start + letter.len_utf8());
    let end = chosen[..common].rfind(ASSISTANT)? + ASSISTANT.len();
    Some(DialoguePair {
        context: &chosen[..end],
        chosen: &chosen[end..],
        rejected: &rejected[end..],
    })
}

/// Whether a text holds the beginning of a turn: as the end of a dialogue it is more than one answer.
pub fn holds_a_turn(text: &str) -> bool {
    text.contains(HUMAN) || text.contains(ASSISTANT)
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Speaker {
    /// The user.
    Human,
    /// The model.
    Assistant,
}

impl Speaker {
    /// What a turn begins with.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Human => HUMAN,
            Self::Assistant => ASSISTANT,
        }
    }
}

/// Returns what stands before the first turn of a context, and what is said, in order; the last, open turn of the
/// assistant is left out. The first turn may lack the lines before its tag.
pub fn turns(context: &str) -> (&str, Vec<(Speaker, &str)>) {
    let mut turns = Vec::new();
    let mut before = "";
    let mut rest = context.strip_suffix(ASSISTANT).unwrap_or(context).trim();
    let mut speaker = None;
    for first in [Speaker::Human, Speaker::Assistant] {
        if let Some(said) = rest.strip_prefix(first.tag().trim_start()) {
            (rest, speaker) = (said, Some(first));
            break;
        }
    }
    loop {
        let next = [Speaker::Human, Speaker::Assistant]
            .into_iter()
            .filter_map(|speaker| Some((rest.find(speaker.tag())?, speaker)))
            .min_by_key(|(at, _)| *at);
        let end = next.map_or(rest.len(), |(at, _)| at);
        match speaker {
            Some(speaker) => turns.push((speaker, rest[..end].trim())),
            None => before = rest[..end].trim(),
        }
        let Some((at, next)) = next else {
            return (before, turns);
        };
        rest = &rest[at + next.tag().len()..];
        speaker = Some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_split_at_the_last_common_answer() {
        let context = "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:";
        let (first, second) = (format!("{context} So."), format!("{context} Somehow. "));
        let pair = split_pair(&first, &second).unwrap();
        assert_eq!((pair.chosen, pair.rejected), (" So.", " Somehow. "));
        assert_eq!(pair.context, context);
        let said = vec![
            (Speaker::Human, "Hi?"),
            (Speaker::Assistant, "Hello."),
            (Speaker::Human, "Why?"),
        ];
        assert_eq!(turns(context), ("", said.clone()));
        // Nothing that stands before the first tag is lost.
        assert_eq!(turns(context.trim_start()), ("", said.clone()));
        let told = format!(" Be kind.{context}");
        assert_eq!(turns(&told), ("Be kind.", said));
        assert_eq!(turns("Be kind."), ("Be kind.", Vec::new()));
    }

    #[test]
    fn dialogues_that_part_early_end_in_more_than_an_answer() {
        let start = "\n\nHuman: Hi?\n\nAssistant:";
        let long = format!("{start} Yes.\n\nHuman: Why?\n\nAssistant: So.");
        let short = format!("{start} No.");
        let pair = split_pair(&long, &short).unwrap();
        assert_eq!(pair.context, start);
        assert!(holds_a_turn(pair.chosen) && !holds_a_turn(pair.rejected));
    }

    #[test]
    fn letters_of_several_bytes_and_empty_answers_are_no_trap() {
        let pair = split_pair(
            "\n\nHuman: é\n\nAssistant: é",
            "\n\nHuman: é\n\nAssistant: è",
        )
        .unwrap();
        assert_eq!((pair.chosen, pair.rejected), (" é", " è"));
        let pair =
            split_pair("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b").unwrap();
        assert_eq!((pair.chosen, pair.rejected), ("", " b"));
        assert_eq!(
            split_pair(
                "\n\nHuman: a\n\nAssistant: c",
                "\n\nHuman: b\n\nAssistant: c"
            ),
            None
        );
        assert_eq!(split_pair("", ""), None);
    }
}
