//! A layer's weights on their way to the device.
//!
//! Experts' matrices go in pieces of about a MiB. Each thread takes a piece, reads it into one of its two
//! staging buffers, in page-locked memory, and enqueues the copy; while that runs it reads the next piece
//! into the other:
//!
//! ```text
//!   files, or memory of the caller
//!      │ read, check for NaN, pad: 1 to 16 threads
//!      ▼
//!   thread 0   [ buffer A ]──┐      thread 1   [ buffer A ]──┐
//!              [ buffer B ]──┤                 [ buffer B ]──┤
//!                            └─────────┬─────────────────────┘
//!                                      ▼ one stream
//!                              w13, w2 on the device
//! ```
//!
//! The host has so much memory for it, whatever the layer: two buffers for each thread, 32 MiB in all, and
//! what a source takes to turn matrices around, 256 MiB or one expert's matrix if that is more.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::{
    DeviceWeights, ExpertWeights, MoeDeviceWeights, MoeWeights, OP, Progress, check_input_scales, exactly,
};
use crate::config::{MoeConfig, Quantization, WeightScales};
use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::SliceMut;
use crate::gpu::device::Device;
use crate::gpu::staging::{Staging, Uploads};
use crate::gpu::stream::Stream;
use crate::plan::packed::PackedShape;
use crate::threads;

/// Bytes of a staging buffer: long enough for the copy engine, short enough for a core's second cache, in
/// which the check for NaN finds what has just been read.
const STAGING: usize = 1 << 20;

/// Threads at most. More would only wait for PCIe.
const MOST_THREADS: usize = 16;

/// Bytes for which a thread more is worth its start.
const BYTES_OF_A_THREAD: usize = 4 << 20;

/// Bytes that all threads' [`Scratch`] may have, if more than one has any.
const SCRATCH: usize = 256 << 20;

/// One of the matrices of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrix {
    Gate,
    Up,
    Down,
}

impl Matrix {
    /// All, in the order of the fields of [`ExpertWeights`].
    pub const ALL: [Matrix; 3] = [Matrix::Gate, Matrix::Up, Matrix::Down];

    fn name(self) -> &'static str {
        match self {
            Matrix::Gate => "gate",
            Matrix::Up => "up",
            Matrix::Down => "down",
        }
    }
}

/// Where the experts' matrices come from, some rows at a time and to several threads.
pub(crate) trait ExpertSource: Sync {
    /// The scales of this rank's expert `index`, in the order of [`MoeConfig::local_ids`]: of
    /// [`Matrix::ALL`], as [`ExpertWeights`] has them.
    fn scales(&self, index: usize) -> Result<[Cow<'_, [f32]>; 3]>;

    /// Writes rows `rows` of a matrix of expert `index` to `to`, which is as long. They are numbers.
    fn read(
        &self,
        index: usize,
        matrix: Matrix,
        rows: Range<usize>,
        to: &mut [E4m3],
        scratch: &mut Scratch<'_>,
    ) -> Result<()>;

    /// Bytes that [`read`](Self::read) keeps in a thread's scratch at most. If there are any, one thread
    /// reads the rows of a gate and an up, and of a down, in order.
    fn scratch_bytes(&self) -> usize {
        0
    }
}

/// What a source keeps between reads of one thread.
pub(crate) struct Scratch<'a> {
    /// [`ExpertSource::scratch_bytes`] bytes, for a tensor or a part of one.
    pub bytes: &'a mut [u8],
    /// Of which expert, and whether it is its down, if of any.
    pub holds: Option<(usize, bool)>,
}

