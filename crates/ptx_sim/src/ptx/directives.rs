//! Directives: module header, variables with initialisers, performance bounds, debugging information.

use super::ast::{Function, Init, Kind, Source, Space, Statement, Type, Variable};
use super::lexer::Token;
use super::parser::{Parsed, Parser};

impl<'a> Parser<'a> {
    pub(super) fn module_directive(&mut self, word: &'a str, source: &mut Source<'a>) -> Parsed<()> {
        self.advance()?;
        match word {
            ".version" => source.version = self.version()?,
            ".target" => {
                source.target = self.word()?;
                while self.accept(b',')? {
                    self.word()?;
                }
            }
            ".address_size" => {
                let bits = self.int()?;
                if bits != 64 {
                    return self.error(format!("address size {bits}: only 64 is supported"));
                }
            }
            ".file" => {
                let number = self.int_u32()?;
                let Token::Text(path) = self.advance()? else {
                    return self.error("expected a path after the file number");
                };
                source.files.insert(number, path);
                while self.accept(b',')? {
                    self.int()?;
                }
            }
            ".section" => self.section()?,
            ".pragma" => self.pragma()?,
            ".visible" | ".weak" | ".extern" | ".common" | ".entry" | ".func" | ".global" | ".const"
            | ".shared" => {
                self.linkage(word, source)?;
            }
            // The alias has no body, so that who calls it is refused.
            ".alias" => self.skip_to_semicolon()?,
            _ => return self.error(format!("unknown directive `{word}`")),
        }
        Ok(())
    }

    fn version(&mut self) -> Parsed<(u32, u32)> {
        // `8.0` is read as a decimal number; take its digits apart again.
        let Token::F64(bits) = self.advance()? else { return self.error("expected a version number") };
        let tenths = (f64::from_bits(bits) * 10.0).round() as u32;
        Ok((tenths / 10, tenths % 10))
    }

    fn linkage(&mut self, first: &'a str, source: &mut Source<'a>) -> Parsed<()> {
        let mut external = false;
        let mut word = first;
        loop {
            match word {
                ".extern" => external = true,
                ".visible" | ".weak" | ".common" => {}
                ".entry" | ".func" => {
                    let function = self.function(word == ".entry")?;
                    source.functions.push(function);
                    return Ok(());
                }
                ".global" | ".const" | ".shared" => {
                    let space = match word {
                        ".global" => Space::Global,
                        ".const" => Space::Const,
                        _ => Space::Shared,
                    };
                    return self.module_variable(space, external, source);
                }
                _ => return self.error(format!("unexpected `{word}` in a declaration")),
            }
            word = self.word()?;
        }
    }

    /// A variable of the module. One that cannot be had is a refusal of the functions that name it.
    fn module_variable(&mut self, space: Space, external: bool, source: &mut Source<'a>) -> Parsed<()> {
        let start = (self.lexer.clone(), self.token, self.line);
        let declared = self.variable(space, external).and_then(|variable| {
            if self.at(b',') {
                return self.error("one variable per declaration is supported here");
            }
            self.expect(b';')?;
            Ok(variable)
        });
        match declared {
            Ok(variable) => source.variables.push(variable),
            Err(refusal) => {
                (self.lexer, self.token, self.line) = start;
                let mut name = None;
                while !self.at(b';') {
                    match self.token {
                        Token::End => return Err(refusal),
                        // The first word that is no attribute.
                        Token::Word(word) if name.is_none() && !word.starts_with('.') => name = Some(word),
                        _ => {}
                    }
                    self.advance()?;
                }
                self.advance()?;
                match name {
                    Some(name) => source.refused.push((name, refusal)),
                    None => return Err(refusal),
                }
            }
        }
        Ok(())
    }

