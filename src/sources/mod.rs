//! Where bytes from outside come from.
//!
//! A [`Source`] is written in one line (`pypi:NAME==VERSION/PATH`, `hf:ORG/REPO/PATH`, `https://...`,
//! `file:PATH`); [`fetch`] makes its bytes available as a verified file. The embedded [`world`](crate::world) needs
//! no files at all.

pub mod dialogue;
pub mod rows;

mod address;
mod archive;
mod cache;
mod chat;
mod client;
mod download;
mod error;
mod fetch;
mod fetched;
mod hub;
mod options;
mod pypi;
mod settings;
mod sha256;
mod source;

#[cfg(test)]
mod chat_tests;
#[cfg(test)]
mod fetch_tests;
#[cfg(test)]
mod index_tests;
#[cfg(test)]
pub(crate) mod test_server;

pub use chat::{ChatClient, ChatOptions, check_chat_url};
pub use client::Patience;
pub use error::SourceError;
pub use fetch::fetch;
pub use fetched::Fetched;
pub use options::{FetchOptions, Progress};
pub use settings::Settings;
pub use sha256::Sha256;
pub use source::{HubFile, PypiFile, Source, WebFile};
