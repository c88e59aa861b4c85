//! Problems for the grouped GEMMs, with their results from the definition in f64.

use std::sync::OnceLock;

use fp8_moe::ops::grouped_gemm::{
    AScale, Accumulation, BScale, GemmOptions, GemmPlan, GemmShape, Path, SCALE_BLOCK,
};
use fp8_moe::ops::pack_weights::{PackedShape, WeightLayout, pack_weights};
use fp8_moe::ops::permutation::{Permutation, PermutationLists};
use fp8_moe::ops::problem_sizes::{TileScheduleOut, tile_schedule_entries};
use fp8_moe::{Buffer, Device, E4m3, Family, Result, Stream};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::e4m3;
use super::tensor_core::{self, Sum};

/// The devices, each with the kernels of every family that it can run.
pub fn devices() -> Vec<Device> {
    static OLDEST: OnceLock<Device> = OnceLock::new();
    let mut devices = super::devices();
    if devices[0].family() != Family::Sm89 {
        let spec = devices[0].to_string().parse().unwrap();
        devices.push(OLDEST.get_or_init(|| Device::open_family(spec, Family::Sm89).unwrap()).clone());
    }
    devices
}

/// What fills rows of D before the call, and must still be there after it where no row belongs to an expert.
pub const POISON: u8 = 0x5a;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AKind {
    Call,
    Row,
    /// Groups of a row side by side, with a gap after each row. For the portable kernels.
    GroupRowMajor,
    /// Rows of a group side by side, with a gap after each group.
    GroupColumnMajor,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BKind {
    Expert,
    Channel,
    Block,
}

pub const A_KINDS: [AKind; 4] = [AKind::Call, AKind::Row, AKind::GroupRowMajor, AKind::GroupColumnMajor];
/// Those that the Hopper kernels take.
pub const HOPPER_A_KINDS: [AKind; 3] = [AKind::Call, AKind::Row, AKind::GroupColumnMajor];
pub const B_KINDS: [BKind; 3] = [BKind::Expert, BKind::Channel, BKind::Block];

/// What the operands are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Small integers: products and sums are exact.
    Integers,
    /// Uniform in +-4, rounded to e4m3.
    Uniform,
    /// Any finite byte: the full range of exponents.
    Bytes,
}

/// The host's side of a problem.
pub struct Problem {
    pub shape: GemmShape,
    pub offsets: Vec<i64>,
    pub a: Vec<E4m3>,
    pub b: Vec<E4m3>,
    pub a_kind: AKind,
    pub a_scale: Vec<f32>,
    pub a_strides: (usize, usize),
    pub b_kind: BKind,
    pub b_scale: Vec<f32>,
}

fn draw_value(values: Values, rng: &mut ChaCha8Rng) -> E4m3 {
    match values {
        Values::Integers => E4m3::from_f32(rng.random_range(-3i8..=3).into()),
        Values::Uniform => E4m3::from_f32(rng.random_range(-4.0f32..4.0)),
        Values::Bytes => E4m3(rng.random_range(0..0x7f) | if rng.random() { 0x80 } else { 0 }),
    }
}

impl Problem {
    /// Rows of A past the last expert are NaN, as are scales that belong to no row.
    pub fn draw(
        counts: &[usize],
        spare_rows: usize,
        (n, k): (usize, usize),
        (a_kind, b_kind): (AKind, BKind),
        values: Values,
        rng: &mut ChaCha8Rng,
    ) -> Problem {
        let mut offsets = vec![0i64];
        for &count in counts {
            offsets.push(offsets[offsets.len() - 1] + count as i64);
        }
        let (valid, experts) = (offsets[counts.len()] as usize, counts.len());
        let rows = valid + spare_rows;
        let groups = k.div_ceil(SCALE_BLOCK);

        let mut a = vec![E4m3(0x7f); rows * k];
        a[..valid * k].fill_with(|| draw_value(values, rng));
        let b = (0..experts * n * k).map(|_| draw_value(values, rng)).collect();

        // Keeps sums inside f16's range.
        let magnitude = if values == Values::Bytes { 1e-3 } else { 0.25 };
        let mut scale = || rng.random_range(0.25f32..2.0) * magnitude;
        let (a_len, a_strides) = match a_kind {
            AKind::Call => (1, (0, 0)),
            AKind::Row => (rows, (1, 0)),
            AKind::GroupRowMajor => (rows * (groups + 1), (groups + 1, 1)),
            // With one group there is no second whose place could matter.
            AKind::GroupColumnMajor if groups == 1 => (rows, (1, 3)),
            AKind::GroupColumnMajor => {
                let stride = (rows + 3).next_multiple_of(4);
                (stride * groups, (1, stride))
            }
        };
        let mut a_scale = vec![f32::NAN; a_len];
        if a_kind == AKind::Call {
            a_scale[0] = scale();
        } else {
            let slabs = if a_kind == AKind::Row { 1 } else { groups };
            for row in 0..valid {
                for group in 0..slabs {
                    a_scale[row * a_strides.0 + group * a_strides.1] = scale();
                }
            }
        }
        let b_len = match b_kind {
            BKind::Expert => experts,
            BKind::Channel => experts * n,
            BKind::Block => experts * n.div_ceil(SCALE_BLOCK) * groups,
        };
        let b_scale = (0..b_len).map(|_| scale()).collect();
        let shape = GemmShape { rows, n, k, experts };
        Problem { shape, offsets, a, b, a_kind, a_scale, a_strides, b_kind, b_scale }
    }

