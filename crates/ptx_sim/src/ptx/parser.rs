//! Tokens to syntax tree: statements and operands. Directives and variables are in `directives`.

use super::ast::{Function, Instruction, Operand, Source, Space, Statement, Variable};
use super::lexer::{Lexer, Token, error_at};
use crate::fault::LoadError;

/// Reads a whole module.
pub fn parse(text: &str) -> Result<Source<'_>, LoadError> {
    let mut parser = Parser { lexer: Lexer::new(text), token: Token::End, line: 1 };
    parser.advance()?;
    parser.module()
}

/// A parser with one token in hand.
pub(super) struct Parser<'a> {
    pub(super) lexer: Lexer<'a>,
    pub(super) token: Token<'a>,
    pub(super) line: u32,
}

pub(super) type Parsed<T> = Result<T, LoadError>;

impl<'a> Parser<'a> {
    pub(super) fn error<T>(&self, reason: impl Into<String>) -> Parsed<T> {
        Err(error_at(self.lexer.text(), self.line, reason))
    }

    /// Steps to the next token and returns the one stepped over.
    pub(super) fn advance(&mut self) -> Parsed<Token<'a>> {
        let old = self.token;
        (self.token, self.line) = self.lexer.next()?;
        Ok(old)
    }

    pub(super) fn at(&self, punct: u8) -> bool {
        self.token == Token::Punct(punct)
    }

    pub(super) fn accept(&mut self, punct: u8) -> Parsed<bool> {
        let found = self.at(punct);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    pub(super) fn expect(&mut self, punct: u8) -> Parsed<()> {
        if self.accept(punct)? {
            return Ok(());
        }
        self.error(format!("expected `{}`, found {}", punct as char, self.shown()))
    }

    pub(super) fn shown(&self) -> String {
        match self.token {
            Token::Word(w) | Token::Text(w) => format!("`{w}`"),
            Token::Int(v) => format!("`{v}`"),
            Token::F32(_) | Token::F64(_) => "a floating-point constant".to_string(),
            Token::Punct(p) => format!("`{}`", p as char),
            Token::End => "the end of the text".to_string(),
        }
    }

    pub(super) fn word(&mut self) -> Parsed<&'a str> {
        match self.token {
            Token::Word(word) => {
                self.advance()?;
                Ok(word)
            }
            _ => self.error(format!("expected a name, found {}", self.shown())),
        }
    }

    pub(super) fn int(&mut self) -> Parsed<i128> {
        let negative = self.accept(b'-')?;
        match self.token {
            Token::Int(value) => {
                self.advance()?;
                Ok(if negative { -value } else { value })
            }
            _ => self.error(format!("expected an integer, found {}", self.shown())),
        }
    }

    pub(super) fn int_u32(&mut self) -> Parsed<u32> {
        let value = self.int()?;
        u32::try_from(value).or_else(|_| self.error(format!("{value} is out of range")))
    }

    fn module(&mut self) -> Parsed<Source<'a>> {
        let mut source = Source::default();
        loop {
            match self.token {
                Token::End => return Ok(source),
                Token::Word(word) if word.starts_with('.') => self.module_directive(word, &mut source)?,
                _ => return self.error(format!("expected a directive, found {}", self.shown())),
            }
        }
    }

    /// `.entry name (params) bounds { body }` or `.func (returns) name (params) { body }`.
    pub(super) fn function(&mut self, is_entry: bool) -> Parsed<Function<'a>> {
        let line = self.line;
        let returns = if !is_entry && self.at(b'(') { self.parameters()? } else { Vec::new() };
        let name = self.word()?;
        let params = if self.at(b'(') { self.parameters()? } else { Vec::new() };
        let mut function = Function {
            name,
            is_entry,
            returns,
            params,
            max_threads: None,
            required_threads: None,
            min_blocks: None,
            max_registers: None,
            required_cluster: None,
            body: None,
            refusal: None,
            line,
        };
        self.bounds(&mut function)?;
        if self.accept(b';')? {
            return Ok(function);
        }
        if !self.at(b'{') {
            return self.error(format!("expected `{{` or `;`, found {}", self.shown()));
        }
        // The text behind the brace, to come back to where the body cannot be read.
        let inside = self.lexer.clone();
        match self.advance().and_then(|_| self.body()) {
            Ok(body) => function.body = Some(body),
            Err(refusal) => {
                self.lexer = inside;
                if self.lexer.skip_braces().is_err() {
                    return Err(refusal);
                }
                self.advance()?;
                (function.body, function.refusal) = (Some(Vec::new()), Some(refusal));
            }
        }
        Ok(function)
    }

    fn parameters(&mut self) -> Parsed<Vec<Variable<'a>>> {
        let mut list = Vec::new();
        self.expect(b'(')?;
        while !self.at(b')') {
            let space = match self.word()? {
                ".param" => Space::Param,
                ".reg" => Space::Reg,
                other => return self.error(format!("`{other}` is not a parameter's state space")),
            };
            list.push(self.variable(space, false)?);
            if !self.accept(b',')? {
                break;
            }
        }
        self.expect(b')')?;
        Ok(list)
    }

    fn body(&mut self) -> Parsed<Vec<Statement<'a>>> {
        let mut body = Vec::new();
        let mut depth = 0;
        loop {
            match self.token {
                Token::Punct(b'{') => {
                    depth += 1;
                    self.advance()?;
                    body.push(Statement::Open);
                }
                Token::Punct(b'}') => {
                    self.advance()?;
                    if depth == 0 {
                        return Ok(body);
                    }
                    depth -= 1;
                    body.push(Statement::Close);
                }
                Token::Punct(b';') => {
                    self.advance()?;
                }
                Token::Punct(b'@') => {
                    self.advance()?;
                    let negated = self.accept(b'!')?;
                    let guard = self.word()?;
                    let name = self.word()?;
                    body.push(Statement::Instruction(self.instruction(Some((guard, negated)), name)?));
                }
                Token::Word(word) if word.starts_with('.') => self.body_directive(word, &mut body)?,
                Token::Word(word) => {
                    let line = self.line;
                    self.advance()?;
                    if !self.accept(b':')? {
                        body.push(Statement::Instruction(self.instruction_at(None, word, line)?));
                    } else if self.token == Token::Word(".branchtargets") {
                        self.advance()?;
                        body.push(Statement::BranchTargets(word, self.names()?));
                    } else if self.token == Token::Word(".callprototype") {
                        return self.error("indirect calls are not supported");
                    } else {
                        body.push(Statement::Label(word, line));
                    }
                }
                _ => return self.error(format!("expected a statement, found {}", self.shown())),
            }
        }
    }

    fn names(&mut self) -> Parsed<Vec<&'a str>> {
        let mut names = vec![self.word()?];
        while self.accept(b',')? {
            names.push(self.word()?);
        }
        self.expect(b';')?;
        Ok(names)
    }

    fn instruction(&mut self, guard: Option<(&'a str, bool)>, name: &'a str) -> Parsed<Instruction<'a>> {
        self.instruction_at(guard, name, self.line)
    }

    fn instruction_at(
        &mut self,
        guard: Option<(&'a str, bool)>,
        name: &'a str,
        line: u32,
    ) -> Parsed<Instruction<'a>> {
        let mut operands = Vec::new();
        if !self.at(b';') {
            operands.push(self.operand()?);
            while self.accept(b',')? {
                operands.push(self.operand()?);
            }
        }
        if !self.at(b';') {
            return self.error(format!("expected `,` or `;` after an operand, found {}", self.shown()));
        }
        self.advance()?;
        Ok(Instruction { guard, name, operands, line })
    }

    fn list(&mut self, close: u8) -> Parsed<Vec<Operand<'a>>> {
        let mut list = Vec::new();
        self.advance()?;
        while !self.at(close) {
            list.push(self.operand()?);
            if !self.accept(b',')? {
                break;
            }
        }
        self.expect(close)?;
        Ok(list)
    }

    fn operand(&mut self) -> Parsed<Operand<'a>> {
        match self.token {
            Token::Punct(b'{') => Ok(Operand::Vector(self.list(b'}')?)),
            Token::Punct(b'(') => Ok(Operand::Group(self.list(b')')?)),
            Token::Punct(b'[') => self.address(),
            Token::Punct(b'!') => {
                self.advance()?;
                Ok(Operand::Not(self.word()?))
            }
            Token::Punct(b'-') => {
                self.advance()?;
                match self.advance()? {
                    Token::Int(v) => Ok(Operand::Int(-v)),
                    Token::F32(v) => Ok(Operand::F32(v ^ (1 << 31))),
                    Token::F64(v) => Ok(Operand::F64(v ^ (1 << 63))),
                    Token::Word(w) => Ok(Operand::Negate(w)),
                    _ => self.error("expected a number or a register after `-`"),
                }
            }
            Token::Int(v) => {
                self.advance()?;
                Ok(Operand::Int(v))
            }
            Token::F32(v) => {
                self.advance()?;
                Ok(Operand::F32(v))
            }
            Token::F64(v) => {
                self.advance()?;
                Ok(Operand::F64(v))
            }
            Token::Word(word) => {
                self.advance()?;
                if self.accept(b'|')? {
                    return Ok(Operand::Pair(word, self.word()?));
                }
                if self.at(b'+') || self.at(b'-') {
                    return Ok(Operand::Offset(word, self.offset()?));
                }
                if self.accept(b'[')? {
                    let index = self.int()? as i64;
                    self.expect(b']')?;
                    return Ok(Operand::Element(word, index));
                }
                Ok(Operand::Name(word))
            }
            _ => self.error(format!("expected an operand, found {}", self.shown())),
        }
    }

    /// A run of `+n` and `-n`.
    pub(super) fn offset(&mut self) -> Parsed<i64> {
        let mut sum = 0i64;
        loop {
            let value = if self.accept(b'+')? {
                self.int()?
            } else if self.at(b'-') {
                self.int()?
            } else {
                return Ok(sum);
            };
            sum = sum.wrapping_add(value as i64);
        }
    }

    fn address(&mut self) -> Parsed<Operand<'a>> {
        self.expect(b'[')?;
        let base = match self.token {
            Token::Word(word) => {
                self.advance()?;
                Some(word)
            }
            _ => None,
        };
        let offset = if base.is_some() { self.offset()? } else { self.int()? as i64 };
        if self.accept(b',')? {
            let Some(base) = base else { return self.error("a tensor map address needs a register") };
            if !self.at(b'{') {
                return self.error("expected `{` before tensor coordinates");
            }
            let coordinates = self.list(b'}')?;
            self.expect(b']')?;
            return Ok(Operand::Tensor(base, offset, coordinates));
        }
        self.expect(b']')?;
        Ok(Operand::Address(base, offset))
    }
}
