//! Errors of loading and of running a module, with the place in the PTX and in the source it was compiled
//! from.

use std::fmt;

/// Why a module cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// Line in the PTX text, counted from 1.
    pub line: u32,
    /// That line's text, trimmed.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadError { line, text, reason } = self;
        write!(f, "PTX line {line}: {reason}: `{text}`")
    }
}

impl std::error::Error for LoadError {}

/// What kind of mistake stopped a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The launch itself is impossible: no such entry, too many threads, too much shared memory.
    InvalidLaunch,
    /// An address outside every allocation, or past the end of one.
    OutOfBounds,
    /// An address in an allocation that was freed.
    UseAfterFree,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// A read of bytes nobody has written.
    Uninitialised,
    /// An aligned instruction, or a shuffle's member mask, met by only some of the lanes it needs.
    Divergent,
    /// No warp can ever run again.
    Deadlock,
    /// Two unordered accesses to one location, at least one of them a write.
    Race,
    /// An asynchronous operation's result or source was touched before its completion was waited for.
    AsyncHazard,
    /// The asynchronous proxy reads what the generic proxy wrote, without a `fence.proxy.async` in between.
    MissingProxyFence,
    /// What a preceding kernel wrote, touched before `griddepcontrol.wait`.
    MissingGridWait,
    /// `trap` or `brkpt`.
    Trap,
    /// An `assert` of the kernel did not hold.
    Assertion,
    /// Operands that the ISA leaves undefined (for example a bad barrier count).
    InvalidOperand,
}

impl FaultKind {
    /// The words used in messages.
    pub fn describe(self) -> &'static str {
        match self {
            FaultKind::InvalidLaunch => "invalid launch",
            FaultKind::OutOfBounds => "out-of-bounds access",
            FaultKind::UseAfterFree => "use after free",
            FaultKind::Misaligned => "misaligned access",
            FaultKind::Uninitialised => "uninitialised read",
            FaultKind::Divergent => "divergent use of a warp-wide instruction",
            FaultKind::Deadlock => "deadlock",
            FaultKind::Race => "data race",
            FaultKind::AsyncHazard => "asynchronous operation not waited for",
            FaultKind::MissingProxyFence => "missing proxy fence",
            FaultKind::MissingGridWait => "missing wait for the preceding kernel",
            FaultKind::Trap => "trap",
            FaultKind::Assertion => "failed assertion",
            FaultKind::InvalidOperand => "invalid operand",
        }
    }
}

/// A place in a module: the PTX line and the source line it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line in the PTX text, counted from 1; 0 when there is none.
    pub ptx_line: u32,
    /// That line's text, trimmed.
    pub ptx_text: String,
    /// File and line of the source, from `.loc`.
    pub source: Option<(String, u32)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {} `{}`", self.ptx_line, self.ptx_text)?;
        match &self.source {
            Some((file, line)) => write!(f, " ({file}:{line})"),
            None => Ok(()),
        }
    }
}

/// The mistake that stopped a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of mistake.
    pub kind: FaultKind,
    /// Name of the entry.
    pub kernel: String,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the first thread at fault in its block, if threads are.
    pub thread: Option<[u32; 3]>,
    /// Warp in the block and lanes at fault, if threads are.
    pub lanes: Option<(u32, u32)>,
    /// The instruction.
    pub place: Place,
    /// What happened, with addresses and values.
    pub detail: String,
}

impl Fault {
    /// Line in the PTX text, counted from 1.
    pub fn ptx_line(&self) -> u32 {
        self.place.ptx_line
    }

    /// File and line of the source the instruction came from.
    pub fn rust_location(&self) -> Option<&(String, u32)> {
        self.place.source.as_ref()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{} in kernel {}", self.kind.describe(), self.kernel)?;
        if self.kind != FaultKind::InvalidLaunch {
            write!(f, ", block ({x},{y},{z})")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x},{y},{z})")?;
        }
        if let Some((warp, lanes)) = self.lanes {
            write!(f, " (warp {warp}, lanes {lanes:#010x})")?;
        }
        if self.place.ptx_line != 0 {
            write!(f, ", at {}", self.place)?;
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for Fault {}