impl<'a> Scratch<'a> {
    pub fn new(bytes: &'a mut [u8]) -> Scratch<'a> {
        Scratch { bytes, holds: None }
    }
}

/// Experts of a caller; `.1` is their global numbers, for errors.
struct Given<'a>(&'a [ExpertWeights<'a>], Vec<usize>);

impl ExpertSource for Given<'_> {
    fn scales(&self, index: usize) -> Result<[Cow<'_, [f32]>; 3]> {
        let ExpertWeights { gate_scale, up_scale, down_scale, .. } = &self.0[index];
        Ok([gate_scale, up_scale, down_scale].map(|scale| Cow::Borrowed(&scale[..])))
    }

    fn read(
        &self,
        index: usize,
        matrix: Matrix,
        rows: Range<usize>,
        to: &mut [E4m3],
        _: &mut Scratch<'_>,
    ) -> Result<()> {
        let ExpertWeights { gate, up, down, .. } = &self.0[index];
        let start = rows.start * (to.len() / rows.len().max(1));
        let elements = [gate, up, down][matrix as usize];
        to.copy_from_slice(&elements[start..start + to.len()]);
        match E4m3::first_nan(to) {
            Some(at) => {
                let name = format!("experts[{}].{}[{}]", self.1[index], matrix.name(), start + at);
                require(false, OP, &name, "NaN", || "must be a number".into())
            }
            None => Ok(()),
        }
    }
}

/// The experts of a source, and behind them those that a shared one is computed as.
struct Slots<'a> {
    source: &'a dyn ExpertSource,
    experts: usize,
    shared: Given<'a>,
}

impl ExpertSource for Slots<'_> {
    fn scales(&self, index: usize) -> Result<[Cow<'_, [f32]>; 3]> {
        match index.checked_sub(self.experts) {
            None => self.source.scales(index),
            Some(part) => self.shared.scales(part),
        }
    }

    fn read(
        &self,
        index: usize,
        matrix: Matrix,
        rows: Range<usize>,
        to: &mut [E4m3],
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        match index.checked_sub(self.experts) {
            None => self.source.read(index, matrix, rows, to, scratch),
            Some(part) => self.shared.read(part, matrix, rows, to, scratch),
        }
    }

    fn scratch_bytes(&self) -> usize {
        self.source.scratch_bytes()
    }
}

impl MoeWeights<'_> {
    /// Checks the weights and copies them to the device.
    pub(crate) fn upload(
        &self,
        device: &Device,
        config: &MoeConfig,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<DeviceWeights> {
        config.validate()?;
        exactly("experts", self.experts.len(), config.local_count())?;
        let ids = config.local_ids();
        for (&expert, weights) in ids.iter().zip(&self.experts) {
            weights.validate(config, &format!("experts[{expert}]"))?;
        }
        self.upload_from(device, config, &Given(&self.experts, ids), progress)
    }

    /// As [`upload`](Self::upload), with experts that come from elsewhere, so that few rows are on the host
    /// at a time.
    pub(crate) fn upload_from(
        &self,
        device: &Device,
        config: &MoeConfig,
        source: &dyn ExpertSource,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<DeviceWeights> {
        self.uploaded(device, config, source, progress)?.complete(device, config)
    }

    /// As [`upload`](Self::upload), as a layer of memory that is there already takes them.
    pub(super) fn upload_all(&self, device: &Device, config: &MoeConfig) -> Result<MoeDeviceWeights> {
        self.uploaded(device, config, &Given(&self.experts, config.local_ids()), &|_| {})
    }

    fn uploaded(
        &self,
        device: &Device,
        config: &MoeConfig,
        source: &dyn ExpertSource,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<MoeDeviceWeights> {
        config.validate()?;
        self.validate_router(config)?;
        check_input_scales(config, self.input_scales)?;
        let shared = match (&self.shared, config.shared) {
            (Some(weights), Some(shared)) => {
                weights.validate(config, shared)?;
                Some(weights)
            }
            (None, None) => None,
            (weights, _) => {
                let (given, wanted) = (weights.is_some(), config.shared.is_some());
                return Err(Error::argument(
                    OP,
                    "shared",
                    format!("given: {given}"),
                    format!("must be given: {wanted}, as the config says"),
                ));
            }
        };
        let layout = Layout::new(config);
        let ids = config.local_ids();
        let shared_parts = shared.map(|weights| weights.parts(config)).unwrap_or_default();
        let experts = ids.len() + shared_parts.len();
        let numbers = (config.experts..).take(shared_parts.len()).collect();
        let slots = Slots { source, experts: ids.len(), shared: Given(&shared_parts, numbers) };
        let scales = threads::each(experts, |slot| layout.scales(&slots.scales(slot)?, slot))?;
        let (w13_scale, w2_scale): (Vec<_>, Vec<_>) = scales.into_iter().unzip();
        let matrices = [experts * layout.w13, experts * layout.w2];
        let packed = PackedShape::of_layer(device, config).map(|shapes| shapes.map(|shape| shape.len()));
        let [w13, w2] = packed.unwrap_or(matrices).map(|len| device.uninit::<E4m3>(len));
        let (mut w13, mut w2) = (w13?, w2?);
        layout.upload(&slots, w13.slice_mut(..matrices[0]), w2.slice_mut(..matrices[1]), progress)?;
        let packed =
            MoeDeviceWeights::pack(&device.default_stream(), config, w13.as_mut_slice(), w2.as_mut_slice())?;
        let gate = shared.filter(|_| config.routes_shared()).and_then(|weights| weights.gate.as_ref());
        let router = match (&self.router, gate) {
            (Some(router), Some(gate)) => Some(router.upload_stacked(gate, device)?),
            (router, _) => router.as_ref().map(|router| router.upload(device)).transpose()?,
        };
        Ok(MoeDeviceWeights {
            router: router.map(Into::into),
            correction_bias: self
                .correction_bias
                .as_deref()
                .map(|b| device.upload(b))
                .transpose()?
                .map(Into::into),
            token_experts: match &self.token_experts {
                Some(table) => Some(device.upload(table)?.into()),
                None => None,
            },
            w13: w13.into(),
            w2: w2.into(),
            w13_scale: device.upload(&w13_scale.concat())?.into(),
            w2_scale: device.upload(&w2_scale.concat())?.into(),
            input_scales: self.input_scales,
            layout: packed,
            router_bias: match &self.router_bias {
                Some(bias) => {
                    let gate = if config.routes_shared() { &[0.0][..] } else { &[] };
                    Some(device.upload(&[&bias[..], gate].concat())?.into())
                }
                None => None,
            },
            expert_biases: match &self.expert_biases {
                Some(biases) => {
                    let [first, second] = layout.biases(biases, experts);
                    Some([device.upload(&first)?.into(), device.upload(&second)?.into()])
                }
                None => None,
            },
            shared: shared.map(|weights| weights.upload(device, config)).transpose()?,
        })
    }
}

/// Rows of a matrix, and where they go.
struct Piece<'a> {
    slot: usize,
    matrix: Matrix,
    rows: Range<usize>,
    to: SliceMut<'a, E4m3>,
}

/// What threads take one after the other: pieces that one of them has to upload in order.
struct Jobs<'a>(Mutex<std::iter::Enumerate<std::vec::IntoIter<Vec<Piece<'a>>>>>);

