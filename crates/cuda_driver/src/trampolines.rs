//! The symbols that `cust` links against, one trampoline per driver function.
//!
//! ```text
//!   cust ── call cuMemAlloc_v2 ──▶ trampoline ── TARGETS[slot] set? ── jump ──▶ libcuda.so.1 or ptx_sim
//!                                       │ no
//!                                       ▼
//!                                 save the argument registers, door::target(slot), restore, jump
//! ```
//!
//! A trampoline knows nothing of the function's arguments: it leaves registers and stack as the caller set
//! them and ends in a jump, so one body serves every signature. That needs machine code; it is a naked
//! function, once for x86-64 and once for AArch64. No driver function takes a floating-point argument by
//! value, so the vector registers need no saving.

use std::arch::naked_asm;
use std::ptr;
use std::sync::atomic::AtomicPtr;

/// Where each function goes once the door has chosen; null until then.
pub(crate) static TARGETS: [AtomicPtr<()>; COUNT] = [const { AtomicPtr::new(ptr::null_mut()) }; COUNT];

/// The slow path of every trampoline: called with the slot, gives the address to jump to.
extern "C" fn resolve(slot: usize) -> *const () {
    crate::door::target(slot)
}

#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn resolve_and_jump() {
    // In: rax = slot; the six integer argument registers and the stack belong to the callee-to-be. Six
    // pushes and the return address make 56 bytes: 8 more align the stack for the call.
    naked_asm!(
        "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9",
        "sub rsp, 8",
        "mov rdi, rax",
        "call {resolve}",
        "add rsp, 8",
        "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
        "jmp rax",
        resolve = sym resolve,
    )
}

#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
extern "C" fn resolve_and_jump() {
    // In: x16 = slot; x0 to x7 and the stack belong to the callee-to-be, x30 is its return address.
    naked_asm!(
        "stp x0, x1, [sp, #-80]!",
        "stp x2, x3, [sp, #16]",
        "stp x4, x5, [sp, #32]",
        "stp x6, x7, [sp, #48]",
        "str x30, [sp, #64]",
        "mov x0, x16",
        "bl {resolve}",
        "mov x16, x0",
        "ldr x30, [sp, #64]",
        "ldp x6, x7, [sp, #48]",
        "ldp x4, x5, [sp, #32]",
        "ldp x2, x3, [sp, #16]",
        "ldp x0, x1, [sp], #80",
        "br x16",
        resolve = sym resolve,
    )
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("cuda_driver has trampolines for Linux on x86-64 and AArch64 only");

macro_rules! trampolines {
    ($($name:ident)*) => {
        #[allow(non_camel_case_types, clippy::enum_variant_names)]
        #[derive(Clone, Copy)]
        enum Slot { $($name),* }

        const NAMES: &[&str] = &[$(stringify!($name)),*];

        mod symbols {
            use super::{naked_asm, resolve_and_jump, Slot, TARGETS};
            $(
                /// Jumps to the driver function of this name, whose arguments the caller has set up.
                // SAFETY: the symbol is NVIDIA's name for a function of exactly this meaning, which is what
                // this defines; a program cannot hold another definition unless it links libcuda itself, as
                // a shared library, whose definitions yield to the program's.
                #[unsafe(no_mangle)]
                #[unsafe(naked)]
                #[allow(non_snake_case)]
                pub unsafe extern "C" fn $name() {
                    #[cfg(target_arch = "x86_64")]
                    naked_asm!(
                        "mov rax, qword ptr [rip + {targets}@GOTPCREL]",
                        "mov rax, qword ptr [rax + {offset}]",
                        "test rax, rax",
                        "jz 2f",
                        "jmp rax",
                        "2:",
                        "mov eax, {slot}",
                        "jmp {resolve}",
                        targets = sym TARGETS,
                        offset = const Slot::$name as usize * 8,
                        slot = const Slot::$name as usize,
                        resolve = sym resolve_and_jump,
                    );
                    #[cfg(target_arch = "aarch64")]
                    naked_asm!(
                        "adrp x16, :got:{targets}",
                        "ldr x16, [x16, :got_lo12:{targets}]",
                        "add x16, x16, #{pages}, lsl #12",
                        "add x16, x16, #{rest}",
                        "ldar x16, [x16]",
                        "cbz x16, 2f",
                        "br x16",
                        "2:",
                        "mov x16, #{slot}",
                        "b {resolve}",
                        targets = sym TARGETS,
                        pages = const Slot::$name as usize * 8 >> 12,
                        rest = const (Slot::$name as usize * 8) & 0xfff,
                        slot = const Slot::$name as usize,
                        resolve = sym resolve_and_jump,
                    );
                }
            )*
        }
    };
}

ptx_sim::for_each_driver_function!(trampolines);

/// How many functions there are.
pub(crate) const COUNT: usize = NAMES.len();

/// The name of the function in a slot.
pub(crate) fn name(slot: usize) -> &'static str {
    NAMES[slot]
}
