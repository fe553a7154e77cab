//! The table of tries.

use super::Choose;
use super::decide::{Cost, Decided};
use super::design::Candidate;
use crate::artifacts::table::Table;
use crate::excerpt::listed;
use crate::stages::report::questions::differ;
use crate::stages::report::ranking::Best;

impl Choose {
    /// Makes the table of all tries.
    pub(super) fn table(&self, decided: &[Decided]) -> Table {
        let all: Vec<&Decided> = decided.iter().collect();
        let mut table = self.columns(&all);
        table.notes = self.notes(decided);
        table
    }

    /// Makes a table of some tries, without notes.
    pub(super) fn columns(&self, decided: &[&Decided]) -> Table {
        let mut table = Table::new(&self.title);
        let candidates = || decided.iter().map(|one| &one.candidate);
        if let Some(axis) = &self.method {
            let name = |one: &Candidate| {
                let name = self.row_names.get(&one.method).unwrap_or(&one.method);
                Some(name.clone())
            };
            table.label_column(axis, candidates().map(name));
        }
        for axis in self.candidate.names() {
            if candidates().any(|one| one.axes.contains_key(axis)) {
                table.label_column(axis, candidates().map(|one| one.axes.get(axis).cloned()));
            }
        }
        table.whole_column("n", decided.iter().map(|one| Some(one.n as f64)));
        table.whole_column("Runs", decided.iter().map(|one| Some(one.distinct as f64)));
        table.number_column(&self.column, 3, decided.iter().map(|one| Some(one.mean)));
        if decided.iter().any(|one| one.std.is_some()) {
            table.spread_of_last("sd", decided.iter().map(|one| one.std));
        }
        for (at, column) in self.within.keys().enumerate() {
            if *column != self.column {
                table.number_column(column, 3, decided.iter().map(|one| Some(one.limited[at])));
            }
        }
        let may_win = |one: &&Decided| match one.faults.as_slice() {
            [] => Some("yes".to_owned()),
            faults => Some(format!("no: {}", faults.join(", "))),
        };
        table.text_column("May win", decided.iter().map(may_win));
        table.whole_column(
            "Rank",
            decided.iter().map(|one| one.rank.map(|rank| rank as f64)),
        );
        let chosen = |one: &&Decided| one.is_chosen.then(|| "yes".to_owned());
        table.text_column("Chosen", decided.iter().map(chosen));
        if decided.iter().any(|one| one.cost.is_some()) {
            let cost = |value: fn(&Cost) -> f64| {
                decided.iter().map(move |one| one.cost.as_ref().map(value))
            };
            table.number_column("Steps", 0, cost(|cost| cost.steps));
            table.number_column("Generated tokens", 0, cost(|cost| cost.generated_tokens));
            table.number_column("GFLOP", 1, cost(|cost| cost.flops / 1e9));
            let ended = |one: &&Decided| one.cost.as_ref()?.ended.clone();
            table.text_column("Training", decided.iter().map(ended));
        }
        table
    }

    fn notes(&self, decided: &[Decided]) -> Vec<String> {
        let mut notes = self.notes.clone();
        let best = match self.best {
            Best::Greatest => "greatest",
            Best::Least => "least",
        };
        let mut runs: Vec<&str> = Vec::new();
        for (run, _) in decided.iter().flat_map(|one| &one.candidate.runs) {
            if !run.is_empty() && !runs.contains(&run.as_str()) {
                runs.push(run);
            }
        }
        let of_runs = match runs.as_slice() {
            [] => String::new(),
            runs => format!(" over the runs ({} {})", self.run, runs.join(", ")),
        };
        let limits = if self.within.is_empty() {
            String::new()
        } else {
            let limits = self.within.iter().map(|(column, limit)| {
                let least = limit
                    .at_least
                    .map(|least| format!("{column} at least {least}"));
                let most = limit.at_most.map(|most| format!("{column} at most {most}"));
                least
                    .into_iter()
                    .chain(most)
                    .collect::<Vec<_>>()
                    .join(" and ")
            });
            format!(" of those with {}", limits.collect::<Vec<_>>().join(", "))
        };
        let each = self.method.as_ref().map_or("Chosen".to_owned(), |axis| {
            format!("For each {axis} chosen")
        });
        notes.push(format!(
            "{each} is the {best} mean of {}{of_runs}{limits}; of equals the first.",
            self.column
        ));
        if !self.frozen.is_empty() {
            let tie = if self.tie > 0.0 {
                format!(", or is within {} of the best", self.tie)
            } else {
                String::new()
            };
            let of = match &self.method {
                Some(_) => {
                    let methods = self.frozen.keys().map(String::as_str);
                    format!(" for {}", listed(methods))
                }
                None => String::new(),
            };
            notes.push(format!(
                "Frozen{of}: what is chosen here is what the reported trainings use; it won{tie}."
            ));
        }
        notes.extend(unequal_steps(decided));
        if decided.iter().any(|one| one.std.is_some()) {
            notes.push(format!(
                "±: sample standard deviation over the runs ({}).",
                self.run
            ));
        }
        if !self.equal_budget {
            let candidates: Vec<Candidate> =
                decided.iter().map(|one| one.candidate.clone()).collect();
            let how = self
                .unequal(&candidates)
                .map_or(String::new(), |how| format!(": {how}"));
            notes.push(format!("Budgets need not be equal{how}."));
        }
        let asked = decided.iter();
        let asked = asked.map(|one| (one.candidate.describe(), one.asked.clone()));
        notes.extend(differ("Candidates", &asked.collect::<Vec<_>>()));
        notes.extend(decided.iter().filter_map(|one| one.repeats.clone()));
        notes
    }
}

/// Says which candidates made more steps than others: of samples that no params tell this is all there is. Methods of
/// our own may learn from as many samples in other steps, and those are compared before anything runs.
fn unequal_steps(decided: &[Decided]) -> Option<String> {
    let steps = |one: &Decided| {
        let completed = one.faults.is_empty();
        one.cost
            .as_ref()
            .filter(|_| completed)
            .map(|cost| cost.steps)
    };
    let is_foreign = |one: &Decided| one.cost.as_ref().is_some_and(|cost| cost.is_foreign);
    let differ = decided.iter().enumerate().find_map(|(at, one)| {
        let others = decided[..at].iter();
        let mut others = others.filter(|other| {
            let is_one_method = other.candidate.method == one.candidate.method;
            is_one_method || is_foreign(one) || is_foreign(other)
        });
        let other =
            others.find(|other| steps(other).zip(steps(one)).is_some_and(|(a, b)| a != b))?;
        Some((other, one))
    });
    let (one, other) = differ?;
    let told = |one: &Decided| Some(format!("{} {}", one.candidate.describe(), steps(one)?));
    Some(format!(
        "Trainings made different numbers of steps, such as {} and {}: numbers of samples are compared where params tell \
         them, those of a command's curve are not known.",
        told(one)?,
        told(other)?
    ))
}
