//! Tables as comma-separated values (RFC 4180), for other programs.

use super::{Table, Values};

impl Table {
    /// Returns every column, spreads and bounds too, with numbers in full and names in the first line.
    ///
    /// An empty cell is nothing, an empty text is `""`. Where `spreadsheet`, an apostrophe stands before texts that a
    /// spreadsheet would take for formulas.
    pub fn csv(&self, spreadsheet: bool) -> String {
        let quoted = |text: &str| {
            if spreadsheet && is_formula(text) {
                quoted(&format!("'{text}"))
            } else {
                quoted(text)
            }
        };
        let names = self.columns.iter().map(|column| quoted(&column.name));
        let mut text = line(names);
        for row in 0..self.height() {
            text.push_str(&line(self.columns.iter().map(
                |column| match &column.values {
                    Values::Text(values) => values[row].as_deref().map_or(String::new(), &quoted),
                    Values::Numbers(values) => {
                        values[row].map_or(String::new(), |value| value.to_string())
                    }
                    Values::Ids(_) => column.cell(row).unwrap_or_default(),
                },
            )));
        }
        text
    }
}

impl Table {
    /// Counts the texts that a spreadsheet would take for formulas.
    pub fn formulas(&self) -> usize {
        let texts = self.columns.iter().map(|column| match &column.values {
            Values::Text(values) => {
                let formulas = values.iter().flatten().filter(|text| is_formula(text));
                formulas.count()
            }
            Values::Numbers(_) | Values::Ids(_) => 0,
        });
        texts.sum()
    }
}

/// Whether a spreadsheet takes a text for a formula (OWASP, "CSV injection").
fn is_formula(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@', '\t', '\r'])
}

fn line(cells: impl Iterator<Item = String>) -> String {
    format!("{}\n", cells.collect::<Vec<_>>().join(","))
}

fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains(['"', ',', '\n', '\r']) || text.trim() != text {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// list(csv.reader(open("table.csv", newline="")))
    /// ```
    #[test]
    fn cells_are_quoted_where_they_must_be_and_numbers_are_whole() {
        let mut table = Table::new("title");
        let texts = ["a,b", "say \"hi\"\nthere", "", "plain", " x"];
        let texts = texts.map(|text| Some(text.to_owned()));
        table.text_column("the, text", texts.into_iter().chain([None]));
        let numbers = [0.1 + 0.2, -1.0, 1e-20, f64::NAN, 3.0];
        table.number_column("n", 2, numbers.into_iter().map(Some).chain([None]));
        table.spread_of_last("sd", [Some(0.5), None, None, None, None, None]);
        assert_eq!(
            table.csv(false),
            "\"the, text\",n,n sd\n\"a,b\",0.30000000000000004,0.5\n\"say \"\"hi\"\"\nthere\",-1,\n\
             \"\",0.00000000000000000001,\nplain,NaN,\n\" x\",3,\n,,\n"
        );
        assert_eq!(Table::new("none").csv(false), "\n");
    }

    #[test]
    fn formulas_are_counted_and_disarmed_where_that_is_asked_for() {
        let mut table = Table::new("title");
        let texts = ["=HYPERLINK(\"x\")", "-1", "@SUM(A1)", "a=b", "\t=1"];
        table.text_column("text", texts.map(|text| Some(text.to_owned())));
        table.number_column("n", 0, [-1.0; 5].map(Some));
        assert_eq!(table.formulas(), 4);
        assert_eq!(
            table.csv(true),
            "text,n\n\"'=HYPERLINK(\"\"x\"\")\",-1\n'-1,-1\n'@SUM(A1),-1\na=b,-1\n'\t=1,-1\n"
        );
        assert!(table.csv(false).contains("\n-1,-1\n@SUM(A1),-1\n"));
    }
}
