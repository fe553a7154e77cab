//! A small token tree whose distributions are known exactly.
