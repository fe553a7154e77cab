//! Tables for a terminal.

use comfy_table::{
    CellAlignment, ContentArrangement, LineStyle, Table as TextTable, TableStyle, presets,
};
use unicode_width::UnicodeWidthStr;

use super::Table;
use super::column::Column;

/// Rules above, below and under the headings; rows need none.
const RULES: TableStyle = presets::NOTHING
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

impl Table {
    /// Returns the whole table for a terminal.
    pub fn text(&self) -> String {
        self.text_within(None)
    }

    /// Returns the table for a terminal that is so many characters wide.
    ///
    /// Columns from the first on that does not fit are left out and named below, and so are notes that speak of them: what
    /// comes later says less, or is what another one is compared with. Those that say what a row is stay, and the first
    /// after them.
    pub fn text_within(&self, width: Option<usize>) -> String {
        let shown = self.shown();
        let (kept, folded) = match width {
            Some(width) => self.fitting(&shown, width),
            None => (shown, Vec::new()),
        };
        let mut table = TextTable::new();
        table
            .load_style(RULES)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(kept.iter().map(|columns| columns[0].name.as_str()));
        if let Some(width) = width {
            // What cannot be left out is wrapped.
            table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(u16::try_from(width).unwrap_or(u16::MAX));
        }
        for row in 0..self.height() {
            table.add_row(kept.iter().map(|columns| Self::cell(columns, row)));
        }
        for (at, columns) in kept.iter().enumerate() {
            if columns[0].is_number()
                && let Some(column) = table.column_mut(at)
            {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let is_of_folded = |note: &&String| {
            let subject = note.split_once(':').map(|(subject, _)| subject);
            subject.is_some_and(|subject| folded.contains(&subject))
        };
        let notes = self.notes.iter().filter(|note| !is_of_folded(note));
        let mut below: String = notes.map(|note| format!("\n  {note}")).collect();
        if !folded.is_empty() {
            below.push_str(&format!(
                "\n  too wide for this terminal, shown by `--wide`: {}",
                folded.join(", ")
            ));
        }
        format!("{}\n{table}{below}\n", self.title)
    }

    /// The columns that fit into `width`, and the names of the others.
    fn fitting<'a>(
        &self,
        shown: &[&'a [Column]],
        width: usize,
    ) -> (Vec<&'a [Column]>, Vec<&'a str>) {
        let taken = |columns: &[Column]| {
            let cells = (0..self.height()).map(|row| Self::cell(columns, row).width());
            let widest = cells.chain([columns[0].name.width()]).max();
            // A space on either side.
            widest.unwrap_or(0) + 2
        };
        let labels = shown.iter().take_while(|columns| !columns[0].is_number());
        // In a table of words the first says what a row is.
        let labels = match labels.count() {
            all if all == shown.len() => 1,
            some => some.max(1),
        };
        let mut left = width;
        let (mut kept, mut folded) = (Vec::new(), Vec::new());
        for (at, columns) in shown.iter().enumerate() {
            let wanted = taken(columns);
            let fits = folded.is_empty() && wanted <= left;
            if at <= labels || fits {
                left = left.saturating_sub(wanted);
                kept.push(*columns);
            } else {
                folded.push(columns[0].name.as_str());
            }
        }
        (kept, folded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("Scores");
        table.label_column(
            "policy",
            ["ppo", "flowhf"].map(|text| Some(text.to_owned())),
        );
        table.number_column("Mean", 1, [Some(1.0), Some(2.0)]);
        table.text_column(
            "Remarks",
            ["a long remark", ""].map(|text| Some(text.to_owned())),
        );
        table.number_column("n", 0, [Some(7.0), Some(8.0)]);
        table.notes = vec!["Remarks: of nobody.".to_owned(), "All: of all.".to_owned()];
        table
    }

    #[test]
    fn what_does_not_fit_is_named_below_and_not_explained() {
        let whole = table().text();
        assert_eq!(table().text_within(Some(80)), whole);
        assert!(whole.contains("a long remark") && !whole.contains("--wide"));
        let narrow = table().text_within(Some(20));
        assert!(
            narrow
                .lines()
                .skip(1)
                .take(5)
                .all(|line| line.chars().count() <= 20),
            "{narrow}"
        );
        // The last one would have room.
        assert!(narrow.contains("policy") && narrow.contains("Mean") && !narrow.contains(" 7"));
        assert!(!narrow.contains("a long remark") && !narrow.contains("of nobody"));
        assert!(narrow.ends_with(
            "\n  All: of all.\n  too wide for this terminal, shown by `--wide`: Remarks, n\n"
        ));
    }

    #[test]
    fn what_says_what_a_row_is_stays_and_is_wrapped() {
        let mut table = Table::new("Words");
        let long = "one two three four five six seven";
        table.text_column("question", [Some(long.to_owned())]);
        table.text_column("answer", [Some(long.to_owned())]);
        table.text_column("remark", [Some(long.to_owned())]);
        let narrow = table.text_within(Some(20));
        assert!(
            narrow
                .lines()
                .skip(1)
                .take_while(|line| !line.contains("too wide"))
                .all(|line| line.chars().count() <= 20),
            "{narrow}"
        );
        assert!(
            narrow.contains("answer") && narrow.contains("`--wide`: remark"),
            "{narrow}"
        );
    }
}
