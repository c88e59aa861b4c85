//! A function being decoded: its scopes, registers, constants, labels, and the instructions so far.

use std::collections::HashMap;

use super::variables::{Symbol, special, timer};
use super::{CARRY, Context, Decoded, Result, SCRATCH, TRUE};
use crate::code::control_flow::{Edge, meeting_points};
use crate::code::{NONE, Origin, Special};
use crate::counters::Class;
use crate::exec::{Inst, Run, special as run};
use crate::ptx::ast::{Function, Kind, Operand, Space, Type, Variable};

/// Where things of a function lie; handed on from function to function.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// End of the register file so far.
    pub next: u32,
    /// Bytes of local memory per lane so far.
    pub local: u32,
    /// End of static shared memory so far.
    pub shared: u32,
    pub constants: Vec<Constant>,
    pub specials: Vec<(Special, u32)>,
    /// Alignment that dynamic shared memory needs.
    pub dynamic_align: u32,
    /// The largest count of a `setmaxnreg.inc` so far.
    pub raised_registers: Option<u32>,
}

/// A value that a slot holds in all lanes, from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Constant {
    slot: u32,
    bits: u32,
    value: u128,
}

impl Constant {
    /// Writes the constant into a register file.
    pub fn fill(&self, file: &mut [u8]) {
        let bytes = (self.bits / 8) as usize;
        for lane in file[self.slot as usize..].chunks_exact_mut(bytes).take(32) {
            lane.copy_from_slice(&self.value.to_le_bytes()[..bytes]);
        }
    }
}

/// A register, or a row of them.
#[derive(Clone, Copy, Debug)]
struct Registers {
    slot: u32,
    ty: Type,
    count: u32,
}

/// Bits per lane of the slot that holds a type; 1 for predicates.
fn lane_bits(ty: Type) -> u32 {
    match ty.bits {
        1 => 1,
        ..=32 => 32,
        bits => bits,
    }
}

#[derive(Default)]
struct Scope<'a> {
    registers: HashMap<&'a str, Registers>,
    symbols: HashMap<&'a str, Symbol>,
    /// Bytes of an element, of variables.
    elements: HashMap<&'a str, u32>,
    labels: HashMap<&'a str, u32>,
    /// Instructions that branch to labels not yet found, and in which place of which list.
    pending: Vec<(u32, Option<u32>, &'a str)>,
    tables: HashMap<&'a str, Vec<&'a str>>,
}

/// What the function asks of the next phase once all is known.
pub(crate) struct Ended {
    pub decoded: Decoded,
    pub params: Vec<(u32, u32)>,
    pub returns: Vec<(u32, u32)>,
}

/// A function being decoded.
pub(crate) struct Body<'c, 'a> {
    pub context: &'c mut Context<'a>,
    pub layout: Layout,
    pub is_entry: bool,
    scopes: Vec<Scope<'a>>,
    edges: Vec<Edge>,
    start: u32,
    /// Source place of the instructions that follow.
    pub source: (u32, u32),
    /// Shared variables of the module that this entry uses.
    own_shared: HashMap<&'a str, u32>,
    params: Vec<(u32, u32)>,
    returns: Vec<(u32, u32)>,
    declared_bits: u32,
    /// Registers that the next piece of the current instruction uses; see
    /// [`Code::touched`](crate::code::Code).
    touching: Vec<u32>,
}

impl<'c, 'a> Body<'c, 'a> {
    pub fn new(context: &'c mut Context<'a>, layout: Layout, function: &Function<'a>) -> Result<Self> {
        let start = context.code.insts.len() as u32;
        let mut body = Body {
            context,
            layout,
            is_entry: function.is_entry,
            scopes: vec![Scope::default()],
            edges: Vec::new(),
            start,
            source: (0, 0),
            own_shared: HashMap::new(),
            params: Vec::new(),
            returns: Vec::new(),
            declared_bits: 0,
            touching: Vec::new(),
        };
        let mut offset = 0;
        for param in &function.params {
            if function.is_entry {
                offset = u32::next_multiple_of(offset, param.align);
                body.scope().symbols.insert(param.name, Symbol::EntryParam(offset));
                offset += param.bytes as u32;
            } else {
                let place = body.parameter(param)?;
                body.params.push(place);
            }
        }
        for result in &function.returns {
            let place = body.parameter(result)?;
            body.returns.push(place);
        }
        Ok(body)
    }

