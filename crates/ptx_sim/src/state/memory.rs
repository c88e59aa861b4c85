//! Global memory: allocations in a 47-bit address space, with a shadow byte per byte that says "written".
//!
//! ```text
//!   FIRST                granule (2 MiB)
//!     │ 256·k │ allocation, 256-byte aligned │ guard ... │ 256·k' │ next allocation ...
//! ```
//!
//! Every allocation starts in a granule of its own, so one table lookup by granule finds it, and addresses
//! are never given out twice, so a freed one stays recognisable. Bases are 256-byte aligned and deliberately
//! no better, as `cuMemAlloc` promises no more.
//!
//! Blocks on several threads may access one byte at a time without order between them. All accesses are
//! therefore relaxed atomics, which makes a racing kernel's result arbitrary but never undefined behaviour
//! here.
//!
//! Bytes that a kernel has discarded count as never written again, and hold [`DISCARDED`] for whoever reads
//! them unchecked, as the host does.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

/// First address of global memory.
pub const FIRST: u64 = 0x1000_0000_0000;
/// First address past global memory.
pub const LAST: u64 = 0x7000_0000_0000;
/// Bytes that count as written together, where the last writer is kept.
pub(crate) const UNIT: u64 = 16;
/// What discarded bytes become: no small number in any type.
const DISCARDED: u8 = 0xdd;
/// Logarithm of the granule size.
const GRANULE: u32 = 21;
/// Bytes between the end of an allocation and the end of its last granule, at least.
const GUARD: u64 = 64 << 10;

/// Why a memory operation was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// Not enough memory left.
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes left.
        free: u64,
    },
    /// The range is not inside one live allocation.
    InvalidAddress {
        /// First address.
        address: u64,
        /// Length in bytes.
        bytes: u64,
        /// Which rule it breaks.
        reason: String,
    },
    /// The fill pattern is not 1, 2 or 4 bytes long.
    InvalidPattern(usize),
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryError::OutOfMemory { requested, free } => {
                write!(f, "out of device memory: {requested} bytes requested, {free} free")
            }
            MemoryError::InvalidAddress { address, bytes, reason } => {
                write!(f, "device address {address:#x} + {bytes} bytes: {reason}")
            }
            MemoryError::InvalidPattern(bytes) => {
                write!(f, "fill pattern of {bytes} bytes: 1, 2 or 4 are possible")
            }
        }
    }
}

impl std::error::Error for MemoryError {}

/// Zeroed, 256-byte aligned bytes that threads share through relaxed atomics.
struct Bytes {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the bytes are owned by this value and only ever accessed as atomics.
unsafe impl Send for Bytes {}
// SAFETY: as above, shared access goes through relaxed atomics only.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn zeroed(len: u64) -> Bytes {
        let size = usize::try_from(len.max(1)).expect("a 64-bit host").next_multiple_of(64);
        let layout = Layout::from_size_align(size, 256).expect("a valid layout");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Bytes { start, layout }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout in `zeroed`.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// One live allocation.
pub(crate) struct Allocation {
    /// First device address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    data: Bytes,
    shadow: Bytes,
    /// For every [`UNIT`] bytes the number of the launch that wrote there last, a u32.
    writers: Bytes,
    /// Every byte has been written, and none discarded since: the shadow is all ones, and need not be looked
    /// at.
    full: AtomicBool,
}

impl Allocation {
    /// Host address of the byte at device address `base`.
    pub fn data(&self) -> *mut u8 {
        self.data.start.as_ptr()
    }

    /// Host address of the shadow of the byte at device address `base`.
    pub fn shadow(&self) -> *mut u8 {
        self.shadow.start.as_ptr()
    }

    /// Whether every byte is known to be initialised.
    pub fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// Panics unless a range is inside.
    #[inline(always)]
    pub fn check(&self, offset: u64, bytes: u64) {
        let inside = offset <= self.len && bytes <= self.len - offset;
        assert!(inside, "{bytes} bytes at {offset} of an allocation of {}", self.len);
    }

    /// Numbers of the launches that last wrote the units of a range inside; 0 where none did.
    pub fn writers(&self, offset: u64, bytes: u64) -> impl Iterator<Item = u32> {
        self.units(offset, bytes).iter().map(|writer| writer.load(Relaxed))
    }

    /// Notes who writes a range inside.
    #[inline(always)]
    pub fn note_writer(&self, offset: u64, bytes: u64, number: u32) {
        for writer in self.units(offset, bytes) {
            writer.store(number, Relaxed);
        }
    }

    #[inline(always)]
    fn units(&self, offset: u64, bytes: u64) -> &[AtomicU32] {
        self.check(offset, bytes);
        let (first, end) = (offset / UNIT, (offset + bytes).div_ceil(UNIT));
        // SAFETY: the range is inside, and there is an aligned word for every unit of the allocation, shared
        // only as an atomic.
        unsafe {
            let words = self.writers.start.as_ptr().cast::<AtomicU32>();
            std::slice::from_raw_parts(words.add(first as usize), (end - first) as usize)
        }
    }

