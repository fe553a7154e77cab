//! Tables as LaTeX, with the rules of the package booktabs.

use super::{Column, Place, Table};

impl Table {
    /// Returns a `table` environment: the title is the caption, notes stand below.
    pub fn latex(&self) -> String {
        let shown = self.shown();
        let alignments: String = shown
            .iter()
            .map(|columns| if columns[0].is_number() { 'r' } else { 'l' })
            .collect();
        let line = |cells: Vec<String>| {
            // What begins with a bracket or a star after a line's end would be its argument.
            let mut line = cells.join(" & ");
            if let Some(first) = line.chars().next().filter(|first| "[*".contains(*first)) {
                line.replace_range(..1, &format!("{{{first}}}"));
            }
            format!("    {line} \\\\\n")
        };
        let headings = shown.iter().map(|columns| escaped(&columns[0].name));
        let mut text = format!(
            "% \\usepackage{{booktabs}}\n\\begin{{table}}\n  \\centering\n  \\caption{{{}}}\n  \
             \\begin{{tabular}}{{{alignments}}}\n    \\toprule\n{}    \\midrule\n",
            escaped(&self.title),
            line(headings.collect())
        );
        for row in 0..self.height() {
            let cells = shown.iter().map(|columns| latex_cell(columns, row));
            text.push_str(&line(cells.collect()));
        }
        text.push_str("    \\bottomrule\n  \\end{tabular}\n");
        if !self.notes.is_empty() {
            text.push_str(
                "  \\par\\smallskip\n  \\begin{minipage}{\\linewidth}\n    \\footnotesize\n",
            );
            for note in &self.notes {
                text.push_str(&format!("    {}\\par\n", escaped(note)));
            }
            text.push_str("  \\end{minipage}\n");
        }
        text.push_str("\\end{table}\n");
        text
    }
}

/// What people see in the cell of a row.
fn latex_cell(shown: &[Column], row: usize) -> String {
    let mut text = String::new();
    for column in shown {
        let Some(cell) = column.cell(row) else {
            continue;
        };
        let cell = if column.is_number() {
            number(&cell)
        } else {
            escaped(&cell)
        };
        match column.place {
            Place::Own => text.push_str(&cell),
            Place::Spread => text.push_str(&format!(" $\\pm$ {cell}")),
            Place::Low => text.push_str(&format!(" [{cell}")),
            Place::High => text.push_str(&format!(", {cell}]")),
        }
    }
    text
}

/// A number with a minus sign in place of a hyphen, and powers of ten.
fn number(text: &str) -> String {
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("${mantissa} \\times 10^{{{exponent}}}$"),
        None if text.starts_with('-') => format!("${text}$"),
        None => text.to_owned(),
    }
}

/// Text in which no sign commands anything; a line break is a space.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for sign in text.chars() {
        match sign {
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("\\textless{}"),
            '>' => escaped.push_str("\\textgreater{}"),
            '|' => escaped.push_str("\\textbar{}"),
            // The other commands for it need a font encoding.
            '"' => escaped.push_str("{''}"),
            '±' => escaped.push_str("$\\pm$"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                escaped.push('\\');
                escaped.push(sign);
            }
            _ if sign.is_control() => escaped.push(' '),
            _ => escaped.push(sign),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_rules_of_booktabs() {
        let mut table = Table::new("Win rates (%)");
        let names = ["[a] & b_c", "plain"].map(|text| Some(text.to_owned()));
        table.text_column("policy", names);
        table.number_column("D", 2, [Some(-0.5), Some(2.0)]);
        table.spread_of_last("sd", [Some(0.25), None]);
        table.interval_of_last([(Some(-1.0), Some(0.1)), (None, None)]);
        table.number_column("p", 3, [Some(2.5e-5), None]);
        table.notes.push("±: sd.".to_owned());
        let expected = r"% \usepackage{booktabs}
\begin{table}
  \centering
  \caption{Win rates (\%)}
  \begin{tabular}{lrr}
    \toprule
    policy & D & p \\
    \midrule
    {[}a] \& b\_c & $-0.50$ $\pm$ 0.25 [$-1.00$, 0.10] & $2.5 \times 10^{-5}$ \\
    plain & 2.00 &  \\
    \bottomrule
  \end{tabular}
  \par\smallskip
  \begin{minipage}{\linewidth}
    \footnotesize
    $\pm$: sd.\par
  \end{minipage}
\end{table}
";
        assert_eq!(table.latex(), expected);
    }

    #[test]
    fn no_sign_of_a_text_commands_anything() {
        assert_eq!(
            escaped("a\\b{c}$d%e#f~g^h\n<i>|\"j\""),
            "a\\textbackslash{}b\\{c\\}\\$d\\%e\\#f\\textasciitilde{}g\\textasciicircum{}h \\textless{}i\\textgreater{}\
             \\textbar{}{''}j{''}"
        );
    }
}
