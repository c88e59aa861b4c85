//! Global memory as the copy engine reads and writes it: lines of bytes, and boxes of tensors.
//!
//! The data of a box is a copy of what shared memory holds from the box's address on, swizzled as it is
//! there.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::counters::Counters;
use crate::fault::FaultKind;
use crate::state::element::{Atomic, Element};
use crate::state::environment::Environment;
use crate::state::mbarrier::Hollow;
use crate::state::memory::{Allocation, Lookup};
use crate::state::operations::Global;
use crate::state::overlap;
use crate::state::reduction::Reduction;
use crate::tensor_map::TensorMapError;

/// Why a transfer is impossible.
pub(crate) type Refusal = (FaultKind, String);

struct Refused(Refusal);

impl From<TensorMapError> for Refused {
    fn from(error: TensorMapError) -> Refused {
        let kind = if error.argument.contains("address") {
            FaultKind::Misaligned
        } else {
            FaultKind::InvalidOperand
        };
        Refused((kind, error.to_string()))
    }
}

/// Finds the allocation of a range of global memory; neighbouring ranges are found quickly.
struct Finder<'a> {
    env: &'a Environment<'a>,
    /// Whether unsettled memory may be touched.
    waited: bool,
    last: Option<&'a Allocation>,
}

impl<'a> Finder<'a> {
    fn find(&mut self, address: u64, bytes: u64, what: &str) -> Result<(&'a Allocation, usize), Refusal> {
        if !self.waited
            && let Some(detail) = overlap::refusal(self.env, address, bytes, what)
        {
            return Err((FaultKind::MissingGridWait, detail));
        }
        let inside = |a: &Allocation| {
            address >= a.base && address - a.base <= a.len && a.len - (address - a.base) >= bytes
        };
        if let Some(allocation) = self.last
            && inside(allocation)
        {
            return Ok((allocation, (address - allocation.base) as usize));
        }
        match self.env.memory.lookup(address) {
            Lookup::Live(allocation) if inside(allocation) => {
                self.last = Some(allocation);
                Ok((allocation, (address - allocation.base) as usize))
            }
            Lookup::Live(allocation) => Err((
                FaultKind::OutOfBounds,
                format!(
                    "bulk {what} of {bytes} bytes at {address:#x}, outside the allocation of {} bytes at {:#x}",
                    allocation.len, allocation.base
                ),
            )),
            Lookup::Freed => Err((
                FaultKind::UseAfterFree,
                format!("bulk {what} at {address:#x}, in an allocation that was freed"),
            )),
            Lookup::Unmapped => Err((
                FaultKind::OutOfBounds,
                format!("bulk {what} at {address:#x}, which was never allocated"),
            )),
        }
    }
}

/// Whether there is memory to prefetch, which reads nothing and so need not wait.
pub(crate) fn may_prefetch(env: &Environment<'_>, address: u64, bytes: u64) -> Result<(), Refusal> {
    Finder { env, waited: true, last: None }.find(address, bytes, "prefetch").map(|_| ())
}

/// Bytes `at` and on of `allocation`, and whether each has been written, into `to`; calls `missing` for each
/// that has not.
fn load(allocation: &Allocation, at: usize, to: &mut [u8], mut missing: impl FnMut(usize)) {
    allocation.check(at as u64, to.len() as u64);
    // SAFETY: the range is inside the allocation, which is shared only as atomics.
    unsafe {
        let data = allocation.data().add(at);
        if data.addr().is_multiple_of(8) && to.len().is_multiple_of(8) {
            for (i, word) in to.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&u64::load(data.add(8 * i)).to_le_bytes());
            }
        } else {
            for (i, byte) in to.iter_mut().enumerate() {
                *byte = u8::load(data.add(i));
            }
        }
        if !allocation.is_full() {
            let shadow = allocation.shadow().add(at);
            for i in 0..to.len() {
                if (*shadow.add(i).cast::<AtomicU8>()).load(Relaxed) == 0 {
                    missing(i);
                }
            }
        }
    }
}

fn store(allocation: &Allocation, at: usize, from: &[u8]) {
    allocation.check(at as u64, from.len() as u64);
    // SAFETY: the range is inside the allocation, which is shared only as atomics.
    unsafe {
        let data = allocation.data().add(at);
        if data.addr().is_multiple_of(8) && from.len().is_multiple_of(8) {
            for (i, word) in from.chunks_exact(8).enumerate() {
                u64::from_bytes(word).store(data.add(8 * i));
            }
        } else {
            for (i, byte) in from.iter().enumerate() {
                byte.store(data.add(i));
            }
        }
        if !allocation.is_full() {
            let shadow = allocation.shadow().add(at);
            for i in 0..from.len() {
                1u8.store(shadow.add(i));
            }
        }
    }
}

/// # Safety
/// `at` is aligned and inside an allocation.
unsafe fn combine<E: Atomic + Into<u64> + TryFrom<u64>>(
    at: *mut u8,
    bytes: &[u8],
    combine: fn(u64, u64) -> u64,
) {
    let new: u64 = E::from_bytes(bytes).into();
    // SAFETY: by the caller's contract.
    unsafe {
        let mut old = E::load(at);
        while let Ok(sum) = E::try_from(combine(old.into(), new))
            && let Err(now) = E::exchange_if(at, old, sum)
        {
            old = now;
        }
    }
}

