//! An instruction taken apart: name, modifiers, operands.

use super::body::Body;
use super::{Result, TRUE};
use crate::counters::Class;
use crate::exec::{Handler, Inst, Run};
use crate::ptx::ast::{Instruction, Operand, Type};

/// The modifiers of an instruction; each must be taken by somebody.
pub(crate) struct Mods<'a>(Vec<&'a str>);

impl<'a> Mods<'a> {
    /// Takes a modifier if it is there.
    pub fn take(&mut self, name: &str) -> bool {
        match self.0.iter().position(|m| *m == name) {
            Some(at) => {
                self.0.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier that is in a table, and gives what the table has for it.
    pub fn choose<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let at = self.0.iter().position(|m| table.iter().any(|(name, _)| name == m))?;
        let name = self.0.remove(at);
        table.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// Takes the first type.
    pub fn ty(&mut self) -> Result<Type> {
        let at = self.0.iter().position(|m| Type::parse(m).is_some()).ok_or("a type is missing")?;
        Type::parse(self.0.remove(at)).ok_or_else(|| "a type is missing".to_string())
    }

    /// Takes every modifier that a test accepts.
    pub fn drop_all(&mut self, test: impl Fn(&str) -> bool) -> usize {
        let before = self.0.len();
        self.0.retain(|m| !test(m));
        before - self.0.len()
    }

    /// Takes the first modifier, whatever it is.
    pub fn first(&mut self) -> Option<&'a str> {
        if self.0.is_empty() { None } else { Some(self.0.remove(0)) }
    }

    /// Complains about what is left.
    pub fn finish(&self, base: &str) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(left) => Err(format!("modifier `.{left}` of `{base}` is not supported")),
        }
    }
}

/// An instruction on its way to being decoded.
pub(crate) struct Parts<'i, 'a> {
    /// Name up to the first dot.
    pub base: &'a str,
    pub mods: Mods<'a>,
    pub operands: &'i [Operand<'a>],
    /// Slot of the guard.
    pub guard: u32,
    /// All ones if the guard is negated.
    pub flip: u32,
    pub line: u32,
    /// The next piece emitted is counted; further ones are not.
    pub class_given: bool,
}

impl<'i, 'a> Parts<'i, 'a> {
    pub fn new(body: &mut Body<'_, 'a>, instruction: &'i Instruction<'a>) -> Result<Self> {
        let mut names = instruction.name.split('.');
        let base = names.next().unwrap_or_default();
        body.forget_touched();
        let (guard, flip) = match instruction.guard {
            None => (TRUE, 0),
            Some((name, negated)) => (body.predicate(name)?, if negated { !0 } else { 0 }),
        };
        Ok(Parts {
            base,
            mods: Mods(names.collect()),
            operands: &instruction.operands,
            guard,
            flip,
            line: instruction.line,
            class_given: false,
        })
    }

    /// An operand.
    pub fn operand(&self, at: usize) -> Result<&'i Operand<'a>> {
        self.operands.get(at).ok_or_else(|| format!("operand {} is missing", at + 1))
    }

    /// Checks the number of operands.
    pub fn count(&self, range: std::ops::RangeInclusive<usize>) -> Result<()> {
        if range.contains(&self.operands.len()) {
            return Ok(());
        }
        let (low, high) = (range.start(), range.end());
        let wanted = if low == high { low.to_string() } else { format!("{low} to {high}") };
        Err(format!("{} operands where {wanted} are expected", self.operands.len()))
    }

    /// Whether the guard can keep lanes from executing.
    pub fn is_guarded(&self) -> bool {
        self.guard != TRUE
    }

    /// An instruction without operands yet.
    pub fn inst(&self, run: Handler) -> Inst {
        let (guard, flip) = (self.guard, self.flip);
        Inst { run: Run(run), imm: 0, d: 0, a: 0, b: 0, c: 0, e: 0, guard, flip, target: 0 }
    }

    /// Emits `d = f(sources ..)` where destination and sources have the given types.
    pub fn map(
        &mut self,
        body: &mut Body<'_, 'a>,
        class: Class,
        run: Handler,
        d: Type,
        sources: &[Type],
    ) -> Result<()> {
        self.count(sources.len() + 1..=sources.len() + 1)?;
        let mut slots = [0; 4];
        for (i, ty) in sources.iter().enumerate() {
            slots[i] = body.source(self.operand(i + 1)?, *ty)?;
        }
        let [a, b, c, e] = slots;
        let inst = Inst { d: body.destination(self.operand(0)?, d)?, a, b, c, e, ..self.inst(run) };
        body.emit(self, class, inst);
        Ok(())
    }
}