    pub fn valid_rows(&self) -> usize {
        self.offsets[self.shape.experts] as usize
    }

    /// K over which tensor cores keep a sum: all of it, or what has one scale or is folded into f32.
    fn slab(&self, accumulation: Accumulation) -> usize {
        let scales_change = matches!(self.a_kind, AKind::GroupRowMajor | AKind::GroupColumnMajor)
            || self.b_kind == BKind::Block;
        if scales_change || accumulation == Accumulation::Promoted { SCALE_BLOCK } else { self.shape.k }
    }

    /// D in f64 by the definition, and for each element the largest error that tensor cores may make of it.
    pub fn expected(&self, accumulation: Accumulation) -> Vec<(f64, f64)> {
        let GemmShape { n, k, experts, .. } = self.shape;
        let units = |matrix: &[E4m3]| matrix.iter().map(|x| e4m3::units(x.0)).collect::<Vec<_>>();
        let (a, b) = (units(&self.a[..self.valid_rows() * k]), units(&self.b));
        let (groups, slab) = (k.div_ceil(SCALE_BLOCK), self.slab(accumulation));
        let scale = |row: usize, expert: usize, column: usize, group: usize| {
            let sa = self.a_scale[row * self.a_strides.0 + group * self.a_strides.1];
            let blocks = n.div_ceil(SCALE_BLOCK);
            let sb = self.b_scale[match self.b_kind {
                BKind::Expert => expert,
                BKind::Channel => expert * n + column,
                BKind::Block => (expert * blocks + column / SCALE_BLOCK) * groups + group,
            }];
            f64::from(sa) * f64::from(sb)
        };
        let element = |row: usize, expert: usize, column: usize| {
            let (a, b) = (&a[row * k..][..k], &b[(expert * n + column) * k..][..k]);
            let (mut sum, mut magnitude) = (Sum::default(), 0.0);
            for (part, (a, b)) in a.chunks(slab).zip(b.chunks(slab)).enumerate() {
                let scale = scale(row, expert, column, part * slab / SCALE_BLOCK);
                let part = tensor_core::analyse(a, b, None);
                sum.add(&part, scale);
                magnitude += (scale * part.value).abs();
            }
            // Scales and sums of slabs are multiplied and added in f32.
            (sum.value, sum.worst + 2f64.powi(-22) * magnitude)
        };
        let owner: Vec<usize> =
            (0..experts).flat_map(|e| vec![e; (self.offsets[e + 1] - self.offsets[e]) as usize]).collect();
        owner
            .par_iter()
            .enumerate()
            .flat_map_iter(|(row, &expert)| (0..n).map(move |column| element(row, expert, column)))
            .collect()
    }
}

/// A problem in a device's memory.
pub struct OnDevice {
    pub device: Device,
    pub shape: GemmShape,
    pub block_m: usize,
    pub offsets: Vec<i64>,
    pub a: Buffer<E4m3>,
    pub b: Buffer<E4m3>,
    pub a_kind: AKind,
    pub a_scale: Buffer<f32>,
    pub a_strides: (usize, usize),
    pub b_kind: BKind,
    pub b_scale: Buffer<f32>,
    /// How `b` lies in memory, for the Hopper kernels.
    pub weights: WeightLayout,
}

/// Memory of a permutation that a test makes from lists of its own.
pub struct Lists {
    pub tokens: usize,
    pub top_k: usize,
    pub rows: usize,
    pub offsets: Buffer<i64>,
    pub sorted_rows: Option<Buffer<i32>>,
    pub inverse: Option<Buffer<i32>>,
    /// Height of the tiles, and memory of the schedule.
    pub schedule: Option<(usize, Buffer<[u32; 4]>)>,
}

impl Lists {
    /// Of `rows` permuted rows, each of which is a token's only one; no schedule.
    pub fn of_offsets(device: &Device, offsets: &[i64], rows: usize) -> Lists {
        let offsets = device.upload(offsets).unwrap();
        Lists { tokens: rows, top_k: 1, rows, offsets, sorted_rows: None, inverse: None, schedule: None }
    }

    /// With memory for a schedule of such tiles.
    pub fn with_schedule(self, block_m: usize) -> Lists {
        let entries = tile_schedule_entries(self.rows, self.offsets.len() - 1, block_m);
        let entries = self.offsets.device().uninit(entries).unwrap();
        Lists { schedule: Some((block_m, entries)), ..self }
    }

