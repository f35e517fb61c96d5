//! What a person may have meant by a word that is nearly a known one.

/// The known word that `word` is one slip away from.
pub(crate) fn slip<'a>(word: &str, mut known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.find(|known| distance(word, known) == 1)
}

/// The known word that `word` is nearest to, unless more than a third of it is different or missing; one that begins with it is near.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = |known: &str| if known.starts_with(word) { 1 } else { distance(word, known) };
    let (distance, known) = known.map(|known| (far(known), known)).min_by_key(|(distance, _)| *distance)?;
    (distance <= (word.chars().count() / 3).max(1)).then_some(known)
}

/// How many letters have to be put in, taken out, changed, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_named_unless_none_is_near() {
        let known = || ["memory", "allow", "repository", "cpus"].into_iter();
        for (word, near) in [("memroy", "memory"), ("repo", "repository"), ("cpu", "cpus"), ("alow", "allow")] {
            assert_eq!(nearest(word, known()), Some(near), "{word}");
        }
        for word in ["colour", "mcp", "x"] {
            assert_eq!(nearest(word, known()), None, "{word}");
        }
    }

    #[test]
    fn a_slip_is_a_letter_more_or_less_or_another_or_two_swapped() {
        for (word, known) in [
            ("statsu", "status"),
            ("dryrun", "dry-run"),
            ("lgos", "logs"),
            ("alow", "allow"),
            ("complteion", "completion"),
        ] {
            assert_eq!(slip(word, [known, "zzz"].into_iter()), Some(known), "{word}");
        }
        for (word, known) in
            [("status", "status"), ("lost", "logs"), ("fix", "git"), ("", "git"), ("explain", "update")]
        {
            assert_eq!(slip(word, [known].into_iter()), None, "{word}");
        }
    }
}
