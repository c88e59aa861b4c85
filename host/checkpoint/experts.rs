//! One layer's tensors: the router, the experts one by one, their scales, in the layouts that the table of
//! models names.
//!
//! ```text
//! <prefix>.experts.7.gate_proj.weight        [I, H]       \
//! <prefix>.experts.7.up_proj.weight          [I, H]        >  rows, as the layer has them
//! <prefix>.experts.7.down_proj.weight        [H, I]       /
//!
//! <prefix>.experts.gate_up_proj   Rows       [E, 2I, H]      rows of expert 7: I of gate, I of up
//!                                 Columns    [E, H, 2I]      columns of expert 7: gate, up; transposed here
//! ```
//!
//! Rows are read from the file straight to where they are wanted. What has to be transposed is read into a
//! thread's scratch first, one expert's part of the tensor at a time.
//!
//! A shared expert, `<prefix>.shared_experts.gate_proj.weight` and so on, is read as an expert of a layout of
//! its own, or where it is not quantised as numbers.
//!
//! Every byte of a weight is looked at once, where it has been read to: an e4m3 NaN is refused.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

use super::files::Files;
use super::header::Dtype;
use super::models::{Fused, Model, Order, Shared};
use super::quantization::{ActivationScales, Scheme};
use super::scale_names::{input_scale_names, weight_scale_names};
use super::tensor::Tensor;
use super::transpose::transpose;
use crate::error::{Error, Result};
use crate::fp8::E4m3;
use crate::layer::{
    ExpertSource, ExpertWeights, Matrix, MoeConfig, MoeWeights, RouterWeights, Scratch, SharedExpert,
    SharedKind, SharedMatrices, SharedWeights,
};

/// What may stand beside a matrix, itself included.
const OF_WEIGHTS: [&str; 10] = [
    "weight",
    "weight_scale_inv",
    "weight_scale",
    "scale",
    "qscale_weight",
    "input_scale",
    "activation_scale",
    "qscale_act",
    "output_scale",
    "weight_shape",
];

/// Reads a layer.
pub(crate) struct LayerReader<'a> {
    pub(super) files: &'a Files,
    model: &'static Model,
    pub(super) prefix: String,
    pub(super) config: MoeConfig,
    pub(super) scheme: Scheme,
    pub(super) layout: Layout,
    local: Vec<usize>,
    /// The scheme of a shared expert that is quantised.
    shared_scheme: Option<Scheme>,
    /// Scales of fused tensors, once they have been read: of gate and up, and of down.
    pub(super) fused_scales: [OnceLock<Vec<f32>>; 2],
}

