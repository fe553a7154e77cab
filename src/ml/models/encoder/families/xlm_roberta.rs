//! XLM-RoBERTa (Conneau et al. 2020, arXiv 1911.02116): RoBERTa with another vocabulary.

use super::Family;
use super::roberta::{ROBERTA, read};

/// It computes what RoBERTa does, from tensors of the same names, and is written as such.
pub(super) const XLM_ROBERTA: Family = Family {
    model_type: "xlm-roberta",
    read: |_, keys| read(&ROBERTA, keys),
    ..ROBERTA
};
