//! Patterns of module names, as `quantization_config` has them.
//!
//! | who writes them | what they are |
//! |---|---|
//! | compressed-tensors | a name, or `re:` and an expression, matched from the name's beginning |
//! | transformers | an expression, mostly a name, for a module and all inside it; or the end of a name |
//! | ModelOpt | a shell pattern |
//! | Quark | a shell pattern, or `re:` as above |
//!
//! Expressions are Python's, read by `regex-lite`, which matches in linear time and has no look-around. What
//! configs have of it is looking ahead at the beginning, `re:^(?!.*experts).*$`: all but the experts. Matched
//! from the beginning, that is a condition beside the rest of the expression:
//!
//! ```text
//!   (?!A)(?=B)C|D    matches    (not A, and B, and C) or D    each from the beginning
//! ```
//!
//! Look-around elsewhere is refused. `\d`, `\w`, `\s`, `\b` and `(?i)` know ASCII alone.

use regex_lite::{Regex, RegexBuilder};

/// A pattern of module names.
pub(super) enum Pattern {
    /// The name itself.
    Name(String),
    Expression(Expression),
    /// transformers': a module and all inside it, if the text is an expression; or the end of a name.
    Module {
        inside: Option<Expression>,
        end: String,
    },
}

impl Pattern {
    /// `re:...` is a regular expression; anything else a name.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        match text.strip_prefix("re:") {
            Some(expression) => Expression::parse(expression, "")
                .map(Pattern::Expression)
                .map_err(|e| format!("\"{text}\" is not a regular expression that can be read: {e}")),
            None => Ok(Pattern::Name(text.to_owned())),
        }
    }

    /// What transformers has in `modules_to_not_convert`: a regular expression, mostly a name, for the module
    /// and all inside it; or the end of a name. `re:...` is as ever. With a point at its end it stands for
    /// what is inside alone.
    pub fn module(text: &str) -> Result<Pattern, String> {
        if text.starts_with("re:") {
            return Pattern::parse(text);
        }
        let of_module = Expression::parse(text, r"(?:\.|$)");
        if of_module.is_err() && has_look_around(text) {
            return Err(format!("\"{text}\" is not a regular expression that can be read: it looks around"));
        }
        let stem = text.strip_suffix('.').map(|stem| stem.strip_suffix('\\').unwrap_or(stem));
        let inside = match (of_module, stem.map(|stem| Expression::parse(stem, r"\."))) {
            (Ok(module), Some(Ok(inside))) => Some(module.or(inside)),
            (module, _) => module.ok(),
        };
        Ok(Pattern::Module { inside, end: text.to_owned() })
    }

    /// `re:...`, or a shell pattern.
    pub fn quark(text: &str) -> Result<Pattern, String> {
        if text.starts_with("re:") { Pattern::parse(text) } else { Pattern::glob(text) }
    }

    /// A shell pattern, `*` and `?`.
    pub fn glob(text: &str) -> Result<Pattern, String> {
        let mut expression = String::new();
        for c in text.chars() {
            match c {
                '*' => expression.push_str(".*"),
                '?' => expression.push('.'),
                c => expression.push_str(&regex_lite::escape(c.encode_utf8(&mut [0; 4]))),
            }
        }
        let all = |regex| Expression(vec![Alternative { ahead: Vec::new(), rest: regex }]);
        regex(&expression, "$")
            .map(|regex| Pattern::Expression(all(regex)))
            .map_err(|e| format!("\"{text}\" is not a pattern: {e}"))
    }

    /// Whether it is the name of `module`, or matches it.
    pub fn matches(&self, module: &str) -> bool {
        match self {
            Pattern::Name(name) => name == module,
            Pattern::Expression(expression) => expression.matches(module),
            Pattern::Module { inside, end } => {
                (!end.is_empty() && module.ends_with(end))
                    || inside.as_ref().is_some_and(|inside| inside.matches(module))
            }
        }
    }
}

