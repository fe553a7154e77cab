//! The words of the world. Entries at the same index belong together.

/// Sites on which questions are asked.
pub(super) const TOPICS: [&str; 8] = [
    "python", "rust", "docker", "git", "linux", "excel", "sql", "java",
];
/// The tool of each topic.
pub(super) const TOOLS: [&str; 8] = [
    "pipx", "cargo", "podman", "gitk", "bash", "calc", "psql", "maven",
];
/// The other tool of each topic.
pub(super) const ALTERNATIVES: [&str; 8] = [
    "conda", "clippy", "helm", "hub", "zsh", "sheets", "sqlite", "gradle",
];
/// What somebody may have tried: tools, then alternatives.
pub(super) const TRIED: [&str; 16] = [
    "pipx", "cargo", "podman", "gitk", "bash", "calc", "psql", "maven", "conda", "clippy", "helm",
    "hub", "zsh", "sheets", "sqlite", "gradle",
];
/// What is to be done.
pub(super) const VERBS: [&str; 10] = [
    "sort", "open", "copy", "delete", "merge", "print", "lock", "start", "move", "split",
];
/// The option of a tool that does what each verb says.
pub(super) const OPTIONS: [&str; 10] = [
    "order", "load", "clone", "purge", "join", "show", "freeze", "boot", "shift", "cut",
];
/// What it is done to.
pub(super) const OBJECTS: [&str; 12] = [
    "file", "list", "table", "branch", "image", "server", "string", "loop", "query", "log", "key",
    "array",
];
/// Properties; object `i` has property `i mod 6`.
pub(super) const PROPERTIES: [&str; 6] = ["big", "old", "busy", "broken", "hidden", "empty"];

/// Words that count as rude wherever they stand.
pub(super) const RUDE_WORDS: [&str; 6] = ["stupid", "idiot", "lazy", "fool", "dumb", "damn"];

/// Combinations of topic, verb and object.
pub(super) const COMBINATIONS: usize = TOPICS.len() * VERBS.len() * OBJECTS.len();

/// A place in a template that a word of a fixed list fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Slot {
    /// The topic of the question.
    Topic,
    /// The topic's tool.
    Tool,
    /// The topic's other tool.
    Alternative,
    /// The verb of the question (questions only).
    Verb,
    /// The option that does the verb.
    Option,
    /// The object of the question.
    Object,
    /// The property of the object.
    Property,
    /// What was tried (posts only).
    Tried,
}

impl Slot {
    pub(super) const ALL: [Self; 8] = [
        Self::Topic,
        Self::Tool,
        Self::Alternative,
        Self::Verb,
        Self::Option,
        Self::Object,
        Self::Property,
        Self::Tried,
    ];

    /// Reads a template's `{name}`.
    pub(super) fn from_template(word: &str) -> Option<Self> {
        Some(match word {
            "{topic}" => Self::Topic,
            "{tool}" => Self::Tool,
            "{alternative}" => Self::Alternative,
            "{verb}" => Self::Verb,
            "{option}" => Self::Option,
            "{object}" => Self::Object,
            "{property}" => Self::Property,
            "{tried}" => Self::Tried,
            _ => return None,
        })
    }

    /// The words that may fill the slot.
    pub(super) const fn words(self) -> &'static [&'static str] {
        match self {
            Self::Topic => &TOPICS,
            Self::Tool => &TOOLS,
            Self::Alternative => &ALTERNATIVES,
            Self::Verb => &VERBS,
            Self::Option => &OPTIONS,
            Self::Object => &OBJECTS,
            Self::Property => &PROPERTIES,
            Self::Tried => &TRIED,
        }
    }
}

/// What a question is about, as indices into the word lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Subject {
    pub(super) topic: usize,
    pub(super) verb: usize,
    pub(super) object: usize,
}

impl Subject {
    /// Numbers the combinations, last index fastest.
    pub(super) fn from_index(index: usize) -> Self {
        Self {
            topic: index / (VERBS.len() * OBJECTS.len()) % TOPICS.len(),
            verb: index / OBJECTS.len() % VERBS.len(),
            object: index % OBJECTS.len(),
        }
    }

    /// The place of the combination in [`Subject::from_index`].
    pub(super) fn index(self) -> usize {
        (self.topic * VERBS.len() + self.verb) * OBJECTS.len() + self.object
    }

    /// The right word for `slot`.
    pub(super) fn word(self, slot: Slot) -> &'static str {
        slot.words()[self.right(slot)]
    }

    /// The index of the right word for `slot`.
    pub(super) fn right(self, slot: Slot) -> usize {
        match slot {
            // A question does not say what was tried; the tool stands for it.
            Slot::Topic | Slot::Tool | Slot::Alternative | Slot::Tried => self.topic,
            Slot::Verb | Slot::Option => self.verb,
            Slot::Object => self.object,
            Slot::Property => self.object % PROPERTIES.len(),
        }
    }
}
