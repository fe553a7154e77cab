//! How many completions of a prompt are sampled, replayed, or taken from the data set.

/// Shares of the completions that a step takes of a prompt; the rest is the data set's.
///
/// A share of so few completions is rarely a whole number. Counted over all prompts of all steps, the completions taken so
/// far are the whole number nearest to the share of them, so that it holds in the long run, and, over the prompts of a
/// step, nearly at every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shares {
    pub(super) on_policy: f64,
    pub(super) replay: f64,
    pub(super) per_prompt: usize,
}

/// Completions of one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) on_policy: usize,
    pub(super) replay: usize,
}

impl Shares {
    /// Returns the counts for the prompt before which `turn` others had theirs.
    pub(super) fn at(self, turn: u64) -> Counts {
        let [before, after] = [turn, turn + 1].map(|turns| self.on_policy_of(turns));
        // Replayed completions are a share of those that are not sampled: the two never exceed a prompt's.
        let rest = (self.replay / (1.0 - self.on_policy)).min(1.0);
        let replayed = |turns: u64, on_policy: f64| {
            let others = turns as f64 * self.per_prompt as f64 - on_policy;
            if others > 0.0 {
                (others * rest).round()
            } else {
                0.0
            }
        };
        Counts {
            on_policy: (after - before) as usize,
            replay: (replayed(turn + 1, after) - replayed(turn, before)) as usize,
        }
    }

    fn on_policy_of(self, turns: u64) -> f64 {
        (turns as f64 * (self.on_policy * self.per_prompt as f64)).round()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(on_policy: f64, replay: f64, per_prompt: usize, turns: u64) -> Vec<Counts> {
        let shares = Shares {
            on_policy,
            replay,
            per_prompt,
        };
        (0..turns).map(|turn| shares.at(turn)).collect()
    }

    #[test]
    fn a_share_holds_over_many_prompts_whatever_it_is() {
        for on_policy in [0.0, 0.1, 0.25, 1.0 / 3.0, 0.5, 0.625, 0.9, 1.0] {
            for replay in [0.0, 0.05, 0.1, 0.3, 0.5] {
                if on_policy + replay > 1.0 {
                    continue;
                }
                for per_prompt in [1, 2, 3, 4, 20] {
                    let mut sums = [0.0, 0.0];
                    for (turn, found) in (1..).zip(counts(on_policy, replay, per_prompt, 500)) {
                        assert!(found.on_policy + found.replay <= per_prompt);
                        sums[0] += found.on_policy as f64;
                        sums[1] += found.replay as f64;
                        let all = f64::from(turn) * per_prompt as f64;
                        for (sum, share) in sums.iter().zip([on_policy, replay]) {
                            assert!(
                                (sum - share * all).abs() <= 1.0,
                                "{sum} of {all} for {share} ({on_policy}, {replay}, {per_prompt})"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_share_of_a_whole_number_is_that_number_at_every_step() {
        for (on_policy, replay, per_prompt, expected) in [
            (0.5, 0.5, 4, (2, 2)),
            (0.7, 0.3, 10, (7, 3)),
            (0.58, 0.02, 50, (29, 1)),
            (1.0, 0.0, 3, (3, 0)),
            (0.0, 0.0, 4, (0, 0)),
        ] {
            let found = counts(on_policy, replay, per_prompt, 3000);
            let whole = |found: &Counts| (found.on_policy, found.replay) == expected;
            assert!(found.iter().all(whole), "{on_policy} {replay}");
            let shares = Shares {
                on_policy,
                replay,
                per_prompt,
            };
            assert!(whole(&shares.at(1 << 40)));
        }
    }
}
