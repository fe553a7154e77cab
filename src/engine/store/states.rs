//! End states of finished trainings, from which longer ones continue.
//!
//! `states/<continuation key>/<steps>/` is the folder of checkpoints that a training left. It is outside every digest:
//! the training that continues checks what it reads there.

use std::path::{Path, PathBuf};

use super::Store;
use crate::engine::artifact::Digest;
use crate::engine::context::kept_name;
use crate::engine::stage::Continuation;

impl Store {
    fn states_path(&self, key: &Digest) -> PathBuf {
        self.root().join("states").join(key.to_string())
    }

    /// Finds the longest training that `wanted` may continue: not longer itself, and with every kept step that lies
    /// behind it.
    pub fn find_state(&self, key: &Digest, wanted: &Continuation) -> Option<(u64, PathBuf)> {
        let entries = std::fs::read_dir(self.states_path(key)).ok()?;
        let states = entries.flatten().filter_map(|entry| {
            let steps: u64 = entry.file_name().to_str()?.parse().ok()?;
            let path = entry.path();
            let mut behind = wanted.kept_steps.iter().filter(|step| **step <= steps);
            let fits =
                steps <= wanted.steps && behind.all(|step| path.join(kept_name(*step)).exists());
            fits.then_some((steps, path))
        });
        states.max_by_key(|(steps, _)| *steps)
    }

    /// Gives a training that is about to start the state that it continues from.
    pub fn lend_state(&self, state: &Path, checkpoints: &Path) -> std::io::Result<()> {
        // Links: whatever is written there later is written under another name and renamed.
        copy_as_links(state, checkpoints)
    }

    /// Keeps the checkpoints of a training that has ended after `steps`.
    pub fn keep_state(&self, key: &Digest, steps: u64, checkpoints: &Path) -> std::io::Result<()> {
        let folder = self.states_path(key);
        fs_err::create_dir_all(&folder)?;
        let target = folder.join(steps.to_string());
        let _ = fs_err::remove_dir_all(&target);
        match std::fs::rename(checkpoints, &target) {
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                // Copied under a name that no state has: one that is half there would be taken for one.
                let copy = tempfile::tempdir_in(&folder)?;
                copy_as_links(checkpoints, copy.path())?;
                fs_err::rename(copy.keep(), target)
            }
            other => other,
        }
    }
}

fn copy_as_links(from: &Path, to: &Path) -> std::io::Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_as_links(&entry.path(), &target)?;
        } else if std::fs::hard_link(entry.path(), &target).is_err() {
            fs_err::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_state_that_has_what_is_asked_of_it_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let key = Digest::of(b"key");
        for (steps, kept) in [(100, vec![50]), (200, vec![50, 150]), (400, vec![])] {
            let checkpoints = folder.path().join("checkpoints");
            fs_err::create_dir_all(checkpoints.join("checkpoint")).unwrap();
            fs_err::write(checkpoints.join("checkpoint/x"), "state").unwrap();
            for step in kept {
                fs_err::write(checkpoints.join(kept_name(step)), "kept").unwrap();
            }
            store.keep_state(&key, steps, &checkpoints).unwrap();
            assert!(!checkpoints.exists());
        }
        let found = |steps, kept: &[u64]| {
            let kept_steps = kept.iter().copied().collect();
            let state = store.find_state(&key, &Continuation { steps, kept_steps });
            state.map(|(steps, _)| steps)
        };
        assert_eq!(found(600, &[]), Some(400));
        assert_eq!(found(300, &[]), Some(200));
        // Step 50 lies behind all of them, and the longest does not have it.
        assert_eq!(found(600, &[50, 500]), Some(200));
        assert_eq!(found(600, &[150]), Some(200));
        assert_eq!(found(90, &[]), None);
        assert_eq!(found(600, &[60]), None);
        let other = store.find_state(&Digest::of(b"other"), &Continuation::default());
        assert_eq!(other, None);

        let lent = folder.path().join("lent");
        let (_, state) = store
            .find_state(
                &key,
                &Continuation {
                    steps: 100,
                    ..Continuation::default()
                },
            )
            .unwrap();
        store.lend_state(&state, &lent).unwrap();
        assert_eq!(
            fs_err::read_to_string(lent.join("checkpoint/x")).unwrap(),
            "state"
        );
        assert!(state.exists());
    }
}