/// How a layer's experts lie in its tensors.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
    /// Gate, up and down of each expert.
    Each([&'static str; 3]),
    /// Gate and up, and down, of all experts.
    Fused([&'static str; 2], Order),
    /// Gate, up and down below the name, of the one expert there is: a shared one.
    One(&'static str, [&'static str; 3]),
}

/// Which part of a fused tensor a matrix is, and how many there are: gate and up lie side by side, down
/// alone, and so does up where there is no gate.
pub(super) fn part_of_fused(matrix: Matrix, is_gated: bool) -> (usize, usize) {
    match matrix {
        Matrix::Gate => (0, 2),
        Matrix::Up if is_gated => (1, 2),
        Matrix::Up | Matrix::Down => (0, 1),
    }
}

impl Layout {
    /// The layout of the layer `prefix`; a layer with both is refused.
    pub fn find(files: &Files, model: &'static Model, prefix: &str) -> Result<Layout> {
        let experts = format!("{prefix}.experts.");
        let is_numbered = |name: &str| name[experts.len()..].starts_with(|c: char| c.is_ascii_digit());
        let each = model.tensors.matrices.filter(|_| files.names_under(&experts).any(is_numbered));
        let fused = model.tensors.fused.and_then(|Fused { names, order }| {
            let found = names.iter().find(|[gate_up, _]| files.has(&format!("{prefix}.{gate_up}")))?;
            Some(Layout::Fused(*found, order))
        });
        match (each, fused) {
            (Some(names), None) => Ok(Layout::Each(names)),
            (None, Some(fused)) => Ok(fused),
            (Some(_), Some(Layout::Fused([gate_up, _], _))) => Err(Error::checkpoint(
                files.path(),
                format!("{prefix} has both {gate_up} and tensors of single experts: which are meant?"),
            )),
            _ => Err(Error::checkpoint(files.path(), format!("{prefix} has no experts"))),
        }
    }

    /// The modules that the experts are, as a config may name them.
    pub fn modules(self, prefix: &str) -> Vec<String> {
        match self {
            Layout::Each(names) => names.map(|name| format!("{prefix}.experts.0.{name}")).into(),
            Layout::One(own, names) => names.map(|name| format!("{prefix}.{own}.{name}")).into(),
            Layout::Fused(names, _) => {
                names.map(|name| format!("{prefix}.{}", name.strip_suffix(".weight").unwrap_or(name))).into()
            }
        }
    }
}

impl<'a> LayerReader<'a> {
    /// A reader of the layer `prefix`, whose experts are quantised by `scheme`, and a shared one by
    /// `shared_scheme` where it is.
    pub fn new(
        files: &'a Files,
        model: &'static Model,
        prefix: &str,
        config: &MoeConfig,
        scheme: Scheme,
        shared_scheme: Option<Scheme>,
    ) -> Result<LayerReader<'a>> {
        let layout = Layout::find(files, model, prefix)?;
        let (local, prefix, config) = (config.local_ids(), prefix.to_owned(), config.clone());
        let reader = LayerReader {
            files,
            model,
            prefix,
            config,
            scheme,
            layout,
            local,
            shared_scheme,
            fused_scales: Default::default(),
        };
        reader.check_names()?;
        Ok(reader)
    }

    pub(super) fn refuse(&self, what: String) -> Error {
        Error::checkpoint(self.files.path(), what)
    }

    /// Refuses tensors of the layer that nothing here reads: what they stand for would be left out of the
    /// result.
    fn check_names(&self) -> Result<()> {
        let start = format!("{}.", self.prefix);
        let tensors = &self.model.tensors;
        for name in self.files.names_under(&start) {
            let rest = &name[start.len()..];
            let is_known = tensors.router.contains(&rest)
                || tensors.bias.contains(&rest) && self.config.vocabulary().is_none()
                || tensors.token_experts.is_some_and(|table| table.name == rest)
                || tensors.router_bias == Some(rest)
                || self.is_known_of_experts(rest)?
                || self.is_known_of_shared(rest);
            if !is_known {
                return Err(
                    self.refuse(format!("{name} is not known as a tensor of {}", self.model.model_type))
                );
            }
        }
        Ok(())
    }

    fn is_known_of_shared(&self, rest: &str) -> bool {
        let Some(shared) = &self.model.tensors.shared else { return false };
        let of_matrix = || {
            let (matrix, what) = rest.strip_prefix(shared.name)?.strip_prefix('.')?.split_once('.')?;
            Some(self.shared_projections(shared).contains(&matrix) && OF_WEIGHTS.contains(&what))
        };
        shared.gate == Some(rest) || of_matrix().unwrap_or(false)
    }

    /// What the matrices of the shared expert are called.
    fn shared_projections(&self, shared: &Shared) -> [&'static str; 3] {
        shared.projections(|name| self.files.has(&format!("{}.{name}", self.prefix)))
    }

    fn is_known_of_experts(&self, rest: &str) -> Result<bool> {
        match self.layout {
            Layout::One(..) => Ok(false),
            Layout::Each(names) => {
                let Some(rest) = rest.strip_prefix("experts.") else { return Ok(false) };
                let Some((digits, matrix)) = rest.split_once('.') else { return Ok(false) };
                // `01` and `+1` are no names that anything would read.
                let number = digits.parse::<usize>().ok().filter(|number| number.to_string() == digits);
                let Some(number) = number else { return Ok(false) };
                let Some((matrix, what)) = matrix.split_once('.') else { return Ok(false) };
                if number >= self.config.experts {
                    let (prefix, experts) = (&self.prefix, self.config.experts);
                    let what =
                        format!("{prefix} has an expert {number}, but the config says there are {experts}");
                    return Err(self.refuse(what));
                }
                let is_bias = what == "bias" && self.model.tensors.biases;
                Ok(names.contains(&matrix) && (OF_WEIGHTS.contains(&what) || is_bias))
            }
            Layout::Fused(names, _) => Ok(names.iter().any(|name| {
                rest == *name
                    || self.model.tensors.biases && rest == format!("{name}_bias")
                    || weight_scale_names(name).iter().any(|other| rest == other)
                    || input_scale_names(name).iter().any(|other| rest == other)
            })),
        }
    }

    /// Everything but the experts' matrices.
    pub fn rest(&self) -> Result<MoeWeights<'static>> {
        Ok(MoeWeights {
            router: Some(self.router()?),
            correction_bias: self.correction_bias()?.map(Cow::Owned),
            token_experts: self.token_experts()?.map(Cow::Owned),
            experts: Vec::new(),
            input_scales: match self.scheme.activations {
                ActivationScales::TensorStatic => Some(self.input_scales()?),
                _ => None,
            },
            router_bias: match self.model.tensors.router_bias {
                Some(name) => Some(self.biases(name, &[self.config.experts])?.into()),
                None => None,
            },
            expert_biases: self.expert_biases()?.map(|biases| biases.map(Cow::Owned)),
            shared: self.config.shared.map(|shared| self.shared(shared)).transpose()?,
        })
    }

    /// The matrices that an expert has.
    pub(super) fn matrices(&self) -> &'static [Matrix] {
        if self.config.gated { &Matrix::ALL } else { &Matrix::ALL[1..] }
    }

    /// The numbers of a tensor of biases, which must be finite.
    fn biases(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.files.tensor(&format!("{}.{name}", self.prefix))?.expect_shape(shape)?;
        let values = tensor.to_f32()?;
        tensor.check_finite(values.iter().copied())?;
        Ok(values)
    }

    /// The biases of this rank's experts: of gate and up, and of down.
    fn expert_biases(&self) -> Result<Option<[Vec<f32>; 2]>> {
        if !self.model.tensors.biases {
            return Ok(None);
        }
        let MoeConfig { experts, hidden_size: h, intermediate_size: i, .. } = self.config;
        let (mut first, mut second) = (Vec::new(), Vec::new());
        match self.layout {
            Layout::Fused([gate_up, down], order) => {
                let columns = self.config.halves() * i;
                let all = self.biases(&format!("{gate_up}_bias"), &[experts, columns])?;
                let of_down = self.biases(&format!("{down}_bias"), &[experts, h])?;
                for &expert in &self.local {
                    let own = &all[expert * columns..(expert + 1) * columns];
                    match order {
                        Order::Interleaved => {
                            first.extend(own.iter().step_by(2));
                            first.extend(own.iter().skip(1).step_by(2));
                        }
                        Order::Rows | Order::Columns => first.extend(own),
                    }
                    second.extend(&of_down[expert * h..(expert + 1) * h]);
                }
            }
            Layout::Each(_) | Layout::One(..) => {
                for &expert in &self.local {
                    for &matrix in self.matrices() {
                        let name = self.tensor_name(matrix, expert);
                        let name = format!("{}.bias", name.strip_suffix(".weight").unwrap_or(&name));
                        let values = self.biases(&name, &self.shape(matrix)[..1])?;
                        if matrix == Matrix::Down { &mut second } else { &mut first }.extend(values);
                    }
                }
            }
        }
        Ok(Some([first, second]))
    }

    /// The weights of the shared expert.
    fn shared(&self, shared: SharedExpert) -> Result<SharedWeights<'static>> {
        let names = self.shared_names()?;
        let gate = match names.gate.filter(|_| shared.gate) {
            Some(gate) => Some(self.numbers(gate, &[1, self.config.hidden_size])?),
            None => None,
        };
        let matrices = match self.shared_reader() {
            Some(reader) => SharedMatrices::Quantised {
                expert: reader.expert(0)?,
                input_scales: match self.config.shared_layer() {
                    Some(layer) if layer.quantization.is_static() => Some(reader.input_scales()?),
                    _ => None,
                },
            },
            None => {
                let MoeConfig { hidden_size: h, .. } = self.config;
                let size = shared.intermediate_size;
                let projections = self.shared_projections(names);
                let [gate, up, down] = projections.map(|name| format!("{}.{name}.weight", names.name));
                SharedMatrices::Bf16 {
                    gate: match self.config.gated {
                        true => self.numbers(&gate, &[size, h])?,
                        false => RouterWeights::Bf16(Cow::Borrowed(&[])),
                    },
                    up: self.numbers(&up, &[size, h])?,
                    down: self.numbers(&down, &[h, size])?,
                }
            }
        };
        Ok(SharedWeights { matrices, gate })
    }

    fn shared_names(&self) -> Result<&'static Shared> {
        let shared = self.model.tensors.shared.as_ref();
        shared.ok_or_else(|| self.refuse(format!("{} has no shared experts", self.model.model_type)))
    }

    /// A reader of the shared expert as one of a layer, where it is quantised.
    pub(super) fn shared_reader(&self) -> Option<LayerReader<'a>> {
        let (shared, scheme) = (self.config.shared?, self.shared_scheme.clone()?);
        let names = self.model.tensors.shared.as_ref()?;
        let SharedKind::Quantised(quantization) = shared.weights else { return None };
        let config = MoeConfig {
            intermediate_size: shared.intermediate_size,
            quantization,
            experts: 1,
            shared: None,
            local_experts: None,
            ..self.config.clone()
        };
        Some(LayerReader {
            files: self.files,
            model: self.model,
            prefix: self.prefix.clone(),
            config,
            scheme,
            layout: Layout::One(names.name, self.shared_projections(names)),
            local: vec![0],
            shared_scheme: None,
            fused_scales: Default::default(),
        })
    }

    /// The tensor `name` of the layer, whose elements are finite numbers that are not quantised.
    fn numbers(&self, name: &str, shape: &[usize]) -> Result<RouterWeights<'static>> {
        let tensor = self.files.tensor(&format!("{}.{name}", self.prefix))?.expect_shape(shape)?;
        finite_numbers(tensor)
    }

    fn router(&self) -> Result<RouterWeights<'static>> {
        let shape = [self.config.experts, self.config.hidden_size];
        let tensor = self.one_of(self.model.tensors.router)?.ok_or_else(|| {
            self.refuse(format!("there is no tensor {}.{}", self.prefix, self.model.tensors.router[0]))
        })?;
        finite_numbers(tensor.expect_shape(&shape)?)
    }

    /// The experts of each token id, where they are looked up.
    fn token_experts(&self) -> Result<Option<Vec<i32>>> {
        let (Some(vocabulary), Some(table)) = (self.config.vocabulary(), self.model.tensors.token_experts)
        else {
            return Ok(None);
        };
        let MoeConfig { experts, top_k, .. } = self.config;
        let tensor = self.files.tensor(&format!("{}.{}", self.prefix, table.name))?;
        let ids = tensor.expect_shape(&[vocabulary, top_k])?.to_i64()?;
        let expert = |(at, id): (usize, i64)| match usize::try_from(id) {
            Ok(expert) if expert < experts => Ok(expert as i32),
            _ => Err(tensor.error(format!(
                "element {:?} is {id}; it must be one of the {experts} experts",
                [at / top_k, at % top_k]
            ))),
        };
        ids.into_iter().enumerate().map(expert).collect::<Result<_>>().map(Some)
    }

    /// The bias of the scores; zeros where the model has one that the checkpoint lacks.
    fn correction_bias(&self) -> Result<Option<Vec<f32>>> {
        let experts = self.config.experts;
        if self.config.vocabulary().is_some() {
            return Ok(None);
        }
        let Some(tensor) = self.one_of(self.model.tensors.bias)? else {
            return Ok(self.model.has_biased_scores().then(|| vec![0.0; experts]));
        };
        let tensor = if tensor.shape == [1, experts] { tensor } else { tensor.expect_shape(&[experts])? };
        let values = tensor.to_f32()?;
        tensor.check_finite(values.iter().copied())?;
        Ok(Some(values))
    }

    /// The only tensor of the layer under these names, if there is one.
    pub(super) fn one_of(&self, names: &[impl std::fmt::Display]) -> Result<Option<Tensor<'a>>> {
        let full = names.iter().map(|name| format!("{}.{name}", self.prefix));
        let mut found = full.filter(|name| self.files.has(name));
        let Some(first) = found.next() else { return Ok(None) };
        if let Some(second) = found.next() {
            return Err(self.refuse(format!("there are both {first} and {second}: which is meant?")));
        }
        self.files.tensor(&first).map(Some)
    }

    /// The tensor that holds a matrix of an expert, below the prefix.
    pub(super) fn tensor_name(&self, matrix: Matrix, expert: usize) -> String {
        match self.layout {
            Layout::Each(names) => format!("experts.{expert}.{}.weight", names[matrix as usize]),
            Layout::Fused(names, _) => names[usize::from(matrix == Matrix::Down)].to_owned(),
            Layout::One(own, names) => format!("{own}.{}.weight", names[matrix as usize]),
        }
    }

    /// Rows and columns of a matrix of an expert.
    pub(super) fn shape(&self, matrix: Matrix) -> [usize; 2] {
        let MoeConfig { hidden_size, intermediate_size, .. } = self.config;
        match matrix {
            Matrix::Gate | Matrix::Up => [intermediate_size, hidden_size],
            Matrix::Down => [hidden_size, intermediate_size],
        }
    }

    /// Expert `expert` of the model.
    pub fn expert(&self, expert: usize) -> Result<ExpertWeights<'static>> {
        // That there is as much in the file is known before memory is asked for.
        self.matrices().iter().try_for_each(|&matrix| self.tensor_of(matrix, expert).map(drop))?;
        let mut memory = vec![0; self.scratch_bytes()];
        let mut scratch = Scratch::new(&mut memory);
        let mut of = |matrix| -> Result<(Vec<E4m3>, Vec<f32>)> {
            let [rows, columns] = self.shape(matrix);
            let mut elements = vec![E4m3::default(); rows * columns];
            self.read_rows(matrix, expert, 0..rows, &mut elements, &mut scratch)?;
            Ok((elements, self.weight_scale(matrix, expert)?))
        };
        let mut weights = ExpertWeights::new();
        if self.config.gated {
            let (gate, scale) = of(Matrix::Gate)?;
            weights = weights.gate(gate, scale);
        }
        let ((up, up_scale), (down, down_scale)) = (of(Matrix::Up)?, of(Matrix::Down)?);
        Ok(weights.up(up, up_scale).down(down, down_scale))
    }

    /// Checks types and shapes of all tensors, and the values of all but the matrices.
    pub fn check(&self) -> Result<()> {
        self.rest()?;
        for &expert in &self.local {
            for &matrix in self.matrices() {
                self.tensor_of(matrix, expert)?;
                self.weight_scale(matrix, expert)?;
            }
        }
        Ok(())
    }

    /// The tensor that holds a matrix of an expert, of the type and shape that it must have.
    fn tensor_of(&self, matrix: Matrix, expert: usize) -> Result<Tensor<'a>> {
        let tensor = self.files.tensor(&format!("{}.{}", self.prefix, self.tensor_name(matrix, expert)))?;
        if [Dtype::BF16, Dtype::F16, Dtype::F32].contains(&tensor.dtype) {
            return Err(tensor.error(format!(
                "has type {:?}; F8_E4M3 is expected: experts that are not quantised are not supported",
                tensor.dtype
            )));
        }
        let columns = self.shape(matrix)[1];
        let is_packed = [Dtype::I8, Dtype::U8].contains(&tensor.dtype)
            && tensor.shape.last().is_some_and(|&last| 2 * last == columns);
        if is_packed || tensor.dtype == Dtype::F4 {
            return Err(tensor.error(format!(
                "has type {:?} and shape {:?}; F8_E4M3 is expected: experts with two numbers to a byte, \
                 such as FP4, are not supported",
                tensor.dtype, tensor.shape
            )));
        }
        match self.layout {
            Layout::Each(_) | Layout::One(..) => tensor.expect(Dtype::F8_E4M3, &self.shape(matrix)),
            Layout::Fused(_, order) => {
                let [outer, inner] = self.fused_shape(matrix, order);
                tensor.expect(Dtype::F8_E4M3, &[self.config.experts, outer, inner])
            }
        }
    }

    /// Outer and inner size of an expert's part of the fused tensor that holds a matrix.
    fn fused_shape(&self, matrix: Matrix, order: Order) -> [usize; 2] {
        let [rows, columns] = self.shape(matrix);
        let all = part_of_fused(matrix, self.config.gated).1 * rows;
        if order.is_transposed() { [columns, all] } else { [all, columns] }
    }

    /// Reads rows of a matrix of an expert to `to`, which is as long. They are numbers.
    fn read_rows(
        &self,
        matrix: Matrix,
        expert: usize,
        rows: Range<usize>,
        to: &mut [E4m3],
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let (tensor, [all, columns]) = (self.tensor_of(matrix, expert)?, self.shape(matrix));
        let read = |start: usize, to: &mut [E4m3]| {
            let bytes = bytemuck::cast_slice_mut(to);
            tensor.read_at(start, bytes)?;
            tensor.check_e4m3(bytes, start)
        };
        let Layout::Fused(_, order) = self.layout else { return read(rows.start * columns, to) };
        let (part, parts) = part_of_fused(matrix, self.config.gated);
        let [outer, inner] = self.fused_shape(matrix, order);
        let start = expert * outer * inner;
        if !order.is_transposed() {
            return read(start + (part * all + rows.start) * columns, to);
        }
        let wanted = Some((expert, matrix == Matrix::Down));
        let bytes = &mut scratch.bytes[..outer * inner];
        if scratch.holds != wanted {
            scratch.holds = None;
            read(start, bytemuck::cast_slice_mut(bytes))?;
            scratch.holds = wanted;
        }
        let (first, step) = match order {
            Order::Interleaved => (part + rows.start * parts, parts),
            Order::Rows | Order::Columns => (part * all + rows.start, 1),
        };
        transpose(&bytes[first..], [inner, step], [columns, rows.len()], to);
        Ok(())
    }
}

