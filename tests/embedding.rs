//! What an embedder relies on besides results: what is said of drivers and GPUs that are too old, and how much
//! memory a forward asks for.

use std::ffi::{c_int, c_uint};
use std::path::Path;
use std::process::Command;

use cust::sys::{CUDA_SUCCESS, CUdevice, CUresult, Table};
use cust::{Context, Driver};
use fp8_moe::{Device, DeviceSpec, Family, MoeConfig, Quantization, Routing, internals};

/// The refusal of a device over the emulated device's functions, of which `change` replaces some.
fn refused(change: impl FnOnce(&mut Table)) -> String {
    // SAFETY: what the tests replace answers as older drivers and GPUs do, and writes where the caller says.
    let driver = unsafe { Driver::sim().unwrap().with(change) };
    let context = Context::create(cust::Device::get(driver, 0).unwrap()).unwrap();
    let refused = Device::in_context(context, None).unwrap_err().to_string();
    let (device, reason) = refused.split_once(": ").unwrap();
    assert!(device.starts_with("device of "), "{refused}");
    reason.to_owned()
}

#[test]
fn a_gpu_that_is_too_old() {
    /// An A100, by its compute capability.
    unsafe extern "system" fn attribute(value: *mut c_int, attribute: c_uint, device: CUdevice) -> CUresult {
        let original = Driver::sim().unwrap().table().cuDeviceGetAttribute;
        let answer = match attribute {
            75 => 8,
            76 => 0,
            // SAFETY: the caller's contract is that of the driver's function.
            _ => return unsafe { original(value, attribute, device) },
        };
        // SAFETY: the caller's place.
        unsafe { *value = answer };
        CUDA_SUCCESS
    }
    assert_eq!(
        refused(|table| table.cuDeviceGetAttribute = attribute),
        "ptx_sim (emulated H200) is too old: it has compute capability 8.0 and no FP8 tensor cores; 8.9 or newer is \
         needed (Ada, Hopper)"
    );
}

#[test]
fn a_driver_that_is_too_old_for_the_kernels() {
    unsafe extern "system" fn version(version: *mut c_int) -> CUresult {
        // SAFETY: the caller's place.
        unsafe { *version = 12030 };
        CUDA_SUCCESS
    }
    assert_eq!(
        refused(|table| table.cuDriverGetVersion = version),
        "the NVIDIA driver is too old: it is for CUDA 12.3; the kernels need 12.4 or newer"
    );
}

/// The child of the next test: says why there is no GPU.
#[test]
fn child() {
    if std::env::var_os("EMBEDDING_CHILD").is_some() {
        for spec in [DeviceSpec::Auto, DeviceSpec::Cuda(0)] {
            println!("> {}", Device::open(spec).unwrap_err());
        }
    }
}

/// Libraries in the place of NVIDIA's: none, one that lacks a function, one of CUDA 11.8, one without devices.
#[test]
#[cfg(target_os = "linux")]
fn drivers_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let hint = "the emulated device is there as `sim` (DeviceSpec::Sim, FP8_MOE_DEVICE=sim)";
    let is_told = |library: &Path, reason: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child", "--nocapture"]).env("EMBEDDING_CHILD", "1");
        let output = child.env("LD_LIBRARY_PATH", library).env_remove("FP8_MOE_DEVICE").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let said: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("> ")).collect();
        assert_eq!(said, [format!("device auto: {reason}; {hint}"), format!("device cuda:0: {reason}")]);
    };
    let library = |name: &str, functions: String| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let source = folder.join("libcuda.c");
        std::fs::write(&source, functions).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.join("libcuda.so.1")).arg(&source);
        assert!(compiler.status().expect("a C compiler").success());
        folder
    };
    // Each function answers `result`, but for the version.
    let functions = |result: u32, version: u32, lacking: &str| -> String {
        let names = Table::NAMES.iter().filter(|&&name| name != lacking && name != "cuDriverGetVersion");
        let functions = names.map(|name| format!("int {name}(void) {{ return {result}; }}\n"));
        functions
            .chain([format!("int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}\n")])
            .collect()
    };
    let lacks = "the NVIDIA driver is too old: it lacks cuLaunchKernelEx; CUDA 12.0 or newer is needed";
    is_told(&library("lacks", functions(0, 11070, "cuLaunchKernelEx")), lacks);
    let old = "the NVIDIA driver is too old: it is for CUDA 11.8, and 12.0 or newer is needed";
    is_told(&library("old", functions(0, 11080, "")), old);
    is_told(&library("none", functions(100, 12080, "")), "the NVIDIA driver finds no device");
}

/// Bytes of a block's partial sums: f32, of two items, which are 32 rows high at most and 256 columns wide.
const OF_BLOCK: usize = 4 * 2 * 32 * 256;

/// A workspace is in proportion to the work, from one token on: what the parts need is a sum over tokens, rows
/// and experts, but for partial sums, which are those of blocks that have a share.
#[test]
fn a_workspace_is_in_proportion_to_the_work() {
    let device = |family| Device::open_family(DeviceSpec::Sim, family).unwrap();
    let devices = [Family::Sm89, Family::Sm90a].map(device);
    for [experts, k, h, i] in [[8, 2, 128, 128], [16, 4, 256, 512], [64, 8, 1024, 256], [256, 8, 2048, 768]] {
        for quantization in [Quantization::Block128, Quantization::TensorStatic, Quantization::ChannelToken] {
            let config = MoeConfig::builder().experts(experts).top_k(k).hidden_size(h).intermediate_size(i);
            let config = config.quantization(quantization).routing(Routing::Softmax { renormalize: true });
            let config = config.build().unwrap();
            for device in &devices {
                let mut last = 0;
                for tokens in [1, 2, 8, 64, 512, 4096] {
                    let bytes = internals::workspace_bytes(device, &config, tokens).unwrap();
                    let rows = tokens * k;
                    // Of the drawing in `host/plan/workspace.rs`, each at most once, with scales of groups of
                    // 128; a tile for each expert and for each row; 256 bytes of rounding for each part.
                    let of_row = 12 + h + i + 4 * (h + i).div_ceil(128) + (2 * h).max(8 * i) + 16;
                    let of_token = 4 * experts + 8 * k;
                    let once = 24 * experts + 24 * 256;
                    // Partial sums, where a GEMM is cut along K: for each block that has a share.
                    let shares = rows * (2 * i).max(h).div_ceil(128) * h.max(i).div_ceil(128);
                    let partials = shares.min(device.multiprocessors() as usize) * OF_BLOCK;
                    let most = rows * of_row + tokens * of_token + once + partials;
                    assert!(
                        bytes <= most,
                        "{device:?}, {quantization}, {tokens} tokens: {bytes} of {most} bytes"
                    );
                    assert!(bytes >= last, "more tokens take no less");
                    last = bytes;
                }
            }
        }
    }
}
