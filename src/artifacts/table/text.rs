//! Tables for a terminal.

use comfy_table::{
    CellAlignment, ContentArrangement, LineStyle, Table as TextTable, TableStyle, presets,
};

use super::Table;

/// Rules above, below and under the headings; rows need none.
const RULES: TableStyle = presets::NOTHING
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

impl Table {
    /// Returns the table for a terminal.
    pub fn text(&self) -> String {
        let shown = self.shown();
        let mut table = TextTable::new();
        table
            .load_style(RULES)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(shown.iter().map(|columns| columns[0].name.as_str()));
        for row in 0..self.height() {
            table.add_row(shown.iter().map(|columns| Self::cell(columns, row)));
        }
        for (at, columns) in shown.iter().enumerate() {
            if columns[0].is_number()
                && let Some(column) = table.column_mut(at)
            {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let notes: String = self
            .notes
            .iter()
            .map(|note| format!("\n  {note}"))
            .collect();
        format!("{}\n{table}{notes}\n", self.title)
    }
}