    /// A parameter of a device function, in local memory.
    fn parameter(&mut self, variable: &Variable<'a>) -> Result<(u32, u32)> {
        if variable.space == Space::Reg {
            return Err("`.reg` parameters of functions are not supported".to_string());
        }
        let offset = self.local(variable);
        Ok((offset, variable.bytes as u32))
    }

    fn scope(&mut self) -> &mut Scope<'a> {
        self.scopes.last_mut().expect("the function's own scope stays")
    }

    pub fn open(&mut self) {
        self.scopes.push(Scope::default());
    }

    pub fn close(&mut self) {
        let scope = self.scopes.pop().expect("braces are balanced");
        let left = self.resolve(scope);
        self.scope().pending.extend(left);
    }

    /// Fills in the branches of a scope that name its own labels; gives back the others.
    fn resolve(&mut self, scope: Scope<'a>) -> Vec<(u32, Option<u32>, &'a str)> {
        let mut left = Vec::new();
        for (at, list, name) in scope.pending {
            let Some(&target) = scope.labels.get(name) else {
                left.push((at, list, name));
                continue;
            };
            match list {
                None => self.context.code.insts[at as usize].target = target,
                Some(place) => self.context.code.lists[place as usize] = target,
            }
            match &mut self.edges[(at - self.start) as usize] {
                Edge::Branch { target: edge, .. } => *edge = target - self.start,
                Edge::Switch { targets, .. } => targets.push(target - self.start),
                _ => unreachable!("only branches wait for labels"),
            }
        }
        left
    }

    pub fn label(&mut self, name: &'a str) -> Result<()> {
        let here = self.context.code.insts.len() as u32;
        match self.scope().labels.insert(name, here) {
            None => Ok(()),
            Some(_) => Err(format!("label `{name}` is defined twice")),
        }
    }

    pub fn branch_targets(&mut self, name: &'a str, targets: &[&'a str]) {
        let targets = targets.to_vec();
        self.scope().tables.insert(name, targets);
    }

    pub fn table(&self, name: &str) -> Option<Vec<&'a str>> {
        self.scopes.iter().rev().find_map(|scope| scope.tables.get(name)).cloned()
    }

    /// The place to show for a `.loc`: the user's own code, not the library's.
    pub fn user_place(
        &self,
        place: (u32, u32),
        outer: &HashMap<(u32, u32), Option<(u32, u32)>>,
    ) -> Option<(u32, u32)> {
        let mut place = place;
        for _ in 0..32 {
            let library =
                self.context.code.files.get(&place.0).is_none_or(|path| path.contains("/library/core/"));
            if !library && place.1 != 0 {
                return Some(place);
            }
            match outer.get(&place) {
                Some(Some(call)) if *call != place => place = *call,
                _ => return None,
            }
        }
        None
    }

    fn slots(&mut self, lane_bits: u32, count: u32) -> u32 {
        let bytes = if lane_bits == 1 { (4 * count).next_multiple_of(64) } else { 4 * lane_bits * count };
        let slot = self.layout.next;
        self.layout.next += bytes;
        slot
    }

    /// Declares a variable or registers.
    pub fn declare(&mut self, variable: &Variable<'a>) -> Result<()> {
        let name = variable.name;
        self.scope().elements.insert(name, variable.ty.bytes() * variable.vector);
        match variable.space {
            Space::Reg => {
                if variable.vector != 1 {
                    return Err("vector registers are not supported".to_string());
                }
                let count = variable.count.unwrap_or(1);
                if count > 1 << 20 {
                    return Err(format!("{count} registers"));
                }
                self.declared_bits = self.declared_bits.max(count * (variable.ty.bits.max(32) / 32));
                let slot = self.slots(lane_bits(variable.ty), count);
                let registers = Registers { slot, ty: variable.ty, count: variable.count.unwrap_or(0) };
                self.scope().registers.insert(name, registers);
            }
            Space::Local | Space::Param => {
                self.local(variable);
            }
            Space::Shared if variable.external => {
                self.layout.dynamic_align = self.layout.dynamic_align.max(variable.align);
                self.scope().symbols.insert(name, Symbol::DynamicShared);
            }
            Space::Shared => {
                let offset = self.layout.shared.next_multiple_of(variable.align);
                self.layout.shared = offset + variable.bytes as u32;
                self.scope().symbols.insert(name, Symbol::Shared(offset));
            }
            Space::Global | Space::Const => {
                return Err("global variables inside functions are not supported".to_string());
            }
        }
        Ok(())
    }

    fn local(&mut self, variable: &Variable<'a>) -> u32 {
        let offset = self.layout.local.next_multiple_of(variable.align.max(1));
        self.layout.local = offset + variable.bytes as u32;
        let symbol = if variable.space == Space::Param {
            Symbol::Param(offset, variable.bytes as u32)
        } else {
            Symbol::Local(offset)
        };
        self.scope().symbols.insert(variable.name, symbol);
        offset
    }

    fn register(&self, name: &str) -> Option<(u32, Type)> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        for scope in self.scopes.iter().rev() {
            if let Some(r) = scope.registers.get(name)
                && r.count == 0
            {
                return Some((r.slot, r.ty));
            }
            if let Some(r) = scope.registers.get(prefix)
                && let Ok(number) = name[prefix.len()..].parse::<u32>()
                && number < r.count
            {
                let size = if r.ty.kind == Kind::Pred { 4 } else { 4 * lane_bits(r.ty) };
                return Some((r.slot + number * size, r.ty));
            }
        }
        None
    }

    /// What a name that is not a register means.
    pub fn symbol(&mut self, name: &str) -> Result<Symbol> {
        if let Some(symbol) = self.scopes.iter().rev().find_map(|scope| scope.symbols.get(name)) {
            return Ok(*symbol);
        }
        if let Some(&offset) = self.context.common_shared.get(name).or_else(|| self.own_shared.get(name)) {
            return Ok(Symbol::Shared(offset));
        }
        if let Some(variable) = self.context.shared.get(name) {
            if variable.external {
                self.layout.dynamic_align = self.layout.dynamic_align.max(variable.align);
                return Ok(Symbol::DynamicShared);
            }
            let offset = self.layout.shared.next_multiple_of(variable.align);
            self.layout.shared = offset + variable.bytes as u32;
            self.own_shared.insert(variable.name, offset);
            return Ok(Symbol::Shared(offset));
        }
        if let Some(refusal) = self.context.globals.refusal(name) {
            return Err(refusal.to_string());
        }
        if let Some(address) = self.context.globals.address(name) {
            return Ok(Symbol::Global(address));
        }
        Err(format!("`{name}` is not declared"))
    }

    /// The slot of a predicate.
    pub fn predicate(&mut self, name: &str) -> Result<u32> {
        match self.register(name) {
            Some((slot, ty)) if ty.kind == Kind::Pred => Ok(slot),
            Some((_, ty)) => Err(format!("`{name}` has {} bits, a predicate is expected", ty.bits)),
            None if name == "%is_explicit_cluster" => Ok(self.special(Special::IsExplicitCluster, 32)),
            None => Err(format!("predicate `{name}` is not declared")),
        }
    }

    /// A slot that holds a constant in every lane.
    pub fn constant(&mut self, value: u128, bits: u32) -> u32 {
        let bits = bits.max(32);
        let value = if bits == 128 { value } else { value & ((1 << bits) - 1) };
        let known = self.layout.constants.iter().find(|c| c.bits == bits && c.value == value);
        if let Some(constant) = known {
            return constant.slot;
        }
        let slot = self.slots(bits, 1);
        self.layout.constants.push(Constant { slot, bits, value });
        slot
    }

    pub fn special(&mut self, special: Special, bits: u32) -> u32 {
        if let Some((_, slot)) = self.layout.specials.iter().find(|(s, _)| *s == special) {
            return *slot;
        }
        let slot = self.slots(bits, 1);
        self.layout.specials.push((special, slot));
        slot
    }

    /// A slot for intermediate results and unwanted destinations.
    pub fn temporary(&mut self, bits: u32) -> u32 {
        self.slots(bits.max(32), 1)
    }

    /// The slot of a source operand of exactly this type's width.
    pub fn source(&mut self, operand: &Operand<'a>, ty: Type) -> Result<u32> {
        self.source_with(operand, ty, false).map(|(slot, _)| slot)
    }

    /// The slot of a source operand whose register may be wider than the type, and the register's type.
    pub fn wide_source(&mut self, operand: &Operand<'a>, ty: Type) -> Result<(u32, Type)> {
        self.source_with(operand, ty, true)
    }

    fn source_with(&mut self, operand: &Operand<'a>, ty: Type, wider: bool) -> Result<(u32, Type)> {
        if ty.kind == Kind::Pred {
            return match operand {
                Operand::Name(name) => Ok((self.predicate(name)?, ty)),
                Operand::Int(0) => Ok((self.constant(0, 32), ty)),
                Operand::Int(_) => Ok((TRUE, ty)),
                _ => Err("a predicate is expected".to_string()),
            };
        }
        let bits = ty.bits;
        let value = match operand {
            Operand::Name(name) => {
                if let Some((slot, has)) = self.register(name) {
                    self.touching.push(slot);
                    if has.bits == bits || wider && has.bits > bits && has.kind != Kind::Pred {
                        return Ok((slot, has));
                    }
                    return Err(format!("`{name}` has {} bits where {bits} are expected", has.bits));
                }
                if let Some((special, width)) = special(name) {
                    if width != bits && !(wider && width > bits) {
                        return Err(format!("`{name}` has {width} bits where {bits} are expected"));
                    }
                    return Ok((self.special(special, width), Type { kind: Kind::Bits, bits: width }));
                }
                if *name == "WARP_SZ" {
                    32
                } else if timer(name).is_some() {
                    return Err(format!("`{name}` can only be read by `mov`"));
                } else {
                    return self.address_constant(name, 0, bits).map(|slot| (slot, ty));
                }
            }
            Operand::Offset(name, offset) => {
                return self.address_constant(name, *offset, bits).map(|slot| (slot, ty));
            }
            Operand::Element(name, index) => {
                let offset = self.element_offset(name, *index)?;
                return self.address_constant(name, offset, bits).map(|slot| (slot, ty));
            }
            Operand::Int(value) => *value as u128,
            Operand::F32(value) if bits == 32 => u128::from(*value),
            Operand::F64(value) if bits == 64 => u128::from(*value),
            Operand::F64(value) if bits == 32 => u128::from((f64::from_bits(*value) as f32).to_bits()),
            Operand::F32(value) if bits == 64 => u128::from(f64::from(f32::from_bits(*value)).to_bits()),
            _ => return Err("this kind of operand is not possible here".to_string()),
        };
        let value = if bits < 32 { value & ((1 << bits) - 1) } else { value };
        Ok((self.constant(value, bits), ty))
    }

    /// Offset and size in local memory of an argument or a result of a call.
    pub fn argument_place(&mut self, operand: &Operand<'a>) -> Result<(u32, u32)> {
        match operand {
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Param(offset, size) => Ok((offset, size)),
                _ => Err(format!("`{name}` is not in `.param` space")),
            },
            _ => Err("arguments of calls are variables in `.param` space".to_string()),
        }
    }

    /// Bytes from the start of an array to one of its elements.
    fn element_offset(&self, name: &str, index: i64) -> Result<i64> {
        let own = self.scopes.iter().rev().find_map(|scope| scope.elements.get(name).copied());
        let shared = || self.context.shared.get(name).map(|v| v.ty.bytes() * v.vector);
        let bytes = own.or_else(shared).or_else(|| self.context.globals.element(name));
        let bytes = bytes.ok_or_else(|| format!("`{name}` is not an array"))?;
        Ok(index.wrapping_mul(i64::from(bytes)))
    }

    /// A slot with the address of a variable in its own state space.
    fn address_constant(&mut self, name: &str, offset: i64, bits: u32) -> Result<u32> {
        let address = match self.symbol(name)? {
            Symbol::DynamicShared if offset == 0 => {
                return Ok(self.special(Special::DynamicShared(bits == 64), bits));
            }
            Symbol::DynamicShared => {
                return Err(format!("`{name}` with an offset: take the address first"));
            }
            Symbol::Global(address) => address,
            Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at, _) => u64::from(at),
            Symbol::EntryParam(at) => u64::from(at),
        };
        if bits != 64 && bits != 32 {
            return Err(format!("the address of `{name}` in {bits} bits"));
        }
        Ok(self.constant(u128::from(address.wrapping_add(offset as u64)), bits))
    }

    /// The slot of a destination register of exactly this type's width.
    pub fn destination(&mut self, operand: &Operand<'a>, ty: Type) -> Result<u32> {
        match self.wide_destination(operand, ty)? {
            (slot, has) if has.bits == ty.bits => Ok(slot),
            (_, has) => Err(format!("the destination has {} bits where {} are expected", has.bits, ty.bits)),
        }
    }

    /// The slot of a destination register that may be wider than the type, and the register's type.
    pub fn wide_destination(&mut self, operand: &Operand<'a>, ty: Type) -> Result<(u32, Type)> {
        let Operand::Name(name) = operand else {
            return Err("the destination must be a register".to_string());
        };
        if *name == "_" {
            return Ok((if ty.kind == Kind::Pred { SCRATCH } else { self.temporary(ty.bits) }, ty));
        }
        let Some((slot, has)) = self.register(name) else {
            return Err(format!("register `{name}` is not declared"));
        };
        self.touching.push(slot | 1);
        if has.kind == Kind::Pred && ty.kind == Kind::Pred
            || has.bits >= ty.bits && has.kind != Kind::Pred && ty.kind != Kind::Pred
        {
            return Ok((slot, has));
        }
        Err(format!("`{name}` has {} bits where {} are expected", has.bits, ty.bits))
    }

    /// Base slot, offset, whether the slot has 32-bit lanes, and the symbol if the base is one, of
    /// `[base+offset]`.
    pub fn address(&mut self, operand: &Operand<'a>) -> Result<(u32, u64, bool, Option<Symbol>)> {
        let (base, offset) = match operand {
            Operand::Address(base, offset) => (base, offset),
            Operand::Element(name, index) => (&Some(*name), &self.element_offset(name, *index)?),
            _ => return Err("an address in brackets is expected".to_string()),
        };
        let Some(base) = base else {
            return Ok((self.constant(0, 64), *offset as u64, false, None));
        };
        if let Some((slot, ty)) = self.register(base) {
            self.touching.push(slot);
            return match ty.bits {
                64 => Ok((slot, *offset as u64, false, None)),
                32 => Ok((slot, *offset as u64, true, None)),
                bits => Err(format!("`{base}` has {bits} bits; addresses have 32 or 64")),
            };
        }
        let symbol = self.symbol(base)?;
        let slot = match symbol {
            Symbol::DynamicShared => self.special(Special::DynamicShared(true), 64),
            Symbol::Global(at) => self.constant(u128::from(at), 64),
            Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at, _) | Symbol::EntryParam(at) => {
                self.constant(u128::from(at), 64)
            }
        };
        Ok((slot, *offset as u64, false, Some(symbol)))
    }

    /// The registers named since the last instruction are not used by the next one.
    pub fn forget_touched(&mut self) {
        self.touching.clear();
    }

    /// Stores a list of slots and gives its place.
    pub fn list(&mut self, slots: &[u32]) -> u64 {
        let at = self.context.code.lists.len() as u64;
        self.context.code.lists.extend_from_slice(slots);
        at
    }

    fn push(&mut self, parts: &mut super::Parts<'_, 'a>, class: Class, inst: Inst, edge: Edge) -> u32 {
        let class = if parts.class_given { None } else { Some(class) };
        parts.class_given = true;
        let at = self.context.code.insts.len() as u32;
        self.context.code.insts.push(inst);
        self.context.code.touched.append(&mut self.touching);
        let touched = self.context.code.touched.len() as u32;
        self.context.code.touches.push(touched);
        self.context.code.origins.push(Origin { line: parts.line, source: self.source, class });
        self.edges.push(edge);
        at
    }

    /// Adds an instruction that goes on to the next one.
    pub fn emit(&mut self, parts: &mut super::Parts<'_, 'a>, class: Class, inst: Inst) {
        self.push(parts, class, inst, Edge::Next);
    }

    /// Adds the end of a path: `ret`, `exit`; with `dead`, one that lanes need not come back from.
    pub fn emit_end(&mut self, parts: &mut super::Parts<'_, 'a>, inst: Inst, dead: bool) {
        let conditional = parts.is_guarded();
        let edge =
            if dead { Edge::Switch { targets: vec![], conditional } } else { Edge::End { conditional } };
        self.push(parts, Class::Control, inst, edge);
    }

    /// Adds a branch to a label.
    pub fn emit_branch(&mut self, parts: &mut super::Parts<'_, 'a>, inst: Inst, label: &'a str) {
        let edge = Edge::Branch { target: 0, conditional: parts.is_guarded() };
        let at = self.push(parts, Class::Control, inst, edge);
        self.scope().pending.push((at, None, label));
    }

    /// Adds a branch to one of several labels, whose places go into list `inst.imm`.
    pub fn emit_switch(&mut self, parts: &mut super::Parts<'_, 'a>, inst: Inst, labels: &[&'a str]) {
        let edge = Edge::Switch { targets: Vec::new(), conditional: parts.is_guarded() };
        let first = inst.imm as u32;
        let at = self.push(parts, Class::Control, inst, edge);
        for (i, label) in labels.iter().enumerate() {
            self.scope().pending.push((at, Some(first + i as u32), label));
        }
    }

    /// A thread may come to have so many registers.
    pub fn raise_registers(&mut self, count: u32) {
        self.layout.raised_registers = self.layout.raised_registers.max(Some(count));
    }

    /// The carry flag's slot.
    pub fn carry(&self) -> u32 {
        CARRY
    }
}

