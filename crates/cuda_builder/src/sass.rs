//! What the machine code of a kernel holds, through NVIDIA's disassembler `nvdisasm`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::{Error, ptxas::find_program};

/// Counts of instructions in one kernel's machine code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instructions {
    /// All of them.
    pub total: u32,
    /// Warpgroup FP8 tensor-core instructions (`QGMMA`, Hopper).
    pub qgmma: u32,
    /// The shapes among them, M x N x K: `64x256x32`.
    pub qgmma_shapes: BTreeSet<String>,
    /// Warp FP8 tensor-core instructions (`QMMA`).
    pub qmma: u32,
    /// Warp 16-bit tensor-core instructions (`HMMA`); Hopper runs FP8 `mma.sync` through these.
    pub hmma: u32,
    /// Loads and stores of local memory (`LDL`, `STL`): spills or arrays that did not stay in registers.
    pub local: u32,
    /// Generic loads and stores (`LD`, `ST`), whose address space the compiler did not know.
    pub generic: u32,
}

/// Counts the instructions of each kernel in `cubin`; nothing where there is no `nvdisasm`.
///
/// The program is looked for as [`Ptxas::find`](crate::Ptxas::find) looks, from `dir`.
pub fn count(cubin: &Path, dir: &Path) -> Result<Option<Vec<(String, Instructions)>>, Error> {
    let Some(program) = find_program("nvdisasm", dir) else { return Ok(None) };
    let output =
        Command::new(&program).arg(cubin).output().map_err(|source| Error::io("run", &program, source))?;
    if !output.status.success() {
        return Err(Error::Tool { program, messages: String::from_utf8_lossy(&output.stderr).into_owned() });
    }
    Ok(Some(parse(&String::from_utf8_lossy(&output.stdout))))
}

/// Reads a disassembly: `.text.NAME:` begins a kernel, `/*0040*/ [@P0] OPCODE.MODIFIER ..` is an instruction.
fn parse(disassembly: &str) -> Vec<(String, Instructions)> {
    let mut kernels: Vec<(String, Instructions)> = Vec::new();
    for line in disassembly.lines() {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            kernels.push((name.to_owned(), Instructions::default()));
        } else if let Some((_, counts)) = kernels.last_mut()
            && let Some(opcode) = opcode(line)
        {
            counts.total += 1;
            let (opcode, modifiers) = opcode.split_once('.').unwrap_or((opcode, ""));
            match opcode {
                "QGMMA" => {
                    counts.qgmma += 1;
                    let shape = modifiers.split('.').next().unwrap_or_default();
                    if !counts.qgmma_shapes.contains(shape) {
                        counts.qgmma_shapes.insert(shape.to_owned());
                    }
                }
                "QMMA" => counts.qmma += 1,
                "HMMA" => counts.hmma += 1,
                "LDL" | "STL" => counts.local += 1,
                "LD" | "ST" => counts.generic += 1,
                _ => {}
            }
        }
    }
    kernels
}

/// The opcode of a line of code, with its modifiers.
fn opcode(line: &str) -> Option<&str> {
    let (offset, code) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    if !offset.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let mut words = code.trim_start().trim_start_matches('{').split_whitespace();
    let first = words.next()?;
    let word = if first.starts_with('@') { words.next()? } else { first };
    word.split(';').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_opcode_and_kernel() {
        let kernels = parse(
            ".text.gemm:\n        /*0000*/                   LDC R1, c[0x0][0x28] ;\n\
             \x20       /*0010*/              @!P0 STL.64 [R1], R2 ;\n\
             \x20       /*0020*/                   QGMMA.64x256x32.F32.E4M3.E4M3 R24, gdesc[UR4] ;\n\
             \x20       /*0030*/               @P1 QGMMA.64x8x32.F32.E4M3.E4M3 R24, gdesc[UR4] ;\n\
             \x20       /*0040*/                   QGMMA.64x8x32.F32.E4M3.E4M3 R24, gdesc[UR8], gsb0 ;\n\
             .L_x_1:\n\
             .text.other:\n        /*0000*/                   QMMA.16832.F32.E4M3.E4M3 R4, R8, R12, R4 ;\n\
             \x20       /*0010*/                   LD.E R4, desc[UR6][R4.64] ;\n\
             \x20       /*0020*/                   LDS R4, [R4] ;\n",
        );
        let qgmma_shapes = ["64x256x32", "64x8x32"].map(str::to_owned).into();
        let gemm = Instructions { total: 5, qgmma: 3, qgmma_shapes, local: 1, ..Instructions::default() };
        let other = Instructions { total: 3, qmma: 1, generic: 1, ..Instructions::default() };
        assert_eq!(kernels, [("gemm".to_owned(), gemm), ("other".to_owned(), other)]);
    }
}
