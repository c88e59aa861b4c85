//! The syntax tree of a PTX module.

use std::collections::HashMap;

use crate::fault::LoadError;

/// A whole module.
#[derive(Debug, Default)]
pub struct Source<'a> {
    /// `.version`, major and minor.
    pub version: (u32, u32),
    /// First name after `.target`.
    pub target: &'a str,
    /// Variables declared outside functions.
    pub variables: Vec<Variable<'a>>,
    /// Entries and device functions, with and without bodies.
    pub functions: Vec<Function<'a>>,
    /// `.file` numbers to paths.
    pub files: HashMap<u32, &'a str>,
    /// Variables that cannot be had, and why.
    pub refused: Vec<(&'a str, LoadError)>,
}

/// State space of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Registers.
    Reg,
    /// Global memory.
    Global,
    /// Constant memory.
    Const,
    /// Shared memory of a block.
    Shared,
    /// Local memory of a thread.
    Local,
    /// Parameters of kernels and of device functions.
    Param,
}

/// Fundamental type, by kind and width; `.pred` is one bit wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Kind of number.
    pub kind: Kind,
    /// Width in bits.
    pub bits: u32,
}

/// Kind of a fundamental type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `.b8` to `.b128`: untyped bits.
    Bits,
    /// `.u8` to `.u64`.
    Unsigned,
    /// `.s8` to `.s64`.
    Signed,
    /// `.f16` to `.f64`.
    Float,
    /// `.f16x2`.
    F16x2,
    /// `.bf16`.
    Bf16,
    /// `.bf16x2`.
    Bf16x2,
    /// `.pred`.
    Pred,
}

impl Type {
    /// The type of that name, without its dot.
    pub fn parse(name: &str) -> Option<Type> {
        let (kind, bits) = match name {
            "b8" => (Kind::Bits, 8),
            "b16" => (Kind::Bits, 16),
            "b32" => (Kind::Bits, 32),
            "b64" => (Kind::Bits, 64),
            "b128" => (Kind::Bits, 128),
            "u8" => (Kind::Unsigned, 8),
            "u16" => (Kind::Unsigned, 16),
            "u32" => (Kind::Unsigned, 32),
            "u64" => (Kind::Unsigned, 64),
            "s8" => (Kind::Signed, 8),
            "s16" => (Kind::Signed, 16),
            "s32" => (Kind::Signed, 32),
            "s64" => (Kind::Signed, 64),
            "f16" => (Kind::Float, 16),
            "f32" => (Kind::Float, 32),
            "f64" => (Kind::Float, 64),
            "f16x2" => (Kind::F16x2, 32),
            "bf16" => (Kind::Bf16, 16),
            "bf16x2" => (Kind::Bf16x2, 32),
            "pred" => (Kind::Pred, 1),
            _ => return None,
        };
        Some(Type { kind, bits })
    }

    /// Size in bytes.
    pub fn bytes(self) -> u32 {
        self.bits.div_ceil(8)
    }
}

/// A variable declaration; `%r<7>` declares seven.
#[derive(Clone, Debug)]
pub struct Variable<'a> {
    /// Name, or its prefix when `count` is given.
    pub name: &'a str,
    /// Where it lives.
    pub space: Space,
    /// Type of an element.
    pub ty: Type,
    /// Elements of a `.v2`/`.v4` vector, else 1.
    pub vector: u32,
    /// Alignment in bytes, given or natural.
    pub align: u32,
    /// Size in bytes; zero for `[]`.
    pub bytes: u64,
    /// Number of registers `name0 .. name(count-1)` for parametrised names.
    pub count: Option<u32>,
    /// Declared `.extern`.
    pub external: bool,
    /// Initial contents.
    pub init: Vec<Init<'a>>,
    /// Line of the declaration.
    pub line: u32,
}

/// One piece of an initialiser, placed at consecutive elements.
#[derive(Clone, Debug)]
pub enum Init<'a> {
    /// The bits of one element.
    Value(u64),
    /// The address of a symbol plus an offset; `true` for a generic address.
    Address(&'a str, i64, bool),
    /// `mask(symbol)`: the bytes of an address that the mask selects, as one element.
    Masked(&'a str, i64, u64),
}

/// An entry or a device function.
#[derive(Debug)]
pub struct Function<'a> {
    /// Name.
    pub name: &'a str,
    /// `.entry` rather than `.func`.
    pub is_entry: bool,
    /// Return parameters of a `.func`.
    pub returns: Vec<Variable<'a>>,
    /// Parameters.
    pub params: Vec<Variable<'a>>,
    /// `.maxntid`.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// `.maxnreg`.
    pub max_registers: Option<u32>,
    /// `.reqnctapercluster`.
    pub required_cluster: Option<[u32; 3]>,
    /// Statements; `None` for a declaration.
    pub body: Option<Vec<Statement<'a>>>,
    /// Why the body cannot be read; it is then empty.
    pub refusal: Option<LoadError>,
    /// Line of the declaration.
    pub line: u32,
}

/// One statement of a function body.
#[derive(Debug)]
pub enum Statement<'a> {
    /// `name:`
    Label(&'a str, u32),
    /// An instruction.
    Instruction(Instruction<'a>),
    /// A variable or register declaration.
    Variable(Variable<'a>),
    /// `{`
    Open,
    /// `}`
    Close,
    /// `.loc`: file and line of what follows, and of the call it was inlined at.
    Loc {
        /// Number of a `.file`.
        file: u32,
        /// Line in it.
        line: u32,
        /// File and line of the inlined call.
        inlined_at: Option<(u32, u32)>,
    },
    /// `name: .branchtargets a, b, c;`
    BranchTargets(&'a str, Vec<&'a str>),
}

/// An instruction: `@!p name.modifiers operands;`
#[derive(Debug)]
pub struct Instruction<'a> {
    /// Guard predicate, and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    /// Name with its modifiers, as written.
    pub name: &'a str,
    /// Operands in order.
    pub operands: Vec<Operand<'a>>,
    /// Line of the name.
    pub line: u32,
}

/// One operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand<'a> {
    /// A register, special register, variable, label or function; `_` too.
    Name(&'a str),
    /// `!p`
    Not(&'a str),
    /// `-r`
    Negate(&'a str),
    /// An integer constant.
    Int(i128),
    /// `0f` constant.
    F32(u32),
    /// `0d` constant, or a decimal fraction.
    F64(u64),
    /// `symbol+offset` outside brackets.
    Offset(&'a str, i64),
    /// `array[index]`: an element, by its number.
    Element(&'a str, i64),
    /// `[base+offset]`; without a base the offset is the address.
    Address(Option<&'a str>, i64),
    /// `[base+offset, {coordinates}]`, with further operands after the coordinates if any.
    Tensor(&'a str, i64, Vec<Operand<'a>>),
    /// `{a, b, ...}`
    Vector(Vec<Operand<'a>>),
    /// `p|q`
    Pair(&'a str, &'a str),
    /// `(a, b)` of a call.
    Group(Vec<Operand<'a>>),
}
