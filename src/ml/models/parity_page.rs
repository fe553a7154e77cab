//! `pipelines/models.md`: how far each family is from its reference.

use super::{causal, encoder};

const CAUSAL: &str = "\
# Models, held against transformers and PEFT

Small random models of each family, recorded by the scripts of `tests/fixtures/models` (transformers 4.57.6, PEFT 0.21.2, \
torch 2.15.0). The tests that compare them wrote this page.

## Causal language models

The largest differences of log-probabilities, of all weights' gradients and of all factors' gradients under a LoRA adapter \
on every linear layer (as shares of the model's largest gradient), and of log-probabilities with the adapter merged. Greedy \
and contrastive decoding are equal token for token, left and right padding bit for bit, and so are written files.

| model | log-probabilities | gradients | gradients of factors | merged |
| --- | ---: | ---: | ---: | ---: |
";

const ADAPTERS: &str = "
## Adapters

LoRA in the forms of PEFT: ranks and alphas by pattern, chosen and excluded layers, biases, modules trained whole (of tied and \
untied models), DoRA. The largest differences of log-probabilities, of all trained tensors' gradients (as shares of the \
largest), and of log-probabilities with the adapter merged. Greedy decoding is equal token for token.

| adapter | log-probabilities | gradients | merged |
| --- | ---: | ---: | ---: |
";

const ENCODERS: &str = "
## Text encoders

The largest differences of the last hidden states and of a classifier's logits, as shares of the largest number; of all \
weights' gradients, as shares of the largest of the tensor. Embeddings of sentence-transformers are compared by tests for \
every pooling, dense layer and prompt.

| model | hidden states | logits | gradients |
| --- | ---: | ---: | ---: |
";

/// The page has the same bits on every processor, so it is compared as it stands. `UPDATE_GOLDEN=1` writes it.
#[test]
fn the_page_of_differences_is_what_was_measured() {
    if !crate::ml::kernels::form::bits_are_promised() {
        return;
    }
    let page = [
        CAUSAL,
        &causal::parity_tests::table(),
        ADAPTERS,
        &causal::parity_tests::adapters::table(),
        ENCODERS,
        &encoder::parity_tests::table(),
    ]
    .concat();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/models.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs_err::write(&path, &page).unwrap();
    }
    assert_eq!(fs_err::read_to_string(path).unwrap(), page);
}
