//! Writes one HTML document, in which all text is text.
//!
//! Called by: [`super`]. Invariant: nothing that is written here gets into the document but through [`text`], so that no name
//! can open an element, an attribute or a comment, turn the direction of what follows, or grow without a bound.
//! Must not know: what the document says.

/// The longest text of one cell, in characters.
const MOST_CHARS: usize = 512;
/// Seconds after which a browser asks again.
const REFRESH_S: u32 = 10;
const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:90em;padding:0 1em;color:#1c2733}\
h1{font-size:1.3em}h2{font-size:1.05em;margin-top:2em}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.25em 1em .25em 0;border-bottom:1px solid #dde3e8;vertical-align:top;overflow-wrap:anywhere}\
th{color:#5a6b7b;font-weight:500}.ready{color:#10743c}.notready{color:#b3261e}p.note,p.none{color:#5a6b7b}";

/// A document that is being written.
pub(super) struct Document(String);

impl Document {
    /// Begins a document with this title.
    pub fn begin(title: &str) -> Document {
        let title = text(title);
        Document(format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta http-equiv=\"refresh\" content=\"{REFRESH_S}\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        ))
    }

    /// The most important line.
    pub fn verdict(&mut self, line: &str, is_good: bool) {
        let class = if is_good { "ready" } else { "notready" };
        let line = text(line);
        self.push(&format!(
            "<p class=\"{class}\"><strong>{line}</strong></p>\n"
        ));
    }

    /// A list; nothing without items.
    pub fn list(&mut self, items: &[String]) {
        if items.is_empty() {
            return;
        }
        self.push("<ul>");
        for item in items {
            self.push(&format!("<li>{}</li>", text(item)));
        }
        self.push("</ul>\n");
    }

    /// The head of a part.
    pub fn heading(&mut self, line: &str) {
        self.push(&format!("<h2>{}</h2>\n", text(line)));
    }

    /// A remark.
    pub fn note(&mut self, line: &str) {
        self.push(&format!("<p class=\"note\">{}</p>\n", text(line)));
    }

    /// A table; without rows a word for that.
    pub fn table(&mut self, heads: &[&str], rows: &[Vec<String>]) {
        if rows.is_empty() {
            return self.push("<p class=\"none\">none</p>\n");
        }
        self.push("<table>\n");
        if !heads.is_empty() {
            self.row("th", heads.iter().copied());
        }
        for row in rows {
            self.row("td", row.iter().map(String::as_str));
        }
        self.push("</table>\n");
    }

    fn row<'a>(&mut self, element: &'static str, cells: impl Iterator<Item = &'a str>) {
        self.push("<tr>");
        for cell in cells {
            self.push(&format!("<{element}>{}</{element}>", text(cell)));
        }
        self.push("</tr>\n");
    }

    /// Ends the document.
    pub fn end(mut self) -> String {
        self.push("</body></html>\n");
        self.0
    }

    fn push(&mut self, written: &str) {
        self.0.push_str(written);
    }
}

/// `source` as text of the document, cut if it is long.
fn text(source: &str) -> String {
    let mut written = String::new();
    let mut characters = source.chars();
    for character in characters.by_ref().take(MOST_CHARS) {
        match character {
            '&' => written.push_str("&amp;"),
            '<' => written.push_str("&lt;"),
            '>' => written.push_str("&gt;"),
            '"' => written.push_str("&quot;"),
            '\'' => written.push_str("&#39;"),
            other if other.is_control() || turns_text(other) => written.push('\u{fffd}'),
            other => written.push(other),
        }
    }
    if characters.next().is_some() {
        written.push('…');
    }
    written
}

/// Whether it changes the direction of the text around it. Source: Unicode, UAX #9.
fn turns_text(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(
            text("<script>alert('x' & \"y\")</script>"),
            "&lt;script&gt;alert(&#39;x&#39; &amp; &quot;y&quot;)&lt;/script&gt;"
        );
        assert_eq!(text("a\u{202e}b\nc\0"), "a\u{fffd}b\u{fffd}c\u{fffd}");
        let long = text(&"<".repeat(1_000));
        assert_eq!(long, "&lt;".repeat(MOST_CHARS) + "…");
    }

    #[test]
    fn whatever_is_written_opens_only_the_elements_of_this_file() {
        let evil = "</td></table><img src=x onerror=alert(1)><!--".to_owned();
        let mut page = Document::begin(&evil);
        page.verdict(&evil, false);
        page.list(std::slice::from_ref(&evil));
        page.heading(&evil);
        page.note(&evil);
        page.table(&[&evil], &[vec![evil.clone()]]);
        let page = page.end();
        let opened = page.split('<').skip(1);
        for tag in opened {
            let mut parts = tag.split(|c: char| !c.is_ascii_alphanumeric() && c != '/' && c != '!');
            let name = parts.next().unwrap_or_default();
            let known = [
                "!DOCTYPE", "html", "head", "meta", "title", "style", "body", "h1", "h2", "p",
                "strong", "ul", "li", "table", "tr", "th", "td",
            ];
            assert!(known.contains(&name.trim_start_matches('/')), "<{tag}");
        }
        assert_eq!(page.matches("<table>").count(), 1);
        assert_eq!(page.matches("</table>").count(), 1);
    }
}
