//! Damaged and hostile files: whatever bytes a reader of other people's files is given, it answers with a value or an
//! error, soon, and without much memory.
//!
//! Each reader has a short test of a few hundred inputs that are the same every time, and a long one:
//!
//! ```text
//! FLOWGRAPH_FUZZ_SECONDS=600 cargo test --release --test fuzz -- --ignored long::gguf
//! ```
//!
//! What is found is kept in the folder of temporary files that the test names. Once it is mended it goes into
//! `tests/fuzz/findings/<reader>/`, which every run begins with.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod models;
mod mutate;
mod pipeline;
mod rows;
#[path = "../it/space.rs"]
#[expect(dead_code, reason = "the other tests use all of it")]
mod space;
mod store;
mod tokenizer;
mod training;
mod watch;
mod wheel;

/// Makes both tests of each reader.
macro_rules! readers {
    ($($name:ident: $reader:path,)*) => {
        mod short {
            $(#[test] fn $name() { crate::watch::short(&$reader()); })*
        }
        mod long {
            $(#[test] #[ignore = "runs for FLOWGRAPH_FUZZ_SECONDS"] fn $name() { crate::watch::long(&$reader()); })*
        }
    };
}

readers! {
    pipeline: crate::pipeline::pipeline,
    gguf: crate::models::gguf,
    safetensors: crate::models::safetensors,
    llama2c: crate::models::llama2c,
    model_config: crate::models::model_config,
    tokenizer: crate::tokenizer::tokenizer,
    parquet: crate::rows::parquet,
    rows: crate::rows::rows,
    record: crate::store::record,
    run: crate::store::run,
    wheel: crate::wheel::wheel,
    package_index: crate::wheel::package_index,
    training_state: crate::training::training_state,
}
