//! One product per block: `d = a * b + c`, by `wgmma` or by `mma.sync`.
//!
//! ```text
//!   a   64 rows of 32 bytes        b   8 columns of 32 bytes       32 FP8 or 16 half elements along K
//!   c, d  64 x 8 f32, four per thread: thread t holds rows 16 (t / 32) + (t % 32) / 4 and 8 further down,
//!         columns 2 (t % 4) and the one after
//! ```
//!
//! The four warps of `mma.sync` take 16 rows each, so that both instructions have the same operands in the
//! same places.

use super::model::Type;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `wgmma.mma_async.m64n8`, Hopper.
    Wgmma,
    /// `mma.sync.m16n8`.
    Mma,
}

/// The module; its entry is `product`. `twice`: the product is added two times, by two instructions.
pub fn module(instruction: Instruction, (a, b): (Type, Type), twice: bool) -> String {
    let k = 32 / a.bytes();
    let (a_name, b_name) = (a.name(), b.name());
    let repeat = |line: String| if twice { format!("{line}\n{line}") } else { line };
    match instruction {
        Instruction::Wgmma => {
            let transposes = if a.bytes() == 2 { ", 0, 0" } else { "" };
            let product = repeat(format!(
                "wgmma.mma_async.sync.aligned.m64n8k{k}.f32.{a_name}.{b_name} \
                 {{%f0, %f1, %f2, %f3}}, %rd8, %rd9, %p2, 1, 1{transposes};"
            ));
            WGMMA.replace("PRODUCT", &product)
        }
        Instruction::Mma => {
            let product = repeat(format!(
                "mma.sync.aligned.m16n8k{k}.row.col.f32.{a_name}.{b_name}.f32 \
                 {{%f0, %f1, %f2, %f3}}, {{%r4, %r5, %r6, %r7}}, {{%r8, %r9}}, {{%f0, %f1, %f2, %f3}};"
            ));
            MMA.replace("PRODUCT", &product)
        }
    }
}

/// Thread t brings 16 bytes of A: half t % 2 of row t / 2; the first 16 threads bring B likewise. In shared
/// memory lie core matrices of 8 rows and 16 bytes: those of a row next to each other (128 bytes), then those
/// of the next 8 rows (256).
const WGMMA: &str = "
.version 8.0
.target sm_90a
.address_size 64
.visible .entry product(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d)
.maxntid 128
{
    .reg .pred %p<3>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<12>;
    .reg .f32 %f<4>;
    .shared .align 128 .b8 tile[2304];

    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd1, %r2, 2048;
    mul.wide.u32 %rd2, %r1, 16;
    add.u64 %rd1, %rd1, %rd2;
    ld.param.u64 %rd3, [a];
    add.u64 %rd3, %rd3, %rd1;
    ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd3];
    mov.u32 %r3, tile;
    shr.u32 %r4, %r1, 4;
    shl.b32 %r4, %r4, 8;
    and.b32 %r5, %r1, 1;
    shl.b32 %r5, %r5, 7;
    shr.u32 %r6, %r1, 1;
    and.b32 %r6, %r6, 7;
    shl.b32 %r6, %r6, 4;
    add.u32 %r4, %r4, %r5;
    add.u32 %r4, %r4, %r6;
    add.u32 %r4, %r4, %r3;
    st.shared.v4.u32 [%r4], {%r10, %r11, %r12, %r13};
    setp.gt.u32 %p1, %r1, 15;
    @%p1 bra COPIED;
    ld.param.u64 %rd4, [b];
    mul.wide.u32 %rd5, %r2, 256;
    add.u64 %rd4, %rd4, %rd5;
    add.u64 %rd4, %rd4, %rd2;
    ld.global.v4.u32 {%r14, %r15, %r16, %r17}, [%rd4];
    st.shared.v4.u32 [%r4+2048], {%r14, %r15, %r16, %r17};
COPIED:
    ld.param.u64 %rd6, [c];
    add.u64 %rd6, %rd6, %rd1;
    ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd6];
    fence.proxy.async.shared::cta;
    bar.sync 0;
    shr.u32 %r7, %r3, 4;
    and.b32 %r7, %r7, 16383;
    cvt.u64.u32 %rd8, %r7;
    or.b64 %rd8, %rd8, 0x1000080000;
    add.u64 %rd9, %rd8, 128;
    setp.lt.u32 %p2, %r1, 128;
    wgmma.fence.sync.aligned;
    PRODUCT
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    ld.param.u64 %rd7, [d];
    add.u64 %rd7, %rd7, %rd1;
    st.global.v4.f32 [%rd7], {%f0, %f1, %f2, %f3};
    ret;
}
";

/// Lane 4g + t of a warp loads words t and t + 4 of rows g and g + 8, and of column g.
const MMA: &str = "
.version 8.4
.target sm_89
.address_size 64
.visible .entry product(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d)
.maxntid 128
{
    .reg .b32 %r<20>;
    .reg .b64 %rd<12>;
    .reg .f32 %f<4>;

    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd1, %r2, 2048;
    mul.wide.u32 %rd2, %r1, 16;
    and.b32 %r10, %r1, 3;
    shl.b32 %r10, %r10, 2;
    shr.u32 %r11, %r1, 2;
    and.b32 %r11, %r11, 7;
    shl.b32 %r11, %r11, 5;
    add.u32 %r11, %r11, %r10;
    shr.u32 %r12, %r1, 5;
    shl.b32 %r12, %r12, 9;
    add.u32 %r12, %r12, %r11;
    ld.param.u64 %rd3, [a];
    add.u64 %rd3, %rd3, %rd1;
    cvt.u64.u32 %rd4, %r12;
    add.u64 %rd3, %rd3, %rd4;
    ld.global.u32 %r4, [%rd3];
    ld.global.u32 %r5, [%rd3+256];
    ld.global.u32 %r6, [%rd3+16];
    ld.global.u32 %r7, [%rd3+272];
    ld.param.u64 %rd5, [b];
    mul.wide.u32 %rd6, %r2, 256;
    add.u64 %rd5, %rd5, %rd6;
    cvt.u64.u32 %rd6, %r11;
    add.u64 %rd5, %rd5, %rd6;
    ld.global.u32 %r8, [%rd5];
    ld.global.u32 %r9, [%rd5+16];
    add.u64 %rd1, %rd1, %rd2;
    ld.param.u64 %rd7, [c];
    add.u64 %rd7, %rd7, %rd1;
    ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd7];
    PRODUCT
    ld.param.u64 %rd8, [d];
    add.u64 %rd8, %rd8, %rd1;
    st.global.v4.f32 [%rd8], {%f0, %f1, %f2, %f3};
    ret;
}
";