impl Body<'_, '_> {
    /// Everything of the function has been seen.
    pub fn end(mut self) -> Result<Ended> {
        let scope = self.scopes.pop().ok_or("braces do not match")?;
        // Control that runs off the end is caught there.
        let code = &mut self.context.code;
        let line = code.origins.last().map_or(1, |o| o.line);
        code.insts.push(Inst {
            run: Run(run::fell_off),
            imm: 0,
            d: 0,
            a: 0,
            b: 0,
            c: 0,
            e: 0,
            guard: TRUE,
            flip: 0,
            target: 0,
        });
        code.origins.push(Origin { line, source: self.source, class: None });
        code.touches.push(code.touched.len() as u32);
        self.edges.push(Edge::Switch { targets: vec![], conditional: false });
        if let Some((_, _, name)) = self.resolve(scope).first() {
            return Err(format!("label `{name}` is not defined"));
        }
        let ends = |at: u32| self.is_entry && self.edges[at as usize] == Edge::End { conditional: false };
        for (at, meet) in meeting_points(&self.edges) {
            // Meeting only to exit is no use, and would keep exited lanes alive.
            let meet = meet.filter(|&at| !ends(at)).map_or(NONE, |at| self.start + at);
            self.context.code.insts[self.start as usize + at].e = meet;
        }
        Ok(Ended {
            decoded: Decoded {
                start: self.start,
                layout: std::mem::take(&mut self.layout),
                registers_estimate: self.declared_bits.min(255),
            },
            params: std::mem::take(&mut self.params),
            returns: std::mem::take(&mut self.returns),
        })
    }
}
