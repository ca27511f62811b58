//! Just enough of Rust's grammar for the rules: comments and literals blanked out, tokens with their lines, functions,
//! and the ranges that only tests are built from.
//!
//! Used by `code` and `pages`. Not a parser: what it cannot make sense of it passes over, and the compiler complains.

use std::ops::RangeInclusive;

/// A word or a single punctuation character, and its line (counted from one).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// Its line.
    pub line: usize,
}

/// A function with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// From the line of `fn` to the line of the closing brace.
    pub lines: RangeInclusive<usize>,
}

/// A Rust file taken apart.
pub struct Source {
    tokens: Vec<Token>,
    test_lines: Vec<RangeInclusive<usize>>,
    is_test: bool,
}

impl Source {
    /// Takes a file apart.
    pub fn new(path: &str, text: &str) -> Source {
        let tokens = tokens(&mask(text));
        let test_lines = test_modules(&tokens);
        Source { tokens, test_lines, is_test: is_test_path(path) }
    }

    /// Tokens outside comments and literals.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Whether the whole file is test code.
    pub fn is_test(&self) -> bool {
        self.is_test
    }

    /// Whether a line is test code.
    pub fn in_test(&self, line: usize) -> bool {
        self.is_test || self.test_lines.iter().any(|range| range.contains(&line))
    }

    /// Lines inside `#[cfg(test)] mod … { … }`.
    pub fn test_line_count(&self) -> usize {
        self.test_lines.iter().map(|range| range.end() + 1 - range.start()).sum()
    }

    /// Lines on which `pattern` begins; it is split into tokens like the code (`Instant::now`).
    pub fn lines_with(&self, pattern: &str) -> Vec<usize> {
        let wanted = tokens(pattern);
        let same = |window: &[Token]| window.iter().zip(&wanted).all(|(a, b)| a.text == b.text);
        self.tokens.windows(wanted.len().max(1)).filter(|w| same(w)).map(|w| w[0].line).collect()
    }

    /// Functions with a body, nested ones included.
    pub fn functions(&self) -> Vec<Function> {
        (0..self.tokens.len()).filter_map(|at| self.function_at(at)).collect()
    }

    fn function_at(&self, at: usize) -> Option<Function> {
        let name = self.tokens.get(at + 1).filter(|name| is_word(&name.text))?;
        if self.tokens[at].text != "fn" {
            return None;
        }
        let open = body(&self.tokens, at + 2)?;
        let close = matching(&self.tokens, open)?;
        let lines = self.tokens[at].line..=self.tokens[close].line;
        Some(Function { name: name.text.clone(), lines })
    }
}

/// The index of the brace that opens a function's body; `None` for a declaration without one.
fn body(tokens: &[Token], from: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text.as_str() {
            "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            ";" if depth == 0 => return None,
            "{" if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

/// The index of the brace that closes the one at `open`.
fn matching(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn test_modules(tokens: &[Token]) -> Vec<RangeInclusive<usize>> {
    (0..tokens.len()).filter_map(|at| test_module_at(tokens, at)).collect()
}

fn test_module_at(tokens: &[Token], at: usize) -> Option<RangeInclusive<usize>> {
    let text = |at: usize| tokens.get(at).map(|token| token.text.as_str());
    if (text(at), text(at + 1), text(at + 2)) != (Some("#"), Some("["), Some("cfg")) {
        return None;
    }
    let end = attribute_end(tokens, at)?;
    let for_tests = tokens[at..end].windows(2).any(|w| w[1].text == "test" && matches!(w[0].text.as_str(), "(" | ","));
    let mut next = end + 1;
    while text(next) == Some("#") {
        next = attribute_end(tokens, next)? + 1;
    }
    let is_module = text(next) == Some("mod") && text(next + 2) == Some("{");
    (for_tests && is_module).then(|| matching(tokens, next + 2).map(|close| tokens[at].line..=tokens[close].line))?
}

/// The index of the `]` that ends the attribute at `at`.
fn attribute_end(tokens: &[Token], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(at + 1) {
        match token.text.as_str() {
            "[" => depth += 1,
            "]" => depth = depth.checked_sub(1)?,
            _ => continue,
        }
        if depth == 0 {
            return Some(index);
        }
    }
    None
}

/// Examples are suites that run inside guests, against a real kernel.
fn is_test_path(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let by_name = name.ends_with("_tests.rs") || ["tests.rs", "testing.rs"].contains(&name);
    by_name || path.split('/').any(|part| ["tests", "examples"].contains(&part))
}

fn is_word(text: &str) -> bool {
    text.starts_with(is_word_char)
}

fn is_word_char(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Words and single characters of a text, with their lines.
fn tokens(text: &str) -> Vec<Token> {
    let mut found: Vec<Token> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_word_char(first) {
                rest.find(|c| !is_word_char(c)).unwrap_or(rest.len())
            } else {
                first.len_utf8()
            };
            found.push(Token { text: rest[..length].to_string(), line: index + 1 });
            rest = rest[length..].trim_start();
        }
    }
    found
}

/// The same text with comments and literals turned into blanks; line breaks stay.
pub fn mask(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut masked = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        match end_of_opaque(&chars, at) {
            Some(end) => {
                let end = end.clamp(at + 1, chars.len());
                masked.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
                at = end;
            }
            None => {
                masked.push(chars[at]);
                at += 1;
            }
        }
    }
    masked
}

/// One past the end of the comment or literal that begins at `at`; `None` when none begins there.
fn end_of_opaque(chars: &[char], at: usize) -> Option<usize> {
    let next = chars.get(at + 1).copied();
    match chars[at] {
        '/' if next == Some('/') => Some(find(chars, at, '\n')),
        '/' if next == Some('*') => Some(end_of_block_comment(chars, at)),
        '"' => Some(end_of_string(chars, at)),
        'r' => end_of_raw_string(chars, at),
        '\'' if next == Some('\\') => Some(find(chars, at + 3, '\'') + 1),
        // Anything else that is not closed after one character is a lifetime or a label.
        '\'' if chars.get(at + 2) == Some(&'\'') => Some(at + 3),
        _ => None,
    }
}

fn find(chars: &[char], from: usize, wanted: char) -> usize {
    (from..chars.len()).find(|at| chars[*at] == wanted).unwrap_or(chars.len())
}

fn end_of_block_comment(chars: &[char], at: usize) -> usize {
    let mut depth = 0usize;
    let mut at = at;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], at: usize) -> usize {
    let mut at = at + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn end_of_raw_string(chars: &[char], at: usize) -> Option<usize> {
    // `r` ends an identifier more often than it begins a literal; `b` and `c` may stand before it.
    let before = at.checked_sub(1).map(|before| chars[before]);
    if before.is_some_and(|c| is_word_char(c) && !matches!(c, 'b' | 'c')) {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return None;
    }
    let closing =
        |at: &usize| chars[*at] == '"' && chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    Some((at + 2 + hashes..chars.len()).find(closing).map_or(chars.len(), |quote| quote + 1 + hashes))
}
