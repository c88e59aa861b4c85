//! Syntax tree to [`Code`]: what every name and instruction means.
//!
//! ```text
//!   register file of a warp
//!     HEADER: true, carry, scratch │ device functions, one after the other │ the entry
//! ```
//!
//! Device functions are decoded once, with registers of their own, and so cannot be recursive. An instruction
//! this module does not know, or with a modifier it does not know, is a refusal of its function, and so of
//! the functions that call it. Other entries of the module can be launched; a module of which none can is
//! refused as a whole.

mod arithmetic;
mod atomic;
mod body;
mod bulk;
mod compare;
mod control;
mod convert;
mod float;
mod integer;
mod launch_registers;
mod mbarrier;
mod memory;
mod moves;
mod packed;
mod parts;
mod sync;
mod system;
mod tensor;
mod types;
mod variables;
mod wgmma;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::code::{Frame, Special};
use crate::counters::Class;
use crate::exec::Code;
use crate::fault::LoadError;
use crate::module::{Entry, Module, Param};
use crate::ptx::ast::{Function, Operand, Source, Statement, Variable};
use crate::ptx::lexer::error_at;
use crate::state::memory::GlobalMemory;
use crate::state::shared_memory::{FIRST, RESERVED_FOR_KERNELS};

use body::{Body, Layout};
use parts::Parts;
use variables::Globals;

/// Why something cannot be decoded; the line is added by who knows it.
type Result<T> = std::result::Result<T, String>;

/// A predicate that always holds.
pub(crate) const TRUE: u32 = 0;
/// The carry flag.
pub(crate) const CARRY: u32 = 4;
/// A predicate for intermediate results, and for those nobody wants.
pub(crate) const SCRATCH: u32 = 8;
/// Bytes before the first register.
const HEADER: u32 = 64;

/// A device function that can be called.
#[derive(Clone)]
struct Callee {
    start: u32,
    /// Local offset and size of each parameter and result.
    params: Vec<(u32, u32)>,
    returns: Vec<(u32, u32)>,
    /// Shared memory it needs, itself and through others.
    shared_end: u32,
}

/// What is known of the module while its functions are decoded.
struct Context<'a> {
    code: Code,
    globals: Globals<'a>,
    callees: HashMap<&'a str, Callee>,
    /// Device functions that cannot be had, and why.
    refused: HashMap<&'a str, LoadError>,
    /// Shared variables of the module that device functions use, at fixed offsets.
    common_shared: HashMap<&'a str, u32>,
    shared: HashMap<&'a str, Variable<'a>>,
}

/// Decodes a module.
pub(crate) fn module(
    source: &Source<'_>,
    text: &str,
    memory: &Arc<GlobalMemory>,
) -> std::result::Result<Module, LoadError> {
    let globals = Globals::allocate(source, memory).map_err(|(line, reason)| error_at(text, line, reason))?;
    let mut module = Module {
        target: source.target.to_string(),
        entries: Vec::new(),
        frames: Vec::new(),
        refusals: Vec::new(),
        code: Code::default(),
        globals: globals.addresses(),
        memory: memory.clone(),
    };
    let mut context = Context {
        code: Code {
            files: source.files.iter().map(|(n, path)| (*n, path.to_string())).collect(),
            text: text.lines().map(|line| line.trim().to_string()).collect(),
            ..Code::default()
        },
        globals,
        callees: HashMap::new(),
        refused: HashMap::new(),
        common_shared: HashMap::new(),
        shared: source
            .variables
            .iter()
            .filter(|v| v.space == crate::ptx::ast::Space::Shared)
            .map(|v| (v.name, v.clone()))
            .collect(),
    };
    context.place_common_shared(source);

    // Device functions, callees first.
    let mut layout = Layout { next: HEADER, local: 0, shared: FIRST, ..Layout::default() };
    let (order, recursive) = call_order(source);
    for at in recursive {
        let Function { name, line, .. } = source.functions[at];
        let reason = format!("recursive function `{name}`: recursion is not supported");
        context.refused.insert(name, error_at(text, line, reason));
    }
    for at in order {
        let function = &source.functions[at];
        match context.function(function, layout.clone(), text) {
            Ok(done) => layout = done.layout,
            Err(refusal) => {
                context.refused.entry(function.name).or_insert(refusal);
            }
        }
    }
    let device = layout;
    for function in source.functions.iter().filter(|f| f.is_entry && f.body.is_some()) {
        let calls = calls_any(function, &context.callees);
        let layout = if calls {
            device.clone()
        } else {
            Layout { next: HEADER, local: 0, shared: FIRST, ..Layout::default() }
        };
        match context.function(function, layout, text) {
            Ok(done) => {
                let mut entry = entry(function, &done.layout);
                entry.registers_estimate = done.registers_estimate;
                module.entries.push(entry);
                module.frames.push(frame(function, done));
                module.refusals.push(None);
            }
            Err(refusal) => {
                module.entries.push(entry(function, &Layout { shared: FIRST, ..Layout::default() }));
                module.frames.push(Frame::default());
                module.refusals.push(Some(refusal));
            }
        }
    }
    if module.refusals.iter().all(Option::is_some)
        && let Some(Some(first)) = module.refusals.first()
    {
        return Err(first.clone());
    }
    module.code = context.code;
    Ok(module)
}