    fn bytes(&self, of: &Bytes, offset: u64, len: u64) -> &[AtomicU8] {
        self.check(offset, len);
        // SAFETY: the range is inside the allocation, which lives as long as `self`; `of` has as many bytes,
        // whose layout is that of `AtomicU8`.
        unsafe {
            std::slice::from_raw_parts(
                of.start.as_ptr().add(offset as usize).cast::<AtomicU8>(),
                len as usize,
            )
        }
    }

    /// Copies bytes at a device address out; `None` if they are not all inside.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Option<()> {
        let offset = address.checked_sub(self.base)?;
        if offset > self.len || self.len - offset < to.len() as u64 {
            return None;
        }
        let from = self.bytes(&self.data, offset, to.len() as u64);
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.load(Relaxed);
        }
        Some(())
    }

    fn store(&self, offset: u64, src: &[u8]) {
        for (d, s) in self.bytes(&self.data, offset, src.len() as u64).iter().zip(src) {
            d.store(*s, Relaxed);
        }
    }

    /// Makes a range inside indeterminate: as if nobody had written it.
    pub fn discard(&self, offset: u64, len: u64) {
        self.full.store(false, Relaxed);
        for (d, s) in self.bytes(&self.data, offset, len).iter().zip(self.bytes(&self.shadow, offset, len)) {
            s.store(0, Relaxed);
            d.store(DISCARDED, Relaxed);
        }
    }

    fn mark(&self, offset: u64, len: u64) {
        if self.is_full() {
            return;
        }
        for s in self.bytes(&self.shadow, offset, len) {
            s.store(1, Relaxed);
        }
        if len == self.len {
            self.full.store(true, Relaxed);
        }
    }
}

/// What a granule belongs to: an index into `allocations`, plus one; zero is unmapped.
#[derive(Clone, Default)]
pub(crate) struct Table {
    granules: Vec<u32>,
    allocations: Vec<Option<Arc<Allocation>>>,
}

/// Outcome of looking an address up.
pub(crate) enum Lookup<'a> {
    /// In or just past this allocation.
    Live(&'a Allocation),
    /// The allocation was freed.
    Freed,
    /// Never allocated.
    Unmapped,
}

impl Table {
    /// The allocation whose granules hold `address`.
    #[inline]
    pub fn lookup(&self, address: u64) -> Lookup<'_> {
        let granule = (address.wrapping_sub(FIRST) >> GRANULE) as usize;
        match self.granules.get(granule) {
            None | Some(0) => Lookup::Unmapped,
            Some(index) => match &self.allocations[*index as usize - 1] {
                Some(allocation) => Lookup::Live(allocation),
                None => Lookup::Freed,
            },
        }
    }

    fn range(&self, address: u64, bytes: u64) -> Result<(&Arc<Allocation>, u64), MemoryError> {
        let invalid = |reason: String| MemoryError::InvalidAddress { address, bytes, reason };
        let granule = (address.wrapping_sub(FIRST) >> GRANULE) as usize;
        let index = self.granules.get(granule).copied().unwrap_or(0);
        if index == 0 {
            return Err(invalid("not an address of device memory".into()));
        }
        let Some(allocation) = &self.allocations[index as usize - 1] else {
            return Err(invalid("the allocation was freed".into()));
        };
        let (base, len) = (allocation.base, allocation.len);
        if address < base || address - base > len || bytes > len - (address - base) {
            return Err(invalid(format!("outside the allocation of {len} bytes at {base:#x}")));
        }
        Ok((allocation, address - base))
    }
}

/// The global memory of one machine.
pub struct GlobalMemory {
    total: u64,
    used: AtomicU64,
    table: RwLock<Arc<Table>>,
}

impl GlobalMemory {
    /// Empty memory of `total` bytes.
    pub fn new(total: u64) -> GlobalMemory {
        GlobalMemory { total, used: AtomicU64::new(0), table: RwLock::default() }
    }

