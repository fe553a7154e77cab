//! Documents that are made of a SentencePiece file, because there is no other or the class wants it so.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::TokenizerError;
use super::super::sentence_piece::{self, PieceClass, SentencePieceModel};
use super::{Settings, invalid};
use crate::ml::documents::read_pieces;

impl Settings {
    /// Tells whether the class makes its tokenizer of the SentencePiece file although there is a document: LLaMA's and
    /// T5's do where `add_prefix_space` is stated.
    pub(in crate::ml::tokenizer) fn wants_pieces(&self, folder: &Path) -> bool {
        let class = PieceClass::named(&self.class_name);
        let class = class.filter(|class| matches!(class, PieceClass::Llama | PieceClass::T5));
        let states = self
            .config
            .get("add_prefix_space")
            .is_some_and(|set| !set.is_null());
        states
            && class.is_some_and(|class| {
                class
                    .file_names()
                    .iter()
                    .any(|name| folder.join(name).exists())
            })
    }

    /// Keeps the added tokens of a document that is not used otherwise.
    pub(in crate::ml::tokenizer) fn keep_added(&mut self, document: &Value) {
        let Some(added) = document.get("added_tokens").and_then(Value::as_array) else {
            return;
        };
        let by_id = added
            .iter()
            .filter_map(|token| Some((token.get("id")?.to_string(), token.clone())));
        let by_id: Map<String, Value> = by_id.collect();
        self.config
            .entry("added_tokens_decoder")
            .or_insert_with(|| by_id.into());
    }

    /// Builds the document from the folder's SentencePiece file; none if it has no such file.
    pub(in crate::ml::tokenizer) fn convert(
        &mut self,
        folder: &Path,
    ) -> Result<Option<Value>, TokenizerError> {
        let names = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];
        let there = |name: &str| folder.join(name).exists();
        let Some(found) = names.into_iter().find(|name| there(name)) else {
            return Ok(None);
        };
        let class = PieceClass::named(&self.class_name);
        let name = class.and_then(|class| class.file_names().into_iter().find(|name| there(name)));
        let (Some(class), Some(name)) = (class, name) else {
            return Err(TokenizerError::Class {
                file: found,
                class: self.class_name.clone(),
            });
        };
        self.vocabulary = name;
        let model = SentencePieceModel::parse(&read_pieces(&folder.join(name))?);
        let named = |error| match error {
            TokenizerError::Invalid(reason) => invalid(format!("{name}: {reason}")),
            error => error,
        };
        let document = sentence_piece::document(&model.map_err(named)?, class, &mut self.config);
        document.map(Some).map_err(named)
    }
}
