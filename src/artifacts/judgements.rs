//! Judgements: which of two completions of the same question is better; and the raw replies behind them.

use std::path::Path;

use super::table::{Table, TableError};

/// The artifact kind of judgements.
pub const JUDGEMENTS: &str = "judgements";
/// The artifact kind of what a judge replied, `replies.jsonl`: the digest of a request and the raw reply on each line.
pub const REPLIES: &str = "replies";

/// In which order a judge saw the two completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Ours first.
    CompletionFirst,
    /// The opponent's first.
    OpponentFirst,
    /// The judge sees no order.
    Either,
}

/// What a judge said, from the side of the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The completion is better.
    Win,
    /// Neither is.
    Tie,
    /// The opponent's is better.
    Loss,
    /// The reply names neither.
    Unparsable,
}

const ORDERS: [(Order, &str); 3] = [
    (Order::CompletionFirst, "completion_first"),
    (Order::OpponentFirst, "opponent_first"),
    (Order::Either, "either"),
];

const VERDICTS: [(Verdict, &str); 4] = [
    (Verdict::Win, "win"),
    (Verdict::Tie, "tie"),
    (Verdict::Loss, "loss"),
    (Verdict::Unparsable, "unparsable"),
];

/// One verdict on one pair of completions.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Which question the completions answer.
    pub question_id: u64,
    /// Which sample of that question was judged.
    pub sample: u64,
    /// How the judge saw the pair.
    pub order: Order,
    /// What it said.
    pub verdict: Verdict,
    /// The rewards of the completion and of the opponent's, from a reward model.
    pub rewards: Option<(f64, f64)>,
    /// The digest of the request, if a server was asked.
    pub request: Option<String>,
}

/// Names the orders.
pub fn order_names() -> Vec<&'static str> {
    ORDERS.iter().map(|(_, name)| *name).collect()
}

/// Names the verdicts.
pub fn verdict_names() -> Vec<&'static str> {
    VERDICTS.iter().map(|(_, name)| *name).collect()
}

fn name<T: PartialEq>(names: &[(T, &'static str)], value: &T) -> Option<String> {
    let found = names.iter().find(|(known, _)| known == value);
    found.map(|(_, name)| (*name).to_owned())
}

/// Writes judgements into a folder.
pub fn write(folder: &Path, title: &str, rows: &[Judgement]) -> Result<(), TableError> {
    let mut table = Table::new(title);
    let numbers = |of: fn(&Judgement) -> f64| rows.iter().map(move |row| Some(of(row)));
    table.whole_column("question_id", numbers(|row| row.question_id as f64));
    table.whole_column("sample", numbers(|row| row.sample as f64));
    table.text_column("order", rows.iter().map(|row| name(&ORDERS, &row.order)));
    let verdicts = rows.iter().map(|row| name(&VERDICTS, &row.verdict));
    table.text_column("verdict", verdicts);
    if rows.iter().any(|row| row.rewards.is_some()) {
        let ours = rows.iter().map(|row| row.rewards.map(|(ours, _)| ours));
        table.number_column("reward", 3, ours);
        let theirs = rows.iter().map(|row| row.rewards.map(|(_, theirs)| theirs));
        table.number_column("opponent_reward", 3, theirs);
    }
    if rows.iter().any(|row| row.request.is_some()) {
        table.text_column("request", rows.iter().map(|row| row.request.clone()));
    }
    table.write_data(folder)
}

/// Reads judgements from a folder.
pub fn read(folder: &Path) -> Result<Vec<Judgement>, TableError> {
    let table = Table::read(folder)?;
    let (ids, samples) = (
        table.all_numbers("question_id")?,
        table.all_numbers("sample")?,
    );
    let (orders, verdicts) = (table.all_texts("order")?, table.all_texts("verdict")?);
    let numbers = |name: &str| table.has(name).then(|| table.numbers(name)).transpose();
    let (ours, theirs) = (numbers("reward")?, numbers("opponent_reward")?);
    let has_requests = table.has("request");
    let requests = has_requests.then(|| table.texts("request")).transpose()?;
    (0..table.height())
        .map(|row| {
            let order = ORDERS.iter().find(|(_, name)| *name == orders[row]);
            let (order, _) = order.ok_or_else(|| table.missing("order", "orders"))?;
            let verdict = VERDICTS.iter().find(|(_, name)| *name == verdicts[row]);
            let (verdict, _) = verdict.ok_or_else(|| table.missing("verdict", "verdicts"))?;
            Ok(Judgement {
                question_id: ids[row] as u64,
                sample: samples[row] as u64,
                order: *order,
                verdict: *verdict,
                rewards: ours
                    .and_then(|ours| ours[row])
                    .zip(theirs.and_then(|theirs| theirs[row])),
                request: requests.as_ref().and_then(|requests| requests[row].clone()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judgements_round_trip() {
        let judgement = |order, verdict| Judgement {
            question_id: 7,
            sample: 2,
            order,
            verdict,
            rewards: None,
            request: None,
        };
        let plain = vec![judgement(Order::OpponentFirst, Verdict::Unparsable)];
        let full = vec![
            Judgement {
                rewards: Some((0.5, -1.0)),
                ..judgement(Order::Either, Verdict::Win)
            },
            Judgement {
                request: Some("ab".to_owned()),
                ..judgement(Order::CompletionFirst, Verdict::Tie)
            },
        ];
        for rows in [plain, full, Vec::new()] {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), "judged", &rows).unwrap();
            assert_eq!(read(folder.path()).unwrap(), rows);
        }
    }
}
