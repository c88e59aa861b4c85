//! PTX text to tokens.
//!
//! A dotted name with its modifiers (`ld.global.L1::no_allocate.v4.b32`) is one [`Token::Word`]: instruction
//! names are looked up as a whole, and splitting them is left to who needs the parts. A directive ends at the
//! next dot: `.reg.b16` is `.reg` and `.b16`, however they are written.

use crate::fault::LoadError;

/// A token, with the text it was read from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// Identifier, register, directive or dotted instruction name.
    Word(&'a str),
    /// Integer constant.
    Int(i128),
    /// `0f` constant: bits of an f32.
    F32(u32),
    /// `0d` or decimal constant: bits of an f64.
    F64(u64),
    /// String without its quotes.
    Text(&'a str),
    /// One character of punctuation.
    Punct(u8),
    /// End of the text.
    End,
}

/// Reads tokens off a text.
#[derive(Clone)]
pub struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

/// Builds an error at a line of a text.
pub fn error_at(text: &str, line: u32, reason: impl Into<String>) -> LoadError {
    let shown = text.lines().nth((line as usize).saturating_sub(1)).unwrap_or("").trim();
    LoadError { line, text: shown.to_string(), reason: reason.into() }
}

fn is_word_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || matches!(b, b'_' | b'$' | b'%' | b'.')
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning of `text`.
    pub fn new(text: &'a str) -> Self {
        Lexer { text, at: 0, line: 1 }
    }

    /// The whole text.
    pub fn text(&self) -> &'a str {
        self.text
    }

    fn skip_blank(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(&b) = bytes.get(self.at) {
            match b {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'/' if bytes.get(self.at + 1) == Some(&b'/') => {
                    while bytes.get(self.at).is_some_and(|&b| b != b'\n') {
                        self.at += 1;
                    }
                }
                b'/' if bytes.get(self.at + 1) == Some(&b'*') => {
                    self.at += 2;
                    while self.at < bytes.len() && !bytes[self.at..].starts_with(b"*/") {
                        self.line += u32::from(bytes[self.at] == b'\n');
                        self.at += 1;
                    }
                    self.at = (self.at + 2).min(bytes.len());
                }
                _ => break,
            }
        }
    }

    /// The next token and its line.
    pub fn next(&mut self) -> Result<(Token<'a>, u32), LoadError> {
        self.skip_blank();
        let bytes = self.text.as_bytes();
        let (start, line) = (self.at, self.line);
        let Some(&b) = bytes.get(start) else { return Ok((Token::End, line)) };
        let token = if is_word_start(b) {
            self.at += 1;
            let directive = b == b'.';
            while let Some(&b) = bytes.get(self.at) {
                if is_word(b) && !(directive && b == b'.') {
                    self.at += 1;
                } else if b == b':' && bytes.get(self.at + 1) == Some(&b':') {
                    self.at += 2;
                } else {
                    break;
                }
            }
            Token::Word(&self.text[start..self.at])
        } else if b.is_ascii_digit() {
            self.number()?
        } else if b == b'"' {
            self.at += 1;
            while bytes.get(self.at).is_some_and(|&b| b != b'"' && b != b'\n') {
                self.at += 1;
            }
            if bytes.get(self.at) != Some(&b'"') {
                return Err(error_at(self.text, line, "unterminated string"));
            }
            self.at += 1;
            Token::Text(&self.text[start + 1..self.at - 1])
        } else if b.is_ascii_punctuation() {
            self.at += 1;
            Token::Punct(b)
        } else {
            return Err(error_at(self.text, line, format!("unexpected byte {b:#04x}")));
        };
        Ok((token, line))
    }

    fn number(&mut self) -> Result<Token<'a>, LoadError> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let decimal =
            !matches!(bytes.get(start + 1), Some(b'x' | b'X' | b'f' | b'F' | b'd' | b'D' | b'b' | b'B'));
        while let Some(&b) = bytes.get(self.at) {
            let exponent_sign =
                decimal && matches!(b, b'+' | b'-') && matches!(bytes[self.at - 1], b'e' | b'E');
            if b.is_ascii_alphanumeric() || b == b'.' || exponent_sign {
                self.at += 1;
            } else {
                break;
            }
        }
        let word = &self.text[start..self.at];
        let digits = word.strip_suffix('U').unwrap_or(word);
        let hex = |prefix: usize| i128::from_str_radix(&digits[prefix..], 16).ok();
        let token = match bytes.get(start + 1) {
            _ if digits == "0" => Some(Token::Int(0)),
            Some(b'x' | b'X') if bytes[start] == b'0' => hex(2).map(Token::Int),
            Some(b'f' | b'F') if digits.len() == 10 => hex(2).map(|v| Token::F32(v as u32)),
            Some(b'd' | b'D') if digits.len() == 18 => hex(2).map(|v| Token::F64(v as u64)),
            Some(b'b' | b'B') if bytes[start] == b'0' => {
                i128::from_str_radix(&digits[2..], 2).ok().map(Token::Int)
            }
            _ if digits.contains(['.', 'e', 'E']) => {
                digits.parse::<f64>().ok().map(|v| Token::F64(v.to_bits()))
            }
            _ if digits.starts_with('0') => i128::from_str_radix(digits, 8).ok().map(Token::Int),
            _ => digits.parse().ok().map(Token::Int),
        };
        token.ok_or_else(|| error_at(self.text, self.line, format!("malformed number `{word}`")))
    }

    /// Skips to the `}` that matches a `{` already read.
    pub fn skip_braces(&mut self) -> Result<(), LoadError> {
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                (Token::Punct(b'{'), _) => depth += 1,
                (Token::Punct(b'}'), _) => depth -= 1,
                (Token::End, line) => return Err(error_at(self.text, line, "missing `}`")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Skips to the end of the current line.
    pub fn skip_line(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    }
}
