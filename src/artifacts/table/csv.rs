//! Tables as comma-separated values (RFC 4180), for other programs.

use super::{Table, Values};

impl Table {
    /// Returns every column, spreads and bounds too, with numbers in full and names in the first line.
    ///
    /// An empty cell is nothing, an empty text is `""`.
    pub fn csv(&self) -> String {
        let names = self.columns.iter().map(|column| quoted(&column.name));
        let mut text = line(names);
        for row in 0..self.height() {
            text.push_str(&line(self.columns.iter().map(
                |column| match &column.values {
                    Values::Text(values) => values[row].as_deref().map_or(String::new(), quoted),
                    Values::Numbers(values) => {
                        values[row].map_or(String::new(), |value| value.to_string())
                    }
                },
            )));
        }
        text
    }
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
            table.csv(),
            "\"the, text\",n,n sd\n\"a,b\",0.30000000000000004,0.5\n\"say \"\"hi\"\"\nthere\",-1,\n\
             \"\",0.00000000000000000001,\nplain,NaN,\n\" x\",3,\n,,\n"
        );
        assert_eq!(Table::new("none").csv(), "\n");
    }
}