    /// `.maxntid 256, 1, 1 .minnctapersm 2 ...` between a signature and its body.
    pub(super) fn bounds(&mut self, function: &mut Function<'a>) -> Parsed<()> {
        while let Token::Word(word) = self.token {
            self.advance()?;
            match word {
                ".maxntid" => function.max_threads = Some(self.triple()?),
                ".reqntid" => function.required_threads = Some(self.triple()?),
                ".minnctapersm" | ".maxnctapersm" => function.min_blocks = Some(self.int_u32()?),
                ".maxnreg" => function.max_registers = Some(self.int_u32()?),
                ".maxclusterrank" => {
                    self.int_u32()?;
                }
                ".reqnctapercluster" => function.required_cluster = Some(self.triple()?),
                ".explicitcluster" | ".noreturn" | ".blocksareclusters" => {}
                ".pragma" => self.pragma()?,
                _ => return self.error(format!("unknown directive `{word}` after a function's parameters")),
            }
        }
        Ok(())
    }

    fn triple(&mut self) -> Parsed<[u32; 3]> {
        let mut triple = [self.int_u32()?, 1, 1];
        for slot in &mut triple[1..] {
            if !self.accept(b',')? {
                break;
            }
            *slot = self.int_u32()?;
        }
        Ok(triple)
    }

    fn section(&mut self) -> Parsed<()> {
        while let Token::Word(_) = self.token {
            self.advance()?;
        }
        if !self.at(b'{') {
            return self.error("expected `{` after a section's name");
        }
        self.lexer.skip_braces()?;
        self.advance()?;
        Ok(())
    }

    /// `"nounroll", "..";` behind `.pragma`: hints to a compiler, of which none changes what is computed.
    fn pragma(&mut self) -> Parsed<()> {
        loop {
            let Token::Text(_) = self.token else {
                return self.error(format!("expected a string after `.pragma`, found {}", self.shown()));
            };
            self.advance()?;
            if !self.accept(b',')? {
                return self.expect(b';');
            }
        }
    }

    fn skip_to_semicolon(&mut self) -> Parsed<()> {
        while !self.at(b';') {
            if self.token == Token::End {
                return self.error("missing `;`");
            }
            self.advance()?;
        }
        self.expect(b';')
    }

    pub(super) fn body_directive(&mut self, word: &'a str, body: &mut Vec<Statement<'a>>) -> Parsed<()> {
        self.advance()?;
        let space = match word {
            ".reg" => Space::Reg,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            ".param" => Space::Param,
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".loc" => {
                let (file, line) = (self.int_u32()?, self.int_u32()?);
                self.int()?;
                let mut inlined_at = None;
                while self.accept(b',')? {
                    match self.word()? {
                        "function_name" => {
                            self.word()?;
                            self.offset()?;
                        }
                        "inlined_at" => {
                            inlined_at = Some((self.int_u32()?, self.int_u32()?));
                            self.int()?;
                        }
                        other => return self.error(format!("unknown attribute `{other}` of .loc")),
                    }
                }
                body.push(Statement::Loc { file, line, inlined_at });
                return Ok(());
            }
            ".pragma" => return self.pragma(),
            ".extern" => {
                // Dynamic shared memory may be declared inside a function.
                if self.word()? != ".shared" {
                    return self.error("only `.extern .shared` may be declared inside a function");
                }
                body.push(Statement::Variable(self.variable(Space::Shared, true)?));
                return self.expect(b';');
            }
            _ => return self.error(format!("unknown directive `{word}` in a function")),
        };
        let first = self.variable(space, false)?;
        let (ty, vector, align) = (first.ty, first.vector, first.align);
        body.push(Statement::Variable(first));
        while self.accept(b',')? {
            let variable = self.declarator(space, ty, vector, align, false)?;
            body.push(Statement::Variable(variable));
        }
        self.expect(b';')
    }