impl ExpertSource for LayerReader<'_> {
    fn scales(&self, index: usize) -> Result<[Cow<'_, [f32]>; 3]> {
        let scale = |matrix| {
            // Whatever is wrong with a tensor's type or shape is said before any is read.
            self.tensor_of(matrix, self.local[index])?;
            self.weight_scale(matrix, self.local[index]).map(Cow::Owned)
        };
        let gate = if self.config.gated { scale(Matrix::Gate)? } else { Cow::default() };
        Ok([gate, scale(Matrix::Up)?, scale(Matrix::Down)?])
    }

    fn read(
        &self,
        index: usize,
        matrix: Matrix,
        rows: Range<usize>,
        to: &mut [E4m3],
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        self.read_rows(matrix, self.local[index], rows, to, scratch)
    }

    fn scratch_bytes(&self) -> usize {
        let bytes = |order| {
            let parts = [Matrix::Up, Matrix::Down].map(|matrix| self.fused_shape(matrix, order));
            parts.map(|[outer, inner]| outer * inner).into_iter().max().unwrap_or(0)
        };
        match self.layout {
            Layout::Fused(_, order) if order.is_transposed() => bytes(order),
            _ => 0,
        }
    }
}

/// A tensor of finite numbers, as it is where it is bf16.
fn finite_numbers(tensor: Tensor<'_>) -> Result<RouterWeights<'static>> {
    if tensor.dtype == Dtype::BF16 {
        let values = tensor.to_bf16()?;
        tensor.check_finite(values.iter().map(|value| value.to_f32()))?;
        return Ok(RouterWeights::Bf16(values.into()));
    }
    let values = tensor.to_f32()?;
    tensor.check_finite(values.iter().copied())?;
    Ok(RouterWeights::F32(values.into()))
}
