//! Tables as Markdown, for pages that show it.
//!
//! Cells come from outside: completions, labels. What they say is shown, not obeyed: no tag, no image and no link of
//! theirs is one on the page.

use super::Table;

impl Table {
    /// Returns the table as Markdown.
    pub fn markdown(&self) -> String {
        let shown = self.shown();
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let headings = shown.iter().map(|columns| cell(&columns[0].name));
        let rules = shown.iter().map(|columns| {
            let rule = if columns[0].is_number() {
                "---:"
            } else {
                "---"
            };
            rule.to_owned()
        });
        let mut text = format!(
            "**{}**\n\n{}{}",
            plain(&self.title),
            line(headings.collect()),
            line(rules.collect())
        );
        for row in 0..self.height() {
            let cells = shown.iter().map(|columns| cell(&Self::cell(columns, row)));
            text.push_str(&line(cells.collect()));
        }
        for note in &self.notes {
            text.push_str(&format!("\n{}\n", plain(note)));
        }
        text
    }
}

/// A text as a cell of one line.
pub fn cell(text: &str) -> String {
    plain(text)
        .replace('|', "\\|")
        .replace("\r\n", "<br>")
        .replace(['\n', '\r'], "<br>")
}

/// A text in which nothing is a tag, an entity, a link or an image, by the rules of CommonMark (6.2, 6.3, 6.4, 6.6).
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut signs = text.chars().peekable();
    while let Some(sign) = signs.next() {
        let begins = |further: &str| {
            let next = signs.clone().next();
            next.is_some_and(|next| next.is_ascii_alphabetic() || further.contains(next))
        };
        match sign {
            '<' if begins("/!?") => plain.push_str("&lt;"),
            '&' if begins("#") => plain.push_str("&amp;"),
            ']' if signs.peek() == Some(&'(') => plain.push_str("\\]"),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_shown_as_they_are() {
        let mut table = Table::new("Table 1");
        table.notes.push("a note".to_owned());
        let cells = [
            ("a|b", "a\\|b"),
            ("one\ntwo\r\nthree", "one<br>two<br>three"),
            (
                "<script>alert(1)</script>",
                "&lt;script>alert(1)&lt;/script>",
            ),
            ("<!-- a -->", "&lt;!-- a -->"),
            (
                "&lt;b&#62; R&D & 1 < 2 <3",
                "&amp;lt;b&amp;#62; R&amp;D & 1 < 2 <3",
            ),
            (
                "![x](https://host/x.png) [a] (b)",
                "![x\\](https://host/x.png) [a] (b)",
            ),
        ];
        table.text_column("policy", cells.map(|(text, _)| Some(text.to_owned())));
        table.number_column("mean", 3, cells.map(|_| Some(0.12345)));
        let rows: String = cells
            .map(|(_, shown)| format!("| {shown} | 0.123 |\n"))
            .concat();
        assert_eq!(
            table.markdown(),
            format!("**Table 1**\n\n| policy | mean |\n| --- | ---: |\n{rows}\na note\n")
        );
    }
}