impl<'a> Jobs<'a> {
    fn new(jobs: Vec<Vec<Piece<'a>>>) -> Jobs<'a> {
        Jobs(Mutex::new(jobs.into_iter().enumerate()))
    }

    /// The next job and its number.
    fn next(&self) -> Option<(usize, Vec<Piece<'a>>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    /// From here on there are none.
    fn stop(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Vec::new().into_iter().enumerate();
    }
}

/// Where the parts of an expert go.
struct Layout {
    quantization: Quantization,
    gated: bool,
    hidden: usize,
    intermediate: usize,
    padded: usize,
    /// Elements of w13 and w2 per expert.
    w13: usize,
    w2: usize,
}

impl Layout {
    fn new(config: &MoeConfig) -> Layout {
        let (hidden, intermediate, padded) =
            (config.hidden_size, config.intermediate_size, config.padded_intermediate());
        let gated = config.gated;
        let (w13, w2) = (config.halves() * padded * hidden, hidden * padded);
        Layout { quantization: config.quantization, gated, hidden, intermediate, padded, w13, w2 }
    }

    /// Rows and columns of a matrix as the source has it, and its columns on the device.
    fn sizes(&self, matrix: Matrix) -> (usize, usize, usize) {
        match matrix {
            Matrix::Gate if !self.gated => (0, self.hidden, self.hidden),
            Matrix::Gate | Matrix::Up => (self.intermediate, self.hidden, self.hidden),
            Matrix::Down => (self.hidden, self.intermediate, self.padded),
        }
    }

    /// Bytes of a staging buffer: at least a row, at most a matrix.
    fn staging(&self) -> usize {
        STAGING.min(self.padded * self.hidden).max(self.padded.max(self.hidden))
    }

    /// Reads all experts of `source` into w13 and w2. On return the copies are done.
    fn upload(
        &self,
        source: &dyn ExpertSource,
        w13: SliceMut<'_, E4m3>,
        w2: SliceMut<'_, E4m3>,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<()> {
        let uploads = Uploads::new(w2.device())?;
        let (bytes, scratch) = (w13.len() + w2.len(), source.scratch_bytes());
        let jobs = Jobs::new(self.jobs(w13, w2, scratch > 0, uploads.stream())?);
        let total = (bytes / self.padded * self.intermediate) as u64;
        let done = AtomicU64::new(0);
        let told = |bytes: usize| {
            let bytes = bytes as u64;
            progress(Progress { done: done.fetch_add(bytes, Ordering::Relaxed) + bytes, total });
        };
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MOST_THREADS)
            .min(bytes.div_ceil(BYTES_OF_A_THREAD))
            .min(SCRATCH / scratch.max(1))
            .max(1);
        // One request for all: the system takes it back as a whole, where an allocator may keep many parts.
        let mut memory = vec![0; threads * scratch];
        let (mut parts, mut rest) = (Vec::new(), &mut memory[..]);
        for _ in 0..threads {
            let (part, others) = rest.split_at_mut(scratch);
            parts.push(part);
            rest = others;
        }
        let work = |part: &mut [u8]| {
            let mut scratch = Scratch::new(part);
            self.work(source, &uploads, &jobs, &mut scratch, &told)
        };
        let failures: Vec<_> = thread::scope(|scope| {
            let (work, own) = (&work, parts.pop().unwrap_or_default());
            let spawn = |part| {
                let thread = thread::Builder::new().name("upload".into());
                thread.spawn_scoped(scope, move || work(part)).ok()
            };
            let others: Vec<_> = parts.into_iter().map_while(spawn).collect();
            let own = work(own);
            let join = |other: thread::ScopedJoinHandle<'_, _>| {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            std::iter::once(own).chain(others.into_iter().map(join)).filter_map(Result::err).collect()
        });
        // Jobs begin in order: of those that failed the first does so every time.
        match failures.into_iter().min_by_key(|(number, _)| *number) {
            Some((_, error)) => Err(error),
            None => uploads.stream().synchronize(),
        }
    }

    /// All pieces of w13 and w2, expert by expert. Where it is `whole`, those of a w13 are one job, and so
    /// are those of a w2; else each is one. Padding rows are filled here, on `stream`.
    fn jobs<'a>(
        &self,
        w13: SliceMut<'a, E4m3>,
        w2: SliceMut<'a, E4m3>,
        whole: bool,
        stream: &Stream,
    ) -> Result<Vec<Vec<Piece<'a>>>> {
        let mut jobs = Vec::new();
        let experts = w2.len() / self.w2;
        let (mut w13, mut w2) = (w13, w2);
        for slot in 0..experts {
            let (first, rest) = w13.split_at(self.w13);
            let (gate, up) = first.split_at(if self.gated { self.w13 / 2 } else { 0 });
            w13 = rest;
            let (down, rest) = w2.split_at(self.w2);
            w2 = rest;
            let mut first = self.pieces(slot, Matrix::Gate, gate, stream)?;
            first.extend(self.pieces(slot, Matrix::Up, up, stream)?);
            let second = self.pieces(slot, Matrix::Down, down, stream)?;
            if whole {
                jobs.extend([first, second]);
            } else {
                jobs.extend(first.into_iter().chain(second).map(|piece| vec![piece]));
            }
        }
        Ok(jobs)
    }

    fn pieces<'a>(
        &self,
        slot: usize,
        matrix: Matrix,
        to: SliceMut<'a, E4m3>,
        stream: &Stream,
    ) -> Result<Vec<Piece<'a>>> {
        let (rows, _, wide) = self.sizes(matrix);
        let (mut rest, mut padding) = to.split_at(rows * wide);
        padding.fill_bytes(0, stream)?;
        let high = self.staging() / wide;
        let mut pieces = Vec::with_capacity(rows.div_ceil(high));
        for start in (0..rows).step_by(high) {
            let rows = start..rows.min(start + high);
            let (to, tail) = rest.split_at(rows.len() * wide);
            pieces.push(Piece { slot, matrix, rows, to });
            rest = tail;
        }
        Ok(pieces)
    }

    /// What each thread does: uploads jobs until there are none. An error comes with the number of its job.
    fn work(
        &self,
        source: &dyn ExpertSource,
        uploads: &Uploads,
        jobs: &Jobs<'_>,
        scratch: &mut Scratch<'_>,
        told: &(dyn Fn(usize) + Sync),
    ) -> Result<(), (usize, Error)> {
        let failed = |number: usize| {
            move |error: Error| {
                jobs.stop();
                (number, error)
            }
        };
        let staging = || uploads.staging(self.staging()).map_err(failed(usize::MAX));
        let mut buffers = [staging()?, staging()?];
        while let Some((number, pieces)) = jobs.next() {
            for piece in pieces {
                buffers.swap(0, 1);
                let bytes =
                    self.upload_piece(source, piece, &mut buffers[0], scratch).map_err(failed(number))?;
                told(bytes);
            }
        }
        Ok(())
    }

    /// Reads a piece and enqueues its copy; returns the bytes of the source.
    fn upload_piece(
        &self,
        source: &dyn ExpertSource,
        piece: Piece<'_>,
        buffer: &mut Staging<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<usize> {
        let Piece { slot, matrix, rows, mut to } = piece;
        let (_, columns, wide) = self.sizes(matrix);
        let (bytes, padding) = (rows.len() * columns, rows.len() * (wide - columns));
        let space = &mut buffer.bytes()?[..padding + bytes];
        source.read(slot, matrix, rows, bytemuck::cast_slice_mut(&mut space[padding..]), scratch)?;
        if padding > 0 {
            spread(space, columns, wide);
        }
        buffer.copy_to(&mut to)?;
        Ok(bytes)
    }

    /// An expert's scales of w13 and of w2, as the device has them.
    fn scales(&self, [gate, up, down]: &[Cow<'_, [f32]>; 3], slot: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        for (matrix, scales) in Matrix::ALL.into_iter().zip([gate, up, down]) {
            let (rows, columns, _) = self.sizes(matrix);
            let count = if rows == 0 { 0 } else { self.quantization.weight_scales(rows, columns) };
            exactly(&format!("experts[{slot}].{}_scale", matrix.name()), scales.len(), count)?;
        }
        let mut w13 = Vec::new();
        if self.gated {
            self.append_w13_scales(&mut w13, gate);
        }
        self.append_w13_scales(&mut w13, up);
        Ok((w13, down.to_vec()))
    }

    /// The biases of this rank's experts for `experts` of them, the last being shared ones without; each half
    /// padded as the matrices are.
    fn biases(&self, [first, second]: &[Cow<'_, [f32]>; 2], experts: usize) -> [Vec<f32>; 2] {
        let mut padded = Vec::new();
        for half in first.chunks(self.intermediate) {
            padded.extend_from_slice(half);
            padded.resize(padded.len() + self.padded - self.intermediate, 0.0);
        }
        padded.resize(experts * (self.w13 / self.hidden), 0.0);
        let mut second = second.to_vec();
        second.resize(experts * self.hidden, 0.0);
        [padded, second]
    }

    /// Appends the scales of one half of w13, as the device has them. Padding does not add blocks: I and its
    /// padded size have the same number of them.
    fn append_w13_scales(&self, to: &mut Vec<f32>, scales: &[f32]) {
        match self.quantization.weights() {
            WeightScales::Tensor => to.extend(std::iter::repeat_n(scales[0], self.padded)),
            WeightScales::Channel | WeightScales::Block128 => to.extend_from_slice(scales),
        }
    }
}

/// Makes rows of `columns` bytes, which lie at the end of `bytes`, rows of `wide`, with zeros behind each.
fn spread(bytes: &mut [u8], columns: usize, wide: usize) {
    let padding = bytes.len() / wide * (wide - columns);
    for row in 0..bytes.len() / wide {
        // The rows still to come begin behind this one's end: each takes part of the padding in front of
        // them.
        let from = padding + row * columns;
        bytes.copy_within(from..from + columns, row * wide);
        bytes[row * wide + columns..(row + 1) * wide].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn rows_are_spread_in_place() {
        for (rows, columns, wide) in [(1, 1, 4), (5, 3, 4), (3, 2, 9), (4, 6, 6)] {
            let row = |row: usize| (1..=columns).map(move |column| (10 * row + column) as u8);
            let mut bytes = vec![255; rows * (wide - columns)];
            bytes.extend((0..rows).flat_map(row));
            spread(&mut bytes, columns, wide);
            let zeros = |_| std::iter::repeat_n(0, wide - columns);
            let expected: Vec<u8> = (0..rows).flat_map(|r| row(r).chain(zeros(r))).collect();
            assert_eq!(bytes, expected);
        }
    }
}
