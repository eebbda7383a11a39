//! Text in columns.

/// Which side of its column a text stands on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// Rows of columns, two spaces apart. Colours take no room.
pub fn aligned(rows: impl Iterator<Item = Vec<String>>, sides: &[Side]) -> String {
    let rows: Vec<Vec<String>> = rows.collect();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|text| shown(text)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..sides.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((text, side), width) in row.iter().zip(sides).zip(&widths) {
            let space = " ".repeat(width - shown(text));
            match side {
                Side::Left => line.extend(["  ", text, &space]),
                Side::Right => line.extend(["  ", &space, text]),
            }
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// Characters that take room on a terminal: all but colour sequences.
fn shown(text: &str) -> usize {
    let mut n = 0;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            chars.by_ref().find(|&c| c == 'm');
        } else {
            n += 1;
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_one_another_whatever_their_colour() {
        let rows = [vec!["\x1b[1ma\x1b[0m".to_owned(), "1".to_owned()], vec!["long".to_owned(), "12".to_owned()]];
        let text = aligned(rows.into_iter(), &[Side::Left, Side::Right]);
        assert_eq!(text, "  \x1b[1ma\x1b[0m      1\n  long  12\n");
    }
}