    /// The table as it is now; launches work on such a snapshot.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.read().expect("no holder panics").clone()
    }

    /// Free and total bytes.
    pub fn info(&self) -> (u64, u64) {
        (self.total - self.used.load(Relaxed), self.total)
    }

    /// See [`crate::Machine::alloc`].
    pub fn alloc(&self, bytes: u64) -> Result<u64, MemoryError> {
        let mut guard = self.table.write().expect("no holder panics");
        let used = self.used.load(Relaxed);
        let full = MemoryError::OutOfMemory { requested: bytes, free: self.total - used };
        if bytes > self.total - used {
            return Err(full);
        }
        let table = Arc::make_mut(&mut guard);
        let first = table.granules.len() as u64;
        // An odd multiple of 256 bytes: no better aligned than promised.
        let offset = 256 * (1 + 2 * (table.allocations.len() as u64 % 5));
        let base = FIRST + (first << GRANULE) + offset;
        let granules = (offset + bytes + GUARD).div_ceil(1 << GRANULE);
        if base + (granules << GRANULE) > LAST {
            return Err(full);
        }
        table.allocations.push(Some(Arc::new(Allocation {
            base,
            len: bytes,
            data: Bytes::zeroed(bytes),
            shadow: Bytes::zeroed(bytes),
            writers: Bytes::zeroed(bytes.div_ceil(UNIT) * 4),
            full: AtomicBool::new(bytes == 0),
        })));
        let index = table.allocations.len() as u32;
        table.granules.extend(std::iter::repeat_n(index, granules as usize));
        self.used.store(used + bytes, Relaxed);
        Ok(base)
    }

    /// See [`crate::Machine::free`].
    pub fn free(&self, ptr: u64) -> Result<(), MemoryError> {
        let mut guard = self.table.write().expect("no holder panics");
        let (base, len) = {
            let (allocation, _) = guard.range(ptr, 0)?;
            (allocation.base, allocation.len)
        };
        if base != ptr {
            let reason = format!("not the start of the allocation at {base:#x}");
            return Err(MemoryError::InvalidAddress { address: ptr, bytes: 0, reason });
        }
        let table = Arc::make_mut(&mut guard);
        let index = table.granules[(ptr.wrapping_sub(FIRST) >> GRANULE) as usize];
        table.allocations[index as usize - 1] = None;
        self.used.fetch_sub(len, Relaxed);
        Ok(())
    }

    /// See [`crate::Machine::allocation`].
    pub fn allocation(&self, ptr: u64) -> Option<(u64, u64)> {
        let table = self.table();
        let (allocation, offset) = table.range(ptr, 0).ok()?;
        (offset < allocation.len || allocation.len == 0).then_some((allocation.base, allocation.len))
    }

    /// See [`crate::Machine::write`].
    pub fn write(&self, dst: u64, src: &[u8]) -> Result<(), MemoryError> {
        let table = self.table();
        let (allocation, offset) = table.range(dst, src.len() as u64)?;
        allocation.store(offset, src);
        allocation.mark(offset, src.len() as u64);
        Ok(())
    }

    /// See [`crate::Machine::read`].
    pub fn read(&self, src: u64, dst: &mut [u8]) -> Result<(), MemoryError> {
        self.each(src, dst, |to, byte| *to = byte)
    }

    /// See [`crate::Machine::read_new`].
    pub fn read_new(&self, src: u64, dst: &mut [MaybeUninit<u8>]) -> Result<(), MemoryError> {
        self.each(src, dst, |to, byte| {
            to.write(byte);
        })
    }

    /// Gives `put` as many bytes as `to` has elements.
    fn each<T>(&self, src: u64, to: &mut [T], put: impl Fn(&mut T, u8)) -> Result<(), MemoryError> {
        let table = self.table();
        let (allocation, offset) = table.range(src, to.len() as u64)?;
        let bytes = allocation.bytes(&allocation.data, offset, to.len() as u64);
        to.iter_mut().zip(bytes).for_each(|(to, byte)| put(to, byte.load(Relaxed)));
        Ok(())
    }

    /// See [`crate::Machine::copy`].
    pub fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<(), MemoryError> {
        let table = self.table();
        let (from, from_offset) = table.range(src, bytes)?;
        let (to, to_offset) = table.range(dst, bytes)?;
        if Arc::ptr_eq(from, to)
            && from_offset < to_offset + bytes
            && to_offset < from_offset + bytes
            && bytes > 0
        {
            let reason = format!("source {src:#x} and destination {dst:#x} overlap");
            return Err(MemoryError::InvalidAddress { address: dst, bytes, reason });
        }
        let source = from.bytes(&from.data, from_offset, bytes);
        for (d, s) in to.bytes(&to.data, to_offset, bytes).iter().zip(source) {
            d.store(s.load(Relaxed), Relaxed);
        }
        if from.is_full() {
            to.mark(to_offset, bytes);
        } else if !to.is_full() {
            let source = from.bytes(&from.shadow, from_offset, bytes);
            for (d, s) in to.bytes(&to.shadow, to_offset, bytes).iter().zip(source) {
                d.store(s.load(Relaxed), Relaxed);
            }
        }
        Ok(())
    }

    /// See [`crate::Machine::fill`].
    pub fn fill(&self, dst: u64, pattern: &[u8], count: u64) -> Result<(), MemoryError> {
        if ![1, 2, 4].contains(&pattern.len()) {
            return Err(MemoryError::InvalidPattern(pattern.len()));
        }
        let bytes = count.saturating_mul(pattern.len() as u64);
        let table = self.table();
        let (allocation, offset) = table.range(dst, bytes)?;
        for (d, s) in allocation.bytes(&allocation.data, offset, bytes).iter().zip(pattern.iter().cycle()) {
            d.store(*s, Relaxed);
        }
        allocation.mark(offset, bytes);
        Ok(())
    }
}