/// A regular expression, matched from the beginning: one of its alternatives.
pub(super) struct Expression(Vec<Alternative>);

struct Alternative {
    /// What it looks ahead at: whether that must match or must not.
    ahead: Vec<(bool, Regex)>,
    rest: Regex,
}

impl Expression {
    /// `expression`, and `end` behind it.
    fn parse(expression: &str, end: &str) -> Result<Expression, String> {
        if !has_look_around(expression) {
            return Ok(Expression(vec![Alternative { ahead: Vec::new(), rest: regex(expression, end)? }]));
        }
        alternatives(expression)
            .into_iter()
            .map(|text| Alternative::parse(text, end))
            .collect::<Result<_, _>>()
            .map(Expression)
    }

    fn or(mut self, other: Expression) -> Expression {
        self.0.extend(other.0);
        self
    }

    fn matches(&self, module: &str) -> bool {
        self.0.iter().any(|alternative| {
            alternative.ahead.iter().all(|(must, ahead)| ahead.is_match(module) == *must)
                && alternative.rest.is_match(module)
        })
    }
}

impl Alternative {
    fn parse(text: &str, end: &str) -> Result<Alternative, String> {
        let (mut ahead, mut rest) = (Vec::new(), text.trim_start_matches('^'));
        while let Some(must) = ["(?!", "(?="].iter().position(|start| rest.starts_with(start)) {
            let close = closing(rest).ok_or("a parenthesis is not closed")?;
            ahead.push((must == 1, regex(&rest["(?!".len()..close], "")?));
            rest = rest[close + 1..].trim_start_matches('^');
        }
        Ok(Alternative { ahead, rest: regex(rest, end)? })
    }
}

/// `expression` from the beginning, and `end`; with a limit to its memory, as it comes from a file.
fn regex(expression: &str, end: &str) -> Result<Regex, String> {
    if has_look_around(expression) {
        return Err("it looks around, and not ahead at its beginning".into());
    }
    let mut builder = RegexBuilder::new(&format!("^(?:{expression}){end}"));
    builder.size_limit(1 << 20).build().map_err(|e| e.to_string())
}

/// Whether it looks ahead or behind.
fn has_look_around(expression: &str) -> bool {
    let starts =
        |at: usize| ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|start| expression[at..].starts_with(start));
    marks(expression).iter().any(|&(at, mark)| mark == '(' && starts(at))
}