fn entry(function: &Function<'_>, layout: &Layout) -> Entry {
    let mut params = Vec::new();
    let mut offset = 0;
    for param in &function.params {
        offset = u32::next_multiple_of(offset, param.align);
        params.push(Param {
            name: param.name.to_string(),
            offset,
            size: param.bytes as u32,
            align: param.align,
        });
        offset += param.bytes as u32;
    }
    let product = |shape: [u32; 3]| shape.iter().product();
    Entry {
        name: function.name.to_string(),
        params,
        params_size: offset,
        max_threads: function.required_threads.or(function.max_threads).map(product),
        required_threads: function.required_threads,
        min_blocks: function.min_blocks,
        static_shared: layout.shared - FIRST,
        local_bytes: layout.local,
        registers_estimate: 0,
    }
}

fn frame(function: &Function<'_>, done: Decoded) -> Frame {
    let Decoded { start, layout, .. } = done;
    let reserved = Special::ReservedShared(RESERVED_FOR_KERNELS);
    // Registers hold junk until they are written.
    let mut template = vec![0xcd; layout.next as usize];
    let header: [u32; 3] = [!0, 0, 0];
    for (i, value) in header.iter().enumerate() {
        template[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes());
    }
    for constant in &layout.constants {
        constant.fill(&mut template);
    }
    Frame {
        start,
        template,
        uses_reserved_shared: layout.specials.iter().any(|(special, _)| *special == reserved),
        specials: layout.specials,
        local_bytes: layout.local.next_multiple_of(16),
        required_cluster: function.required_cluster,
        dynamic_align: layout.dynamic_align.max(16),
        thread_registers: launch_registers::at_launch(function, layout.raised_registers),
    }
}

/// A decoded function.
struct Decoded {
    start: u32,
    layout: Layout,
    registers_estimate: u32,
}

impl<'a> Context<'a> {
    /// Gives the shared variables that device functions name a place that holds for every entry.
    fn place_common_shared(&mut self, source: &Source<'a>) {
        let mut next = FIRST;
        for function in source.functions.iter().filter(|f| !f.is_entry) {
            for name in names_in(function) {
                if let Some(variable) = self.shared.get(name)
                    && !variable.external
                    && !self.common_shared.contains_key(name)
                {
                    next = next.next_multiple_of(variable.align);
                    self.common_shared.insert(name, next);
                    next += variable.bytes as u32;
                }
            }
        }
    }

    /// Decodes a function; one that is refused leaves no code behind.
    fn function(
        &mut self,
        function: &Function<'a>,
        layout: Layout,
        text: &str,
    ) -> std::result::Result<Decoded, LoadError> {
        if let Some(refusal) = function.refusal.as_ref().or_else(|| self.refused.get(function.name)) {
            return Err(refusal.clone());
        }
        let mark = self.code.mark();
        let decoded = self.statements(function, layout, text);
        if decoded.is_err() {
            self.code.rewind(mark);
        }
        decoded
    }

    fn statements(
        &mut self,
        function: &Function<'a>,
        layout: Layout,
        text: &str,
    ) -> std::result::Result<Decoded, LoadError> {
        let start = self.code.insts.len() as u32;
        let mut body =
            Body::new(self, layout, function).map_err(|reason| error_at(text, function.line, reason))?;
        let mut user_source = (0, 0);
        let mut outer = HashMap::new();
        for statement in function.body.as_deref().unwrap_or_default() {
            match statement {
                Statement::Open => body.open(),
                Statement::Close => body.close(),
                Statement::Label(name, line) => {
                    body.label(name).map_err(|reason| error_at(text, *line, reason))?;
                }
                Statement::Variable(variable) => {
                    body.declare(variable).map_err(|reason| error_at(text, variable.line, reason))?;
                }
                Statement::BranchTargets(name, targets) => body.branch_targets(name, targets),
                Statement::Loc { file, line, inlined_at } => {
                    outer.insert((*file, *line), *inlined_at);
                    if let Some(place) = body.user_place((*file, *line), &outer) {
                        user_source = place;
                    }
                    body.source = user_source;
                }
                Statement::Instruction(instruction) => {
                    let fail = |reason| error_at(text, instruction.line, reason);
                    let mut parts = Parts::new(&mut body, instruction).map_err(fail)?;
                    decode(&mut body, &mut parts).map_err(fail)?;
                    parts.mods.finish(parts.base).map_err(fail)?;
                }
            }
        }
        let end = body.end().map_err(|reason| error_at(text, function.line, reason))?;
        if !function.is_entry {
            let callee = Callee {
                start,
                params: end.params.clone(),
                returns: end.returns.clone(),
                shared_end: end.decoded.layout.shared,
            };
            self.callees.insert(function.name, callee);
        }
        Ok(end.decoded)
    }
}

