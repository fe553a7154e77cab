//! What generation asks of a model, wherever that lies.

use std::collections::BTreeSet;

use super::distribution::Choice;
use super::options::{Contrastive, Result, Strategy};

/// Decodes over what it remembers of sequences.
pub(super) trait Decoder: Sync {
    /// What is remembered of a sequence.
    type Memory: Clone + Send + Sync;
    /// What a step adds to the memories of its sequences, should its tokens be taken.
    type Step: Sync;
    /// The hidden state of one place.
    type State: Clone + Send + Sync;
    /// The hidden states of all places of a sequence, at unit length.
    type Context: Clone + Send + Sync;

    /// Reads prompts; contrastive search `looks_back` at their hidden states.
    fn read(&self, prompts: &[&[u32]], looks_back: bool) -> Result<Vec<Read<Self>>>;

    /// Tries one token after each memory.
    fn step(&self, tokens: &[(&Self::Memory, u32)]) -> Result<Self::Step>;

    /// Returns the hidden state of the token at `index` of a step.
    fn state(&self, step: &Self::Step, index: usize) -> Result<Self::State>;

    /// Adds tokens, by their indices in a step, to the memories that they were tried on.
    fn take(&self, taken: Vec<(&mut Self::Memory, usize)>, step: &Self::Step) -> Result<()>;

    /// Chooses the next token of each row by its logits.
    fn choose(&self, rows: &[Asking<'_, Self>], how: &Choosing<'_>) -> Result<Vec<Choice>>;

    /// Tries the candidates of each row, and chooses by the hidden states that they lead to. Returns each choice with its
    /// index in the step.
    fn search(
        &self,
        rows: &[Asking<'_, Self>],
        search: &Contrastive,
        how: &Choosing<'_>,
    ) -> Result<(Vec<(Choice, usize)>, Self::Step)>;

    /// Adds a hidden state to a context.
    fn look_back(&self, context: &mut Self::Context, state: &Self::State) -> Result<()>;
}

/// A prompt that was read.
pub(super) struct Read<D: Decoder + ?Sized> {
    pub(super) memory: D::Memory,
    /// The hidden state of its last token.
    pub(super) state: D::State,
    /// Those of all its tokens, where they are looked back at.
    pub(super) context: Option<D::Context>,
}

impl<D: Decoder + ?Sized> Clone for Read<D> {
    fn clone(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            state: self.state.clone(),
            context: self.context.clone(),
        }
    }
}

/// A row that waits for its next token.
pub(super) struct Asking<'a, D: Decoder + ?Sized> {
    pub(super) memory: &'a D::Memory,
    pub(super) state: &'a D::State,
    pub(super) context: Option<&'a D::Context>,
    /// Different tokens of prompt and completion, for the repetition penalty.
    pub(super) seen: &'a BTreeSet<u32>,
    /// From `[0, 1)`; 0 where nothing is drawn.
    pub(super) uniform: f64,
}

/// How next tokens are chosen.
pub(super) struct Choosing<'a> {
    pub(super) strategy: &'a Strategy,
    /// Logits of tokens that were there before are divided by it where positive, multiplied where negative.
    pub(super) repetition_penalty: f64,
}
