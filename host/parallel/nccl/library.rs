//! NCCL's library, found at run time, and the [`Table`] of its functions. Names are NVIDIA's, from `nccl.h`.
//!
//! Nothing of NCCL is linked. It is looked for under, in this order,
//!
//! 1. `FP8_MOE_NCCL`: a path, and nothing else if it is set;
//! 2. `libnccl.so.2`, where the system's loader looks;
//! 3. `nvidia/nccl/lib/libnccl.so.2` in the `site-packages` or `dist-packages` of each `python3` of `PATH`:
//!    PyPI's wheel `nvidia-nccl-cu12` or `-cu13`, which PyTorch brings.
#![allow(non_snake_case, non_camel_case_types, non_upper_case_globals)]

use std::ffi::{CStr, OsString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// The environment variable with the library's path.
const VARIABLE: &str = "FP8_MOE_NCCL";
/// What the system's loader is asked for.
const NAME: &str = "libnccl.so.2";
/// Where PyPI's wheel has it, in `site-packages`.
const IN_WHEEL: &str = "nvidia/nccl/lib/libnccl.so.2";
/// The oldest version that has all functions of the table and all fields of [`ncclConfig_t`]: 2.18.0.
const OLDEST: c_int = 21800;

/// What a function of NCCL returns: 0, or why it failed.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ncclResult_t(pub c_int);

/// The call has succeeded.
pub const ncclSuccess: ncclResult_t = ncclResult_t(0);
/// Another rank has failed.
pub const ncclRemoteError: ncclResult_t = ncclResult_t(6);
/// The call goes on in the background; `ncclCommGetAsyncError` says when it is done.
pub const ncclInProgress: ncclResult_t = ncclResult_t(7);

/// A communicator of NCCL.
pub type ncclComm_t = *mut c_void;
/// A stream of the CUDA driver.
pub type cudaStream_t = *mut c_void;

/// One byte.
pub const ncclUint8: c_int = 1;
/// IEEE binary16.
pub const ncclFloat16: c_int = 6;
/// IEEE binary32.
pub const ncclFloat32: c_int = 7;
/// bfloat16.
pub const ncclBfloat16: c_int = 9;
/// The operation of a reduction.
pub const ncclSum: c_int = 0;

/// What the ranks of a communicator find each other by. Rank 0 draws it and gives it to the others.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ncclUniqueId {
    /// 128 bytes that mean something to NCCL alone.
    pub internal: [u8; 128],
}

/// The options of a new communicator, as of NCCL 2.18. Later versions have more fields behind these, and take
/// `size` for how many there are.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ncclConfig_t {
    /// Bytes of this struct.
    pub size: usize,
    /// A number that tells it from others.
    pub magic: c_uint,
    /// The version that it is of.
    pub version: c_uint,
    /// 0: calls may return [`ncclInProgress`].
    pub blocking: c_int,
    /// Blocks of a cluster.
    pub cgaClusterSize: c_int,
    /// Fewest blocks of a kernel.
    pub minCTAs: c_int,
    /// Most blocks of a kernel.
    pub maxCTAs: c_int,
    /// The network to use; null for any.
    pub netName: *const c_char,
    /// Whether communicators split from this one share its resources.
    pub splitShare: c_int,
}

impl ncclConfig_t {
    /// All defaults, but that calls do not block.
    pub fn non_blocking() -> ncclConfig_t {
        ncclConfig_t {
            size: size_of::<ncclConfig_t>(),
            magic: 0xcafe_beef,
            version: OLDEST as c_uint,
            blocking: 0,
            // What is undefined takes its default.
            cgaClusterSize: c_int::MIN,
            minCTAs: c_int::MIN,
            maxCTAs: c_int::MIN,
            netName: std::ptr::null(),
            splitShare: c_int::MIN,
        }
    }
}

