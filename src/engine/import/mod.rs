//! `import:` brings the stages of another pipeline file under a namespace, so that shared stages are written once.
//!
//! ```yaml
//! import:
//!   base: flowhf.yaml                                             # its stages are base/sft, base/reward_model, ...
//!   real: { pipeline: flowhf.yaml, profiles: [smollm2], params: { seeds: [1] } }
//! ```
//!
//! The imported file is checked by itself, so that what is wrong with it is shown in its own lines. Then its stages and
//! params become the importing file's under `base/...`, where profiles and `--set` reach them. Among themselves its
//! stages keep their names, and so their fingerprints: results are shared with the file run by itself.

mod library;
mod reader;

pub(super) use library::Imported;
pub(super) use reader::Reader;

use super::instance::Instance;
use super::reference::namespace;

/// Leaves out imported stages that no stage of the file itself needs.
pub(super) fn needed_by_own(stages: Vec<Instance>) -> Vec<Instance> {
    let mut needed = vec![false; stages.len()];
    let own = (0..stages.len()).filter(|at| namespace(&stages[*at].template).is_empty());
    let mut open: Vec<usize> = own.collect();
    while let Some(stage) = open.pop() {
        if !std::mem::replace(&mut needed[stage], true) {
            let items = stages[stage].inputs.iter().flat_map(|input| &input.items);
            open.extend(items.map(|item| item.producer));
        }
    }
    let mut places = vec![0; stages.len()];
    let mut kept: Vec<Instance> = Vec::new();
    for (at, stage) in stages.into_iter().enumerate() {
        if needed[at] {
            places[at] = kept.len();
            kept.push(stage);
        }
    }
    for item in kept
        .iter_mut()
        .flat_map(|stage| &mut stage.inputs)
        .flat_map(|input| &mut input.items)
    {
        item.producer = places[item.producer];
    }
    kept
}