    /// Everything of a variable after its state space.
    pub(super) fn variable(&mut self, space: Space, external: bool) -> Parsed<Variable<'a>> {
        let (mut ty, mut vector, mut align) = (None, 1, 0);
        while let Token::Word(word) = self.token {
            let Some(attribute) = word.strip_prefix('.') else { break };
            self.advance()?;
            match attribute {
                "align" => align = self.int_u32()?,
                "v2" => vector = 2,
                "v4" => vector = 4,
                "ptr" => self.pointer_attributes()?,
                "attribute" => {
                    self.expect(b'(')?;
                    while !self.accept(b')')? {
                        self.advance()?;
                    }
                }
                "texref" | "samplerref" | "surfref" => {
                    return self.error("textures and surfaces are not supported");
                }
                _ => match Type::parse(attribute) {
                    Some(parsed) => ty = Some(parsed),
                    None => return self.error(format!("unknown type or attribute `.{attribute}`")),
                },
            }
        }
        let Some(ty) = ty else { return self.error("a variable needs a type") };
        self.declarator(space, ty, vector, align, external)
    }

    /// `.ptr .global .align 4` after a parameter's type.
    fn pointer_attributes(&mut self) -> Parsed<()> {
        loop {
            match self.token {
                Token::Word(".global" | ".const" | ".local" | ".shared") => {
                    self.advance()?;
                }
                Token::Word(".align") => {
                    self.advance()?;
                    self.int_u32()?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Name, dimensions and initialiser.
    fn declarator(
        &mut self,
        space: Space,
        ty: Type,
        vector: u32,
        align: u32,
        external: bool,
    ) -> Parsed<Variable<'a>> {
        let line = self.line;
        let name = self.word()?;
        let count = if self.accept(b'<')? {
            let count = self.int_u32()?;
            self.expect(b'>')?;
            Some(count)
        } else {
            None
        };
        let element = u64::from(ty.bytes()) * u64::from(vector);
        let mut bytes = element;
        let mut unsized_array = false;
        while self.accept(b'[')? {
            if self.accept(b']')? {
                unsized_array = true;
                continue;
            }
            bytes = bytes
                .saturating_mul(self.int()?.try_into().or_else(|_| self.error("a negative array size"))?);
            self.expect(b']')?;
        }
        let mut init = Vec::new();
        if self.accept(b'=')? {
            self.initialiser(ty, &mut init)?;
        }
        if unsized_array {
            bytes = u64::from(ty.bytes()) * init.len() as u64;
        }
        if init.len() as u64 * u64::from(ty.bytes()) > bytes {
            return self.error(format!("{} initial values do not fit in {bytes} bytes", init.len()));
        }
        let align = if align == 0 { element.min(16) as u32 } else { align };
        Ok(Variable { name, space, ty, vector, align, bytes, count, external, init, line })
    }

    fn initialiser(&mut self, ty: Type, init: &mut Vec<Init<'a>>) -> Parsed<()> {
        if self.accept(b'{')? {
            while !self.at(b'}') {
                self.initialiser(ty, init)?;
                if !self.accept(b',')? {
                    break;
                }
            }
            return self.expect(b'}');
        }
        let negative = self.accept(b'-')?;
        let value = match self.advance()? {
            Token::Int(mask) if self.at(b'(') => {
                self.advance()?;
                let symbol = self.word()?;
                let offset = self.offset()?;
                self.expect(b')')?;
                Init::Masked(symbol, offset, mask as u64)
            }
            Token::Int(v) if ty.kind == Kind::Float => {
                let v = if negative { -(v as f64) } else { v as f64 };
                Init::Value(if ty.bits == 32 { u64::from((v as f32).to_bits()) } else { v.to_bits() })
            }
            Token::Int(v) => Init::Value(if negative { (-v) as u64 } else { v as u64 }),
            Token::F32(v) => Init::Value(u64::from(v ^ (u32::from(negative) << 31))),
            Token::F64(v) => {
                let v = v ^ (u64::from(negative) << 63);
                Init::Value(if ty.bits == 32 { u64::from((f64::from_bits(v) as f32).to_bits()) } else { v })
            }
            Token::Word("generic") => {
                self.expect(b'(')?;
                let symbol = self.word()?;
                let offset = self.offset()?;
                self.expect(b')')?;
                let outside = self.offset()?;
                Init::Address(symbol, offset.wrapping_add(outside), true)
            }
            Token::Word(symbol) => Init::Address(symbol, self.offset()?, false),
            _ => return self.error("expected an initial value"),
        };
        init.push(value);
        Ok(())
    }
}