macro_rules! table {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        /// The functions of NCCL that this library calls.
        #[derive(Clone, Copy, Debug)]
        pub struct Table {
            $($(#[$doc])* pub $name: unsafe extern "C" fn($($argument: $type),*) -> $result,)*
        }

        impl Table {
            /// Fills the table, asking `lookup` for the address of each function. The error is the name of
            /// the first that it does not have.
            ///
            /// # Safety
            /// `lookup` must give, for each name, null or the address of a function of the meaning and
            /// signature that NCCL has under it, which stays there as long as the process.
            unsafe fn fill(lookup: impl Fn(&CStr) -> *const c_void) -> Result<Table, &'static str> {
                Ok(Table {
                    $($name: {
                        const NAME: &CStr =
                            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                                Ok(name) => name,
                                Err(_) => panic!("a name has no NUL"),
                            };
                        let address = lookup(NAME);
                        if address.is_null() {
                            return Err(stringify!($name));
                        }
                        // SAFETY: by the caller's contract this is a function of that signature.
                        unsafe {
                            std::mem::transmute::<
                                *const c_void,
                                unsafe extern "C" fn($($type),*) -> $result,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}

table! {
    /// The version: 10000 * major + 100 * minor + patch.
    fn ncclGetVersion(version: *mut c_int) -> ncclResult_t;
    /// Draws a new id.
    fn ncclGetUniqueId(id: *mut ncclUniqueId) -> ncclResult_t;
    /// Makes a rank's communicator, of the current context's device.
    fn ncclCommInitRankConfig(
        comm: *mut ncclComm_t,
        ranks: c_int,
        id: ncclUniqueId,
        rank: c_int,
        config: *mut ncclConfig_t,
    ) -> ncclResult_t;
    /// Begins to end a communicator, whose calls complete.
    fn ncclCommFinalize(comm: ncclComm_t) -> ncclResult_t;
    /// Frees a communicator.
    fn ncclCommDestroy(comm: ncclComm_t) -> ncclResult_t;
    /// Stops a communicator's kernels and frees it.
    fn ncclCommAbort(comm: ncclComm_t) -> ncclResult_t;
    /// What has become of a communicator's calls.
    fn ncclCommGetAsyncError(comm: ncclComm_t, result: *mut ncclResult_t) -> ncclResult_t;
    /// R.
    fn ncclCommCount(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t;
    /// The device's number.
    fn ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t;
    /// The rank.
    fn ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t;
    /// One line on a result.
    fn ncclGetErrorString(result: ncclResult_t) -> *const c_char;
    /// What this thread's last failed call says.
    fn ncclGetLastError(comm: ncclComm_t) -> *const c_char;
    /// The calls up to `ncclGroupEnd` are one.
    fn ncclGroupStart() -> ncclResult_t;
    /// Enqueues them.
    fn ncclGroupEnd() -> ncclResult_t;
    /// Every rank's `count` elements to every rank.
    fn ncclAllGather(
        send: *const c_void,
        receive: *mut c_void,
        count: usize,
        data_type: c_int,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t;
    /// The sum of every rank's elements to every rank.
    fn ncclAllReduce(
        send: *const c_void,
        receive: *mut c_void,
        count: usize,
        data_type: c_int,
        operation: c_int,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t;
    /// Elements to a rank.
    fn ncclSend(
        send: *const c_void,
        count: usize,
        data_type: c_int,
        peer: c_int,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t;
    /// Elements from a rank.
    fn ncclRecv(
        receive: *mut c_void,
        count: usize,
        data_type: c_int,
        peer: c_int,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t;
}

/// NCCL, loaded. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Library(&'static Inner);

struct Inner {
    table: Table,
    version: c_int,
    path: PathBuf,
}

impl Library {
    /// NCCL as it is found; loaded by the first call.
    ///
    /// # Errors
    /// If there is none, or if it is older than 2.18. The error says where it was looked for.
    pub fn load() -> Result<Library> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| Self::find().map_err(|error| error.to_string()));
        library.clone().map_err(|meaning| Error::Nccl { call: "load", meaning })
    }

    fn find() -> Result<Library, String> {
        let given = std::env::var_os(VARIABLE).map(PathBuf::from);
        let mut tried = Vec::new();
        for path in candidates(given, std::env::var_os("PATH")) {
            // SAFETY: loading runs the library's initialisers; a library of this name is NCCL, and is made to
            // be loaded like this.
            match unsafe { libloading::Library::new(&path) } {
                // It stays loaded until the process ends: NCCL has threads of its own.
                Ok(library) => return Self::of(Box::leak(Box::new(library)), path),
                Err(error) => tried.push(format!("{} ({error})", path.display())),
            }
        }
        Err(format!("not found; {VARIABLE} names the library. Tried: {}", tried.join("; ")))
    }

    fn of(library: &'static libloading::Library, path: PathBuf) -> Result<Library, String> {
        let lookup = |name: &CStr| -> *const c_void {
            // SAFETY: the symbol is only turned into an address here.
            let symbol = unsafe { library.get::<*const c_void>(name.to_bytes_with_nul()) };
            symbol.map_or(std::ptr::null(), |symbol| *symbol)
        };
        // SAFETY: the library's functions are NCCL's, and it stays loaded.
        let table = unsafe { Table::fill(lookup) }
            .map_err(|function| format!("{} lacks {function}; 2.18 or newer is needed", path.display()))?;
        // SAFETY: the table is NCCL's.
        unsafe { Self::from_table(table, &path) }.map_err(|error| error.to_string())
    }

    /// The functions of `table` as if they were those of the library at `path`: for tests that record what is
    /// called. It stays for as long as the process.
    ///
    /// # Errors
    /// If its version is older than 2.18.
    ///
    /// # Safety
    /// The functions must do what NCCL's of their names do, as far as memory is concerned: touch none but what
    /// they are given.
    pub unsafe fn from_table(table: Table, path: &Path) -> Result<Library> {
        let mut version = 0;
        // SAFETY: `version` is a valid place for one int.
        let result = unsafe { (table.ncclGetVersion)(&mut version) };
        let library = Library(Box::leak(Box::new(Inner { table, version, path: path.to_owned() })));
        library.check("ncclGetVersion", std::ptr::null_mut(), result)?;
        if version < OLDEST {
            let meaning = format!("{} is {library}; 2.18 or newer is needed", path.display());
            return Err(Error::Nccl { call: "load", meaning });
        }
        Ok(library)
    }

    /// The functions.
    pub(super) fn table(self) -> &'static Table {
        &self.0.table
    }

    /// The version, e.g. `(2, 28, 9)`.
    pub fn version(self) -> (u32, u32, u32) {
        let version = self.0.version.max(0) as u32;
        (version / 10000, version / 100 % 100, version % 100)
    }

    /// Where it was found.
    pub fn path(self) -> &'static Path {
        &self.0.path
    }

    /// `Ok` for success, also of a call that goes on; else what NCCL says.
    pub(super) fn check(self, call: &'static str, comm: ncclComm_t, result: ncclResult_t) -> Result<()> {
        if result == ncclSuccess || result == ncclInProgress {
            return Ok(());
        }
        // SAFETY: both functions give a NUL-terminated text that stays at least until the next call.
        let (line, last) = unsafe {
            (text((self.table().ncclGetErrorString)(result)), text((self.table().ncclGetLastError)(comm)))
        };
        let last = last.trim();
        let more = if last.is_empty() { String::new() } else { format!(": {last}") };
        Err(Error::Nccl { call, meaning: format!("{line}{more}") })
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.version();
        write!(f, "NCCL {major}.{minor}.{patch}")
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} at {}", self.path().display())
    }
}

/// A copy of a C string; empty if there is none.
///
/// # Safety
/// `text` is null or NUL-terminated.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Where to look: see the head of this file.
fn candidates(given: Option<PathBuf>, path: Option<OsString>) -> Vec<PathBuf> {
    if let Some(given) = given {
        return vec![given];
    }
    let mut found = vec![PathBuf::from(NAME)];
    for folder in path.iter().flat_map(std::env::split_paths) {
        if !folder.join("python3").exists() {
            continue;
        }
        let Some(prefix) = folder.parent() else { continue };
        // A system's Python has packages of its own, and those of `pip` under /usr/local.
        for lib in [prefix.join("lib"), prefix.join("local/lib")] {
            let Ok(versions) = lib.read_dir() else { continue };
            for version in versions.flatten().map(|entry| entry.path()) {
                for packages in ["site-packages", "dist-packages"] {
                    let library = version.join(packages).join(IN_WHEEL);
                    if library.exists() && !found.contains(&library) {
                        found.push(library);
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{IN_WHEEL, NAME, candidates, ncclConfig_t, ncclUniqueId};

    #[test]
    fn the_wheel_of_a_python_in_the_path_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let (bin, wheel) = (folder.path().join("bin"), folder.path().join("lib/python3.12/site-packages"));
        let library = wheel.join(IN_WHEEL);
        std::fs::create_dir_all(&bin).expect("a folder");
        std::fs::create_dir_all(library.parent().expect("a folder")).expect("a folder");
        let path = Some(bin.clone().into_os_string());
        std::fs::write(&library, "").expect("a file");
        let named = std::path::PathBuf::from(NAME);
        assert_eq!(candidates(None, path.clone()), std::slice::from_ref(&named), "no python there");
        std::fs::write(bin.join("python3"), "").expect("a file");
        assert_eq!(candidates(None, path.clone()), [named, library]);
        let given = std::path::PathBuf::from("/opt/nccl.so");
        assert_eq!(candidates(Some(given.clone()), path), [given], "and nothing else");
    }

    /// Offsets as in `nccl.h`.
    #[test]
    fn structs_are_laid_out_as_in_c() {
        assert_eq!((size_of::<ncclUniqueId>(), size_of::<ncclConfig_t>()), (128, 48));
        assert_eq!(std::mem::offset_of!(ncclConfig_t, blocking), 16);
        assert_eq!(std::mem::offset_of!(ncclConfig_t, netName), 32);
        assert_eq!(std::mem::offset_of!(ncclConfig_t, splitShare), 40);
    }
}