/// The alternatives of an expression: what lies between its outermost `|`.
fn alternatives(expression: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0_i32, 0, Vec::new());
    for (at, mark) in marks(expression) {
        match mark {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 => {
                found.push(&expression[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&expression[start..]);
    found
}

/// Where the parenthesis closes that an expression begins with.
fn closing(expression: &str) -> Option<usize> {
    let mut depth = 0_i32;
    let mut parentheses = marks(expression).into_iter().filter(|(_, mark)| *mark != '|');
    let close = parentheses.find(|(_, mark)| {
        depth += if *mark == '(' { 1 } else { -1 };
        depth == 0
    });
    close.map(|(at, _)| at)
}

/// Where `(`, `)` and `|` stand, but for those that are escaped or in a class.
fn marks(expression: &str) -> Vec<(usize, char)> {
    let (mut marks, mut class) = (Vec::new(), None);
    let mut chars = expression.char_indices();
    while let Some((at, c)) = chars.next() {
        match (c, class) {
            ('\\', _) => drop(chars.next()),
            ('[', None) => class = Some(at),
            // The first of a class is one of its characters.
            (']', Some(start)) if !["[", "[^"].contains(&&expression[start..at]) => class = None,
            ('(' | ')' | '|', None) => marks.push((at, c)),
            _ => {}
        }
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPERT: &str = "model.layers.3.mlp.experts.7.up_proj";
    const ATTENTION: &str = "model.layers.3.self_attn.q_proj";
    const SHARED: &str = "model.layers.3.mlp.shared_experts.up_proj";

    /// Which of the three names `pattern` matches.
    fn of_three(pattern: Result<Pattern, String>) -> [bool; 3] {
        let pattern = pattern.expect("a pattern");
        [EXPERT, ATTENTION, SHARED].map(|module| pattern.matches(module))
    }

    /// What configs have, with what Python's `re.match` answers.
    #[test]
    fn expressions() {
        for (text, matches) in [
            ("re:.*mlp.gate$", [false; 3]),
            ("re:.*experts", [true, false, true]),
            (r"re:.*\.experts\.\d+\.(gate|up|down)_proj$", [true, false, false]),
            ("re:experts", [false; 3]),
            ("re:^model", [true; 3]),
            // Looking ahead.
            ("re:^(?!.*experts).*$", [false, true, false]),
            ("re:(?!.*self_attn).*proj", [true, false, true]),
            (r"re:^(?!.*\.mlp\.experts(?:\.|$)).*$", [false, true, true]),
            ("re:^(?!.*(?:self_attn|shared_experts)).*$", [true, false, false]),
            ("re:(?!.*attn)(?=.*[.]experts[.])model", [true, false, false]),
            // It is of its alternative alone.
            ("re:(?!.*experts).*up_proj|.*q_proj", [false, true, false]),
            ("re:.*self|(?!.*[)|(]).*shared", [false, true, true]),
            (r"re:(?!.*[]\])]|.*\)|.*q).*proj", [true, false, true]),
            // A flag is of all alternatives.
            ("re:(?i)MODEL.*Q_PROJ|.*SHARED", [false, true, true]),
            // Linear, where machines that backtrack take as many steps as there are subsets.
            ("re:(a|b|[a-z._0-9])*(a|b|[a-z._0-9])*!", [false; 3]),
        ] {
            assert_eq!(of_three(Pattern::parse(text)), matches, "{text}");
        }
    }

    #[test]
    fn other_patterns() {
        assert_eq!(of_three(Pattern::parse(EXPERT)), [true, false, false]);
        assert_eq!(of_three(Pattern::glob("*.mlp.*experts*")), [true, false, true]);
        assert_eq!(of_three(Pattern::glob("model.layers.?.self(")), [false; 3]);
        assert_eq!(of_three(Pattern::quark("re:^(?!.*experts)")), [false, true, false]);
        for (text, matches) in [
            ("model.layers.3.mlp", [true, false, true]),
            ("model.layers.3.mlp.", [true, false, true]),
            (r"model\.layers\.\d\.mlp\.", [true, false, true]),
            ("model.layers.3.ml", [false; 3]),
            ("up_proj", [true, false, true]),
            ("(?!.*experts)model.*", [false, true, false]),
            ("", [false; 3]),
            ("*(", [false; 3]),
        ] {
            assert_eq!(of_three(Pattern::module(text)), matches, "{text}");
        }
    }

    #[test]
    fn refusals() {
        let looks = "it looks around, and not ahead at its beginning";
        for (text, what) in [
            (r"re:.*mlp\.(?!experts).*", looks),
            (r"re:.*(?<!shared_)experts", looks),
            ("re:(?!(?=a)b)c", looks),
            ("re:(?!a", "a parenthesis is not closed"),
            ("re:*(", "repetition operator must be applied to a sub-expression"),
        ] {
            let error = Pattern::parse(text).err().unwrap_or_default();
            let start = format!("\"{text}\" is not a regular expression that can be read: ");
            assert!(error.strip_prefix(&start).is_some_and(|rest| rest.contains(what)), "{text}: {error}");
        }
        assert!(Pattern::module("mlp.(?!experts)").is_err_and(|error| error.ends_with("it looks around")));
        assert!(Pattern::parse("re:(((a{999}){999}){999})").is_err());
    }
}
