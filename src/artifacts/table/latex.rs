//! Tables as LaTeX, with the rules of the package booktabs.

use std::ops::Range;

use super::shown::spread;
use super::{Column, Place, Table};

impl Table {
    /// Returns a `table` environment: the title is the caption, notes stand below. Columns whose names begin alike stand
    /// below a heading of their own.
    pub fn latex(&self, label: &str) -> String {
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
        let mut text = format!(
            "% \\usepackage{{booktabs}}\n\\begin{{table}}\n  \\centering\n  \\caption{{{}}}\n  \\label{{{label}}}\n  \
             \\begin{{tabular}}{{{alignments}}}\n    \\toprule\n",
            escaped(&self.title),
        );
        let names: Vec<&str> = shown.iter().map(|columns| &*columns[0].name).collect();
        let groups = groups(&names);
        if groups.iter().any(|group| group.columns.len() > 1) {
            let mut rules = Vec::new();
            let cells = groups.iter().map(|group| match group.columns.len() {
                1 => String::new(),
                width => {
                    let Range { start, end } = group.columns;
                    rules.push(format!("\\cmidrule(lr){{{}-{end}}}", start + 1));
                    format!(
                        "\\multicolumn{{{width}}}{{c}}{{{}}}",
                        escaped(group.heading)
                    )
                }
            });
            text.push_str(&line(cells.collect()));
            text.push_str(&format!("    {}\n", rules.join(" ")));
        }
        let headings = groups.iter().flat_map(|group| &group.names);
        text.push_str(&line(headings.map(|name| escaped(name)).collect()));
        text.push_str("    \\midrule\n");
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

/// Columns below one heading; a column of its own has none.
struct Group<'a> {
    heading: &'a str,
    columns: Range<usize>,
    /// What the columns are called below the heading.
    names: Vec<&'a str>,
}

/// What a column is called whose name is the heading itself, beside that of the paper.
const HERE: &str = "here";
const PAPER: &str = " (paper)";

/// Puts neighbours together whose names begin with the same words: `Mean` and `Mean (paper)`, or `TV x1` and `TV x10`.
fn groups<'a>(names: &[&'a str]) -> Vec<Group<'a>> {
    let mut groups = Vec::new();
    let mut start = 0;
    while start < names.len() {
        let first = names[start];
        let named = |heading: &'a str| {
            let rest = |name: &&'a str| match name.strip_prefix(heading)? {
                // A column and that of the paper; with other words it is another column.
                "" => Some(HERE),
                PAPER => Some(PAPER.trim_start()),
                rest if heading != first => {
                    let rest = rest.strip_prefix(' ')?;
                    (!rest.trim().is_empty()).then_some(rest)
                }
                _ => None,
            };
            names[start..].iter().map_while(rest).collect::<Vec<_>>()
        };
        // The whole name, then ever fewer of its words: the longest that the next one begins with, too.
        let ends = first.match_indices(' ').map(|(at, _)| at).rev();
        let mut headings = std::iter::once(first.len())
            .chain(ends)
            .map(|end| &first[..end])
            .filter(|heading| !heading.is_empty());
        let found = headings.find_map(|heading| {
            let names = named(heading);
            (names.len() > 1).then_some((heading, names))
        });
        let (heading, names) = found.unwrap_or(("", vec![first]));
        let columns = start..start + names.len();
        start = columns.end;
        groups.push(Group {
            heading,
            columns,
            names,
        });
    }
    groups
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
            Place::Spread => {
                let cell = spread(column, &shown[0], row, cell);
                text.push_str(&format!(" $\\pm$ {cell}"));
            }
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
  \label{tab:rates}
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
        assert_eq!(table.latex("tab:rates"), expected);
    }

    #[test]
    fn columns_whose_names_begin_alike_stand_below_one_heading() {
        let names = [
            "policy",
            "Runs",
            "Mean",
            "Mean (paper)",
            "Top-20 Std",
            "TV x1",
            "TV x10",
            "TV x100",
            "p",
            "p (adjusted)",
        ];
        let mut table = Table::new("t");
        for name in names {
            table.number_column(name, 0, [Some(1.0)]);
        }
        let text = table.latex("tab:t");
        let lines: Vec<&str> = text.lines().collect();
        let head = lines
            .iter()
            .position(|line| line.ends_with("\\toprule"))
            .unwrap();
        assert_eq!(
            lines[head + 1..head + 5],
            [
                r"     &  & \multicolumn{2}{c}{Mean} &  & \multicolumn{3}{c}{TV} &  &  \\",
                r"    \cmidrule(lr){3-4} \cmidrule(lr){6-8}",
                r"    policy & Runs & here & (paper) & Top-20 Std & x1 & x10 & x100 & p & p (adjusted) \\",
                r"    \midrule"
            ]
        );
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