/// Picks the module for an instruction by its name.
fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "addc"
        | "subc" | "madc" => arithmetic::decode(body, parts),
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "prmt" | "bfe" | "bfi"
        | "bfind" | "brev" | "popc" | "clz" | "sad" | "dp4a" | "dp2a" | "fns" | "bmsk" | "szext"
        | "mul24" | "mad24" => integer::decode(body, parts),
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign" | "testp" => {
            float::decode(body, parts)
        }
        "setp" | "set" | "selp" | "slct" => compare::decode(body, parts),
        "cvt" => convert::decode(body, parts),
        "mov" | "cvta" | "isspacep" | "mapa" | "getctarank" => moves::decode(body, parts),
        "ld" | "ldu" | "st" | "prefetch" | "prefetchu" | "discard" | "applypriority" | "createpolicy" => {
            memory::decode(body, parts)
        }
        "atom" | "red" => atomic::decode(body, parts),
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "griddepcontrol"
        | "pmevent" => control::decode(body, parts),
        "bar" | "barrier" | "membar" | "fence" | "shfl" | "vote" | "match" | "redux" | "activemask"
        | "elect" => sync::decode(body, parts),
        "mbarrier" => mbarrier::decode(body, parts),
        "wgmma" | "setmaxnreg" => wgmma::decode(body, parts),
        "cp" | "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => tensor::decode(body, parts),
        other => Err(format!("unknown instruction `{other}`")),
    }
}

fn names_in<'a>(function: &Function<'a>) -> Vec<&'a str> {
    fn collect<'a>(operand: &Operand<'a>, names: &mut Vec<&'a str>) {
        match operand {
            Operand::Name(name)
            | Operand::Offset(name, _)
            | Operand::Element(name, _)
            | Operand::Address(Some(name), _) => names.push(name),
            Operand::Vector(list) | Operand::Group(list) => list.iter().for_each(|o| collect(o, names)),
            _ => {}
        }
    }
    let mut names = Vec::new();
    for statement in function.body.as_deref().unwrap_or_default() {
        if let Statement::Instruction(instruction) = statement {
            instruction.operands.iter().for_each(|operand| collect(operand, &mut names));
        }
    }
    names
}

fn calls_any(function: &Function<'_>, callees: &HashMap<&str, Callee>) -> bool {
    names_in(function).iter().any(|name| callees.contains_key(name))
}

/// Indices of the device functions with bodies, callees before callers; and of those that call themselves, if
/// by others.
fn call_order(source: &Source<'_>) -> (Vec<usize>, Vec<usize>) {
    struct Walk<'s, 'a> {
        source: &'s Source<'a>,
        index: HashMap<&'a str, usize>,
        done: Vec<usize>,
        recursive: Vec<usize>,
    }
    impl Walk<'_, '_> {
        fn visit(&mut self, at: usize, path: &mut HashSet<usize>) {
            if self.done.contains(&at) {
                return;
            }
            if !path.insert(at) {
                self.recursive.push(at);
                return;
            }
            for name in names_in(&self.source.functions[at]) {
                if let Some(&callee) = self.index.get(name) {
                    self.visit(callee, path);
                }
            }
            path.remove(&at);
            if !self.done.contains(&at) {
                self.done.push(at);
            }
        }
    }
    let functions = source.functions.iter().enumerate().filter(|(_, f)| !f.is_entry && f.body.is_some());
    let index: HashMap<&str, usize> = functions.map(|(at, f)| (f.name, at)).collect();
    let mut all: Vec<usize> = index.values().copied().collect();
    all.sort_unstable();
    let mut walk = Walk { source, index, done: Vec::new(), recursive: Vec::new() };
    for at in all {
        walk.visit(at, &mut HashSet::new());
    }
    (walk.done, walk.recursive)
}

/// The class that memory instructions of a space count as.
fn load_class(shared: bool, private: bool) -> Class {
    if shared {
        Class::LoadShared
    } else if private {
        Class::Local
    } else {
        Class::LoadGlobal
    }
}