    pub fn borrow(&mut self) -> PermutationLists<'_> {
        PermutationLists {
            tokens: self.tokens,
            top_k: self.top_k,
            rows: self.rows,
            expert_offsets: self.offsets.as_mut_slice(),
            sorted_rows: self.sorted_rows.as_mut().map(|list| list.as_mut_slice()),
            inverse: self.inverse.as_mut().map(|list| list.as_mut_slice()),
            tile_schedule: self.schedule.as_mut().map(|(block_m, entries)| TileScheduleOut {
                block_m: *block_m,
                entries: entries.as_mut_slice(),
            }),
        }
    }

    /// Unscanned, so that it can be captured.
    ///
    /// # Safety
    /// The lists are right, and stay so as long as the graph is launched.
    pub unsafe fn captured(&mut self, stream: &Stream) -> Result<Permutation<'_>> {
        // SAFETY: the caller's contract.
        unsafe { Permutation::from_lists_unchecked(stream, self.borrow()) }
    }

    #[track_caller]
    pub fn permutation(&mut self, stream: &Stream) -> Permutation<'_> {
        Permutation::from_lists(stream, self.borrow()).unwrap_or_else(|e| panic!("{e}"))
    }
}

impl OnDevice {
    pub fn new(device: &Device, problem: &Problem, block_m: usize) -> OnDevice {
        OnDevice {
            device: device.clone(),
            shape: problem.shape,
            block_m,
            offsets: problem.offsets.clone(),
            a: device.upload(&problem.a).unwrap(),
            b: device.upload(&problem.b).unwrap(),
            a_kind: problem.a_kind,
            a_scale: device.upload(&problem.a_scale).unwrap(),
            a_strides: problem.a_strides,
            b_kind: problem.b_kind,
            b_scale: device.upload(&problem.b_scale).unwrap(),
            weights: WeightLayout::Checkpoint,
        }
    }

    /// With packed weights, plain or gate and up.
    pub fn packed(self, gated: bool) -> OnDevice {
        let GemmShape { n, k, experts, .. } = self.shape;
        let shape = if gated {
            PackedShape::gated(experts, n / 2, k).unwrap()
        } else {
            PackedShape::plain(experts, n, k).unwrap()
        };
        let mut packed = self.device.uninit(shape.len()).unwrap();
        let stream = self.device.default_stream();
        pack_weights(&stream, shape, self.b.as_slice(), packed.as_mut_slice()).unwrap();
        OnDevice { b: packed, weights: WeightLayout::Packed, ..self }
    }

    /// The problem's rows, and memory for their schedule.
    pub fn lists(&self) -> Lists {
        Lists::of_offsets(&self.device, &self.offsets, self.shape.rows).with_schedule(self.block_m)
    }

    /// What decides the problem's kernel.
    pub fn options(&self, accumulation: Accumulation, path: Path) -> GemmOptions {
        let groups = matches!(self.a_kind, AKind::GroupRowMajor | AKind::GroupColumnMajor);
        GemmOptions {
            accumulation,
            slab_scales: groups || self.b_kind == BKind::Block,
            path,
            weights: self.weights,
        }
    }

    #[track_caller]
    pub fn plan(&self, accumulation: Accumulation, path: Path) -> GemmPlan {
        let options = self.options(accumulation, path);
        GemmPlan::new(&self.device, self.shape, self.block_m, options).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Scales of A and B, as the operations take them.
    pub fn scales(&self) -> (AScale<'_>, BScale<'_>) {
        let scales = self.a_scale.as_slice();
        let a_scale = match self.a_kind {
            AKind::Call => AScale::Call(scales),
            AKind::Row => AScale::Row(scales),
            AKind::GroupRowMajor | AKind::GroupColumnMajor => {
                AScale::Group { scales, row_stride: self.a_strides.0, group_stride: self.a_strides.1 }
            }
        };
        let scales = self.b_scale.as_slice();
        let b_scale = match self.b_kind {
            BKind::Expert => BScale::Expert(scales),
            BKind::Channel => BScale::Channel(scales),
            BKind::Block => BScale::Block(scales),
        };
        (a_scale, b_scale)
    }

    /// A workspace of random-looking bytes.
    pub fn workspace(&self, bytes: usize) -> Buffer<u8> {
        let mut workspace = self.device.uninit(bytes).unwrap();
        workspace.fill_bytes(POISON, &self.device.default_stream()).unwrap();
        workspace
    }
}

/// How rows spread over experts.
#[derive(Clone, Copy, Debug)]
pub enum Skew {
    Uniform,
    /// Two thirds of the experts have no rows.
    Sparse,
    /// All rows on one expert.
    One,
}

/// Rows of every expert.
pub fn draw_counts(skew: Skew, experts: usize, rows: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let one = rng.random_range(0..experts);
    let sparse = |rng: &mut ChaCha8Rng| if rng.random_bool(0.67) { 0 } else { 2 * rows / experts };
    (0..experts)
        .map(|e| match skew {
            Skew::Uniform => rng.random_range(0..=2 * rows / experts),
            Skew::Sparse => sparse(rng),
            Skew::One => {
                if e == one {
                    rows
                } else {
                    0
                }
            }
        })
        .collect()
}
