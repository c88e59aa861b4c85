//! A 64x16 tile of an FP8 product, through TMA, mbarrier and `wgmma`: right as it stands, to be broken by
//! others.

use super::common::Kernel;
use super::{U8, map, noise, upload};
use ptx_sim::formats::E4M3_TO_F32;

/// Bytes that the two loads bring: 64 and 16 rows of 128.
pub const BYTES: u32 = 8192 + 2048;

/// D[64][16] = A[64][128] * B[16][128]^T by one warpgroup.
pub const TILE: &str = "
    .param .u64 map_a, .param .u64 map_b, .param .u64 out
    ---
    .shared .align 1024 .b8 a[8192];
    .shared .align 1024 .b8 b[2048];
    .shared .align 8 .b64 full;
    mov.u32 %r1, %tid.x;
    mov.u32 %r10, a;
    mov.u32 %r11, b;
    mov.u32 %r12, full;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r12], 1;
    fence.mbarrier_init.release.cluster;
    READY:
    bar.sync 0;
    @%p1 bra LOADED;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r12], 10240;
    ld.param.u64 %rd1, [map_a];
    ld.param.u64 %rd2, [map_b];
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r10], [%rd1, {0, 0}], [%r12];
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%rd2, {0, 0}], [%r12];
    LOADED:
    bar.warp.sync -1;
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r12], 0;
    @!%p2 bra WAIT;
    shr.u32 %r20, %r10, 4;
    cvt.u64.u32 %rd10, %r20;
    or.b64 %rd10, %rd10, 4611686293305360384;
    shr.u32 %r21, %r11, 4;
    cvt.u64.u32 %rd11, %r21;
    or.b64 %rd11, %rd11, 4611686293305360384;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, %rd10, %rd11, 0, 1, 1;
    add.u64 %rd10, %rd10, 2;
    add.u64 %rd11, %rd11, 2;
    wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, %rd10, %rd11, 1, 1, 1;
    add.u64 %rd10, %rd10, 2;
    add.u64 %rd11, %rd11, 2;
    wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, %rd10, %rd11, 1, 1, 1;
    add.u64 %rd10, %rd10, 2;
    add.u64 %rd11, %rd11, 2;
    wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, %rd10, %rd11, 1, 1, 1;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    ld.param.u64 %rd3, [out];
    mul.wide.u32 %rd4, %r1, 32;
    add.u64 %rd3, %rd3, %rd4;
    st.global.v4.f32 [%rd3], {%f0, %f1, %f2, %f3};
    st.global.v4.f32 [%rd3+16], {%f4, %f5, %f6, %f7};
    ret;";

/// The tile's operands: small numbers of every kind.
pub fn operands() -> (Vec<u8>, Vec<u8>) {
    let small = |bytes: Vec<u8>| bytes.into_iter().map(|b| b & 0xbf).collect::<Vec<u8>>();
    (small(noise(8192)), small(noise(10240)[8192..].to_vec()))
}

/// [`TILE`] with lines exchanged, and the address of its result; `with` must be found to be replaced.
#[track_caller]
pub fn tile(changes: &[(&str, &str)]) -> (Kernel, u64) {
    let mut text = TILE.to_string();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    let mut kernel = Kernel::new(&text);
    let (a, b) = operands();
    let (at_a, at_b) = (upload(&mut kernel, &a), upload(&mut kernel, &b));
    let map_a = map(&mut kernel, U8, at_a, &[128, 64], &[128, 64], 3);
    let map_b = map(&mut kernel, U8, at_b, &[128, 16], &[128, 16], 3);
    let out = kernel.alloc(4096);
    kernel.arg(map_a).arg(map_b).arg(out);
    (kernel, out)
}

/// Row and column of accumulator `i` of a thread.
pub fn place(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (16 * warp + lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2)
}

/// Compares what a kernel stored with the product of operands with `k` columns.
#[track_caller]
pub fn check(kernel: &Kernel, out: u64, n: usize, mut expected: impl FnMut(usize, usize) -> f64) {
    for (at, bits) in kernel.words(out, 64 * n).into_iter().enumerate() {
        let (row, column) = place(at / (n / 2), at % (n / 2));
        let (actual, expected) = (f64::from(f32::from_bits(bits)), expected(row, column));
        assert!(
            (actual - expected).abs() <= 1e-4 * expected.abs().max(1.0),
            "D({row}, {column}): {actual} is not {expected}"
        );
    }
}

/// The product that [`TILE`] must give.
pub fn product(row: usize, column: usize) -> f64 {
    let (a, b) = operands();
    let value = |byte: u8| f64::from(E4M3_TO_F32[usize::from(byte)]);
    (0..128).map(|k| value(a[128 * row + k]) * value(b[128 * column + k])).sum()
}
