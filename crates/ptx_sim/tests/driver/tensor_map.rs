//! Encoding of tensor maps through the driver's function.

use std::ffi::c_void;

use ptx_sim::driver::abi::*;
use ptx_sim::driver::*;
use ptx_sim::tensor_map::TensorMap;

use crate::{error, ok, start};

fn bytes(map: &CUtensorMap) -> [u8; 128] {
    let mut bytes = [0; 128];
    for (word, eight) in map.opaque.iter().zip(bytes.chunks_exact_mut(8)) {
        eight.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Encodes a matrix of bytes, 512 by 300, in boxes of `box_columns` by 64 with the 128-byte swizzle.
fn encode(address: u64, box_columns: u32) -> (CUresult, CUtensorMap) {
    let mut map = CUtensorMap { opaque: [0; 16] };
    // SAFETY: arrays of two dimensions and one stride.
    let result = unsafe {
        cuTensorMapEncodeTiled(
            &mut map,
            0,
            2,
            address as *mut c_void,
            [512_u64, 300].as_ptr(),
            [512_u64].as_ptr(),
            [box_columns, 64].as_ptr(),
            [1_u32, 1].as_ptr(),
            0,
            3,
            0,
            0,
        )
    };
    (result, map)
}

#[test]
fn encodes_and_moves() {
    start();
    let (mut major, mut minor) = (0, 0);
    // SAFETY: pointers to live integers.
    ok(unsafe { cuDeviceComputeCapability(&mut major, &mut minor, 0) });
    if major < 9 {
        assert_eq!(encode(0x1000, 128).0, CUDA_ERROR_NOT_SUPPORTED);
        return;
    }
    let (result, mut map) = encode(0x1000, 128);
    ok(result);
    let decoded = TensorMap::decode(&bytes(&map)).expect("what was encoded decodes");
    assert_eq!((decoded.address, decoded.dims[..2].to_vec()), (0x1000, vec![512, 300]));
    assert_eq!(decoded.box_bytes(), 128 * 64);
    // SAFETY: a live map.
    ok(unsafe { cuTensorMapReplaceAddress(&mut map, 0x2000 as *mut c_void) });
    assert_eq!(TensorMap::decode(&bytes(&map)).map(|map| map.address), Ok(0x2000));

    assert_eq!(encode(0x1008, 128).0, CUDA_ERROR_INVALID_VALUE);
    assert_eq!(error(), "cuTensorMapEncodeTiled: globalAddress is 0x1008: must be a multiple of 16");
    assert_eq!(encode(0x1000, 256).0, CUDA_ERROR_INVALID_VALUE);
    assert!(error().contains("boxDim[0] is 256"));
}
