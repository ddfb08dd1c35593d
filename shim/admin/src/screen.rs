//! The place where answers are printed: a terminal, which has a width and colours, or something else, which has none.
//!
//! Called by: [`super::client`], [`super::print`]. Invariants: control characters of what a pod wrote never reach the terminal;
//! a table is cut only on a terminal, and there at its widest columns; nothing but a terminal gets colours, and none does that
//! `NO_COLOR` (<https://no-color.org>) or `TERM=dumb` keeps from them. Must not know: what is printed.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use anstyle::{AnsiColor, Style};

/// Columns between two cells.
const GAP: usize = 2;
/// The narrowest that a column is cut to.
const NARROWEST: usize = 12;
/// The head of the column whose cells have colours.
const STATE: &str = "STATE";

/// Where answers are printed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Screen {
    /// Columns of a terminal.
    width: Option<usize>,
    colours: bool,
}

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    /// It is as it should be.
    Good,
    /// It may be wrong, or is not yet what it shall be.
    Doubtful,
    /// Somebody should look at it.
    Bad,
    /// It is over.
    Past,
    /// It stands above others.
    Head,
}

impl Colour {
    fn style(self) -> Style {
        match self {
            Self::Good => AnsiColor::Green.on_default(),
            Self::Doubtful => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
            Self::Past => Style::new().dimmed(),
            Self::Head => Style::new().bold(),
        }
    }

    /// The colour of the state of a container.
    fn of_state(state: &str) -> Self {
        match state {
            "running" | "ready" => Self::Good,
            "created" => Self::Doubtful,
            state if state.starts_with("exited 0 ") => Self::Past,
            _ => Self::Bad,
        }
    }
}

impl Screen {
    /// Standard output.
    pub(crate) fn of_output() -> Self {
        let output = io::stdout();
        if !output.is_terminal() {
            return Self::default();
        }
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            width: coracle_sys::terminal::columns(&output).map(usize::from),
            colours: !no_color && !is_dumb,
        }
    }

    /// `text` in its colour, where there are colours.
    pub(crate) fn painted(self, text: &str, colour: Colour) -> String {
        if !self.colours {
            return text.to_owned();
        }
        let style = colour.style();
        format!("{style}{text}{style:#}")
    }

    /// A table whose first row has the heads; no wider than the terminal, if there is one.
    pub(crate) fn table(self, rows: &[Vec<String>]) -> String {
        let heads = rows.first().map_or(&[][..], Vec::as_slice);
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| plain(cell)).collect())
            .collect();
        let widest = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..heads.len()).map(widest).collect();
        if let Some(width) = self.width {
            shrink(&mut widths, width);
        }
        let mut text = String::new();
        for (number, row) in rows.iter().enumerate() {
            let mut line = String::new();
            for ((cell, width), head) in row.iter().zip(&widths).zip(heads) {
                let colour = match number {
                    0 => Some(Colour::Head),
                    _ => (head == STATE).then(|| Colour::of_state(cell)),
                };
                let shown = cut(cell, *width);
                let rest = width - shown.chars().count() + GAP;
                match colour {
                    Some(colour) => line.push_str(&self.painted(&shown, colour)),
                    None => line.push_str(&shown),
                }
                let _ = write!(line, "{:rest$}", "");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `text` without control characters.
pub(crate) fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(shown).collect()
}

/// `json`, which is on one line, without the characters that a terminal obeys and JSON has no need to escape: those of control
/// beyond ASCII's first, and those that turn the direction of text (Unicode, UAX #9).
pub(crate) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match turns || character.is_control() {
            true => text += &format!("\\u{:04x}", u32::from(character)),
            false => text.push(character),
        }
    }
    text
}

/// Makes the widest columns narrower until all fit.
fn shrink(widths: &mut [usize], width: usize) {
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len();
    while total(widths) > width + GAP {
        let Some(widest) = widths.iter_mut().max() else {
            return;
        };
        if *widest <= NARROWEST {
            return;
        }
        *widest -= 1;
    }
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLOURED: Screen = Screen {
        width: Some(80),
        colours: true,
    };

    fn at(width: usize) -> Screen {
        Screen {
            width: Some(width),
            colours: false,
        }
    }

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        let row = |row: &&[&str]| row.iter().map(|cell| (*cell).to_owned()).collect();
        cells.iter().map(row).collect()
    }

    #[test]
    fn json_moves_no_terminal_and_says_the_same() {
        let said = "\u{9b}31m\u{202e}\u{7f}\u{1b}]0;x\u{7}\n\u{e4}\\";
        let text = escaped(&serde_json::Value::from(said).to_string());
        assert!(!text.chars().any(char::is_control) && !text.contains('\u{202e}'));
        assert!(
            text.contains('\u{e4}') && text.contains("\\u009b31m"),
            "{text}"
        );
        let read = serde_json::from_str::<String>(&text);
        assert_eq!(read.ok().as_deref(), Some(said));
    }

    #[test]
    fn a_table_is_cut_only_where_there_is_a_width() {
        let rows = rows(&[
            &["A", "IMAGE"],
            &["x", "registry.example/a/very/long/name:v1"],
        ]);
        let whole = Screen::default().table(&rows);
        assert_eq!(whole, "A  IMAGE\nx  registry.example/a/very/long/name:v1\n");
        let cut = at(20).table(&rows);
        assert!(cut.lines().all(|line| line.chars().count() <= 20), "{cut}");
        assert!(cut.contains("registry.example…"), "{cut}");
        // A terminal may be narrower than any table.
        assert!(at(3).table(&rows).lines().count() == 2);
    }

    #[test]
    fn what_a_pod_wrote_cannot_steer_the_terminal() {
        let rows = rows(&[&["A"], &["\u{1b}[2Jx\ny"]]);
        assert_eq!(Screen::default().table(&rows), "A\n?[2Jx?y\n");
    }

    #[test]
    fn heads_and_states_have_colours_and_take_no_more_room_for_them() {
        let rows = rows(&[
            &["POD", "STATE", "NOTE"],
            &["a", "running", "running"],
            &["b", "exited 0 (Completed)", ""],
            &["c", "exited 1 (Error)", ""],
        ]);
        let text = COLOURED.table(&rows);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("\u{1b}[1mPOD\u{1b}[0m  "), "{text:?}");
        assert!(lines[1].contains("\u{1b}[32mrunning\u{1b}[0m"), "{text:?}");
        assert!(lines[1].ends_with("  running"), "{text:?}");
        assert!(lines[2].contains("\u{1b}[2mexited 0"), "{text:?}");
        assert!(lines[3].contains("\u{1b}[31mexited 1"), "{text:?}");
        let mut bare = text.clone();
        for code in [
            "\u{1b}[0m",
            "\u{1b}[1m",
            "\u{1b}[2m",
            "\u{1b}[31m",
            "\u{1b}[32m",
        ] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, Screen::default().table(&rows));
    }
}