fn reduce(allocation: &Allocation, at: usize, from: &[u8], reduction: Reduction) -> Result<(), Refusal> {
    let size = (reduction.bits / 8) as usize;
    let mut unwritten = None;
    let mut old = vec![0; from.len()];
    load(allocation, at, &mut old, |i| unwritten = unwritten.or(Some(i)));
    if let Some(i) = unwritten {
        let address = allocation.base + (at + i) as u64;
        let detail = format!("bulk reduction at {address:#x}, where nothing has been written");
        return Err((FaultKind::Uninitialised, detail));
    }
    for (i, bytes) in from.chunks_exact(size).enumerate() {
        // SAFETY: in bounds, and aligned because the range and the allocation are 16-byte aligned.
        unsafe {
            let element = allocation.data().add(at + i * size);
            match reduction.bits {
                16 => combine::<u16>(element, bytes, reduction.combine),
                32 => combine::<u32>(element, bytes, reduction.combine),
                _ => combine::<u64>(element, bytes, reduction.combine),
            }
        }
    }
    Ok(())
}

/// Bytes and 32-byte sectors of a range.
fn sectors(address: u64, bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { ((address + bytes - 1) >> 5) - (address >> 5) + 1 }
}

/// What shared memory is to hold from `shared` on, and the words of it that come from bytes nobody has
/// written.
pub(super) fn read(
    env: &Environment<'_>,
    waited: bool,
    counters: &mut Counters,
    from: &Global,
    shared: u64,
    bytes: u32,
) -> Result<(Vec<u8>, Hollow), Refusal> {
    let mut data = vec![0; bytes as usize];
    let mut hollow = Hollow::new();
    let mut note = |address: u64| {
        let (word, bit) = (address & !3, 1 << (address & 3));
        match hollow.last_mut() {
            Some((last, mask)) if *last == word => *mask |= bit,
            _ => hollow.push((word, bit)),
        }
    };
    let mut finder = Finder { env, waited, last: None };
    match from {
        Global::Line(address) => {
            let (allocation, at) = finder.find(*address, u64::from(bytes), "load")?;
            load(allocation, at, &mut data, |i| note(shared + i as u64));
            counters.global_load_bytes += u64::from(bytes);
            counters.global_load_sectors += sectors(*address, u64::from(bytes));
        }
        Global::Tile(map, coordinates) => {
            let fill = map.fill();
            let mut last_sector = u64::MAX;
            map.visit_box::<Refused>(coordinates, shared as u32, |chunk| {
                let place = &mut data[chunk.shared as usize - shared as usize..][..16];
                place.copy_from_slice(&fill);
                if chunk.valid.is_empty() {
                    return Ok(());
                }
                let (start, length) = (chunk.valid.start, chunk.valid.len());
                let address = chunk.global + start as u64;
                let (allocation, at) = finder.find(address, length as u64, "load").map_err(Refused)?;
                load(allocation, at, &mut place[chunk.valid], |i| {
                    note(u64::from(chunk.shared) + (start + i) as u64);
                });
                counters.global_load_bytes += length as u64;
                let first = address >> 5;
                let end = (address + length as u64 - 1) >> 5;
                counters.global_load_sectors += end - first + u64::from(first != last_sector);
                last_sector = end;
                Ok(())
            })
            .map_err(|refused| refused.0)?;
        }
    }
    Ok((data, hollow))
}

/// Writes what shared memory held from `shared` on.
pub(super) fn write(
    env: &Environment<'_>,
    waited: bool,
    counters: &mut Counters,
    to: &Global,
    shared: u64,
    data: &[u8],
    reduction: Option<Reduction>,
) -> Result<(), Refusal> {
    let mut finder = Finder { env, waited, last: None };
    let mut put = |address: u64, bytes: &[u8]| {
        let what = if reduction.is_some() { "reduction" } else { "store" };
        let (allocation, at) = finder.find(address, bytes.len() as u64, what)?;
        allocation.note_writer(at as u64, bytes.len() as u64, env.number);
        counters.global_store_bytes += bytes.len() as u64;
        counters.global_store_sectors += sectors(address, bytes.len() as u64);
        match reduction {
            None => store(allocation, at, bytes),
            Some(reduction) => reduce(allocation, at, bytes, reduction)?,
        }
        Ok(())
    };
    match to {
        Global::Line(address) => put(*address, data),
        Global::Tile(map, coordinates) => map
            .visit_box::<Refused>(coordinates, shared as u32, |chunk| {
                if chunk.valid.is_empty() {
                    return Ok(());
                }
                let bytes = &data[chunk.shared as usize - shared as usize..][..16];
                put(chunk.global + chunk.valid.start as u64, &bytes[chunk.valid]).map_err(Refused)
            })
            .map_err(|refused| refused.0),
    }
}
