//! Patterns of module names, by which a config's quantisation section says what a rule is for.
//!
//! | written | in | matches |
//! |---|---|---|
//! | a name | all | the module of that name |
//! | `re:...` | compressed-tensors, Quark | names that begin so, as the expression says |
//! | an expression | transformers' `modules_to_not_convert` | a module and all inside it, or the end of a name |
//! | `*`, `?` | Quark, ModelOpt | names, as in a shell |

use fancy_regex::{Regex, RegexBuilder};

/// A pattern of module names.
pub(super) enum Pattern {
    /// The name itself.
    Name(String),
    /// compressed-tensors' `re:`, matched from the name's beginning.
    Regex(Box<Regex>),
    /// transformers': a module and all inside it, if the text is an expression; or the end of a name.
    Module { inside: Option<Box<Regex>>, end: String },
}

/// A regular expression from a config, with limits to the memory of its machine and to the steps that it
/// backtracks.
fn regex(expression: &str) -> Result<Box<Regex>, fancy_regex::Error> {
    let mut builder = RegexBuilder::new(expression);
    builder.delegate_size_limit(1 << 20).delegate_dfa_size_limit(1 << 20).backtrack_limit(100_000);
    builder.build().map(Box::new)
}

impl Pattern {
    /// `re:...` is a regular expression; anything else a name.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        match text.strip_prefix("re:") {
            Some(expression) => regex(&format!("^(?:{expression})"))
                .map(Pattern::Regex)
                .map_err(|e| format!("\"{text}\" is not a regular expression: {e}")),
            None => Ok(Pattern::Name(text.to_owned())),
        }
    }

    /// What transformers has in `modules_to_not_convert`: a regular expression, mostly a name, for the module
    /// and all inside it; or the end of a name. `re:...` is as ever.
    pub fn module(text: &str) -> Result<Pattern, String> {
        if text.starts_with("re:") {
            return Pattern::parse(text);
        }
        let inside = regex(&format!(r"^(?:{text})(?:(?<=\.)|(?=\.|$))")).ok();
        Ok(Pattern::Module { inside, end: text.to_owned() })
    }

    /// `re:...`, or a shell pattern.
    pub fn quark(text: &str) -> Result<Pattern, String> {
        if text.starts_with("re:") { Pattern::parse(text) } else { Pattern::glob(text) }
    }

    /// A shell pattern, `*` and `?`.
    pub fn glob(text: &str) -> Result<Pattern, String> {
        let mut expression = String::from("^(?:");
        for c in text.chars() {
            match c {
                '*' => expression.push_str(".*"),
                '?' => expression.push('.'),
                c => expression.push_str(&fancy_regex::escape(c.encode_utf8(&mut [0; 4]))),
            }
        }
        expression.push_str(")$");
        regex(&expression).map(Pattern::Regex).map_err(|e| format!("\"{text}\" is not a pattern: {e}"))
    }

    /// Whether it is the name of `module`, or matches it. An expression that reaches its limit of steps is an
    /// error.
    fn matches(&self, module: &str) -> Result<bool, String> {
        match self {
            Pattern::Name(name) => Ok(name == module),
            Pattern::Module { end, .. } if !end.is_empty() && module.ends_with(end) => Ok(true),
            Pattern::Module { inside: None, .. } => Ok(false),
            Pattern::Regex(regex) | Pattern::Module { inside: Some(regex), .. } => {
                regex.is_match(module).map_err(|e| format!("{}: on {module}: {e}", regex.as_str()))
            }
        }
    }
}

/// Whether one of the patterns matches.
pub(super) fn any(patterns: &[Pattern], module: &str) -> Result<bool, String> {
    for pattern in patterns {
        if pattern.matches(module)? {
            return Ok(true);
        }
    }
    Ok(false)
}
