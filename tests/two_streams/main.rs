//! One program, several streams: whatever safe calls do, work that uses the same memory is ordered, and
//! memory outlives its use. `handles` loses them, `threads` has several.

#[path = "../common/mod.rs"]
mod common;
mod handles;
mod threads;
mod watch;

use std::sync::{Mutex, MutexGuard, PoisonError};

use cust::{Context, Driver};
use fp8_moe::{Buffer, Device, DevicePtr, Event, Graph, SliceMut, Stream};
use fp8_moe_cli::{Layers, RoutingKind, Scheme, Shape};
use half::bf16;
use proptest::prelude::*;

/// A device of the kind that tests run on, whose driver is watched, in a context of its own. Tests take turns
/// with it.
fn watched() -> (MutexGuard<'static, ()>, Device) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    *watch::seen() = watch::Seen::default();
    let device = common::device();
    let driver = if device.is_emulated() { Driver::sim() } else { Driver::cuda() }.unwrap();
    let ordinal = device.to_string().rsplit_once(':').map_or(0, |(_, ordinal)| ordinal.parse().unwrap());
    let context = Context::create(cust::Device::get(watch::driver(driver), ordinal).unwrap()).unwrap();
    (turn, Device::in_context(context, None).unwrap())
}

#[track_caller]
fn assert_sound() {
    let seen = watch::seen();
    assert!(seen.faults.is_empty(), "{:#?}", seen.faults);
}

fn waits() -> usize {
    watch::seen().waits
}

#[test]
fn a_race_is_seen_where_there_is_one() {
    let (_turn, device) = watched();
    let (a, b) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let mut buffer = device.zeros::<u8>(8).unwrap();
    buffer.fill_bytes(1, &a).unwrap();
    // SAFETY: not kept, so that the watch has something to see; the emulated device runs one piece of work at
    // a time, and on a GPU either byte is fine.
    let mut again = unsafe { SliceMut::from_raw(&device, DevicePtr::<u8>::from_raw(buffer.ptr().raw()), 8) };
    again.fill_bytes(2, &b).unwrap();
    let faults = std::mem::take(&mut watch::seen().faults);
    assert!(faults.len() == 1 && faults[0].contains("races with"), "{faults:?}");
    b.synchronize().unwrap();
}

#[test]
fn writes_and_reads_on_other_streams_wait() {
    let (_turn, device) = watched();
    let (a, b) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let mut x = device.uninit::<u8>(8).unwrap();
    x.fill_bytes(1, &a).unwrap();
    x.fill_bytes(2, &a).unwrap();
    assert_eq!(waits(), 0, "one stream needs no events");
    x.fill_bytes(3, &b).unwrap();
    assert_eq!(waits(), 1);
    assert_eq!(x.to_vec(&a).unwrap(), [3; 8]);
    assert_eq!(waits(), 2);
    assert_eq!(x.to_vec(&a).unwrap(), [3; 8]);
    assert_eq!(waits(), 2, "what has been waited for is not waited for again");
    x.fill_bytes(4, &b).unwrap();
    assert_eq!(waits(), 2, "the host has waited for the copy");
    assert_sound();
}

#[test]
fn readers_do_not_wait_for_readers() {
    let (_turn, device) = watched();
    let streams = [(); 3].map(|()| Stream::new(&device).unwrap());
    let x = device.upload(&[7u8; 8]).unwrap();
    let mut copies = [(); 3].map(|()| device.uninit::<u8>(8).unwrap());
    for _ in 0..3 {
        for (copy, stream) in copies.iter_mut().zip(&streams) {
            copy.as_mut_slice().copy_from_device(x.as_slice(), stream).unwrap();
        }
    }
    assert_eq!(waits(), 0, "an upload is complete on return");
    assert!(copies.iter().zip(&streams).all(|(copy, stream)| copy.to_vec(stream).unwrap() == [7; 8]));
    assert_sound();
}

#[test]
fn drops_wait_for_whoever_uses_the_memory() {
    let (_turn, device) = watched();
    let (a, b) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let (mut x, mut y) = (device.uninit::<u8>(8).unwrap(), device.uninit::<u8>(8).unwrap());
    x.fill_bytes(1, &a).unwrap();
    y.as_mut_slice().copy_from_device(x.as_slice(), &b).unwrap();
    // The streams go first: their work goes on.
    drop((a, b));
    drop(x);
    assert_eq!(y.to_vec(&device.default_stream()).unwrap(), [1; 8]);
    y.fill_bytes(2, &Stream::new(&device).unwrap()).unwrap();
    drop(y);
    assert_sound();
}

#[test]
fn graphs_keep_and_order_what_they_use() {
    let (_turn, device) = watched();
    let (a, b) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let mut x = device.upload(&[1u8; 8]).unwrap();
    let mut y = device.upload(&[0u8; 8]).unwrap();
    let (copy, fill) = {
        let mut scratch = device.uninit::<u8>(8).unwrap();
        let copy = a.capture(|stream| {
            scratch.as_mut_slice().copy_from_device(x.as_slice(), stream)?;
            y.as_mut_slice().copy_from_device(scratch.as_slice(), stream)
        });
        (copy.unwrap(), b.capture(|stream| x.fill_bytes(5, stream)).unwrap())
    };
    assert_eq!(y.to_vec(&a).unwrap(), [0; 8], "nothing has run, and the scratch memory is the graph's");
    for stream in [&a, &b, &a] {
        x.fill_bytes(3, &b).unwrap();
        copy.launch(stream).unwrap();
        assert_eq!(y.to_vec(&b).unwrap(), [3; 8]);
        fill.launch(&a).unwrap();
        copy.launch(&b).unwrap();
        y.fill_bytes(9, &a).unwrap();
        copy.launch(&b).unwrap();
        assert_eq!(y.to_vec(stream).unwrap(), [5; 8]);
    }
    // The buffer is gone, and its memory is the graphs'.
    fill.launch(&a).unwrap();
    drop(x);
    copy.launch(&b).unwrap();
    assert_eq!(y.to_vec(&a).unwrap(), [5; 8]);
    copy.launch(&b).unwrap();
    drop((copy, fill));
    drop(y);
    assert_sound();
}

/// A handle of one driver is an address that another must not follow.
#[test]
fn events_of_another_driver_are_refused() {
    let (_turn, device) = watched();
    let other = common::device();
    let (stream, others) = (Stream::new(&device).unwrap(), Stream::new(&other).unwrap());
    let (event, its) = (Event::new(&device).unwrap(), Event::new(&other).unwrap());
    event.record(&stream).unwrap();
    its.record(&others).unwrap();
    for refused in [
        event.record(&others),
        stream.wait_event(&its),
        others.wait_event(&event),
        event.elapsed_ms(&its).map(drop),
        its.elapsed_ms(&event).map(drop),
    ] {
        refused.unwrap_err();
    }
    stream.wait_event(&event).unwrap();
    stream.synchronize().unwrap();
    assert_sound();
}

#[test]
fn captures_refuse_what_a_graph_cannot_hold() {
    let (_turn, device) = watched();
    let stream = Stream::new(&device).unwrap();
    let (mut x, event) = (device.upload(&[1u8; 8]).unwrap(), Event::new(&device).unwrap());
    let other = stream.capture(|capturing| x.fill_bytes(7, capturing)).unwrap();
    let graph = stream.capture(|capturing| {
        for refused in [
            x.to_vec(capturing).map(drop),
            x.copy_from(&[2; 8], capturing),
            capturing.synchronize(),
            capturing.wait_event(&event),
            event.record(capturing),
            other.launch(capturing),
        ] {
            let text = refused.unwrap_err().to_string();
            assert!(text.ends_with("must not be one that is being captured"), "{text}");
        }
        // Other streams run, also the one that `capture` was called on.
        x.fill_bytes(3, &stream)?;
        x.fill_bytes(4, capturing)
    });
    assert_eq!(x.to_vec(&stream).unwrap(), [3; 8]);
    graph.unwrap().launch(&stream).unwrap();
    assert_eq!(x.to_vec(&stream).unwrap(), [4; 8]);
    assert_sound();
}

#[test]
fn streams_of_others_are_ordered_too() {
    let (_turn, device) = watched();
    let own = Stream::new(&device).unwrap();
    let raw = Stream::new(&device).unwrap();
    let mut x = device.uninit::<u8>(8).unwrap();
    // SAFETY: the stream lives longer than the handles.
    let handle = || unsafe { Stream::from_raw(&device, raw.raw()) };
    x.fill_bytes(1, &handle()).unwrap();
    assert_eq!(x.to_vec(&own).unwrap(), [1; 8]);
    x.fill_bytes(2, &own).unwrap();
    x.fill_bytes(3, &handle()).unwrap();
    {
        let (one, two) = (handle(), handle());
        x.fill_bytes(4, &one).unwrap();
        x.fill_bytes(5, &own).unwrap();
        x.fill_bytes(6, &two).unwrap();
    }
    drop(raw);
    assert_eq!(x.to_vec(&own).unwrap(), [6; 8]);
    drop(x);
    assert_sound();
}

/// What a program does next. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Act {
    Fill { buffer: usize, half: usize, byte: u8, stream: usize },
    Copy { from: usize, to: usize, stream: usize },
    Upload { buffer: usize, byte: u8, stream: usize },
    Read { buffer: usize, stream: usize },
    Capture { from: usize, to: usize, byte: u8 },
    Launch { graph: usize, stream: usize },
    NewBuffer { buffer: usize },
    NewStream { stream: usize },
    DropGraph { graph: usize },
    Wait { stream: usize },
}

fn act() -> impl Strategy<Value = Act> {
    let (n, byte) = (0_usize..3, any::<u8>());
    prop_oneof![
        4 => (n.clone(), 0_usize..3, byte, n.clone())
            .prop_map(|(buffer, half, byte, stream)| Act::Fill { buffer, half, byte, stream }),
        4 => (n.clone(), n.clone(), n.clone()).prop_map(|(from, to, stream)| Act::Copy { from, to, stream }),
        1 => (n.clone(), byte, n.clone())
            .prop_map(|(buffer, byte, stream)| Act::Upload { buffer, byte, stream }),
        2 => (n.clone(), n.clone()).prop_map(|(buffer, stream)| Act::Read { buffer, stream }),
        2 => (n.clone(), n.clone(), byte).prop_map(|(from, to, byte)| Act::Capture { from, to, byte }),
        4 => (n.clone(), n.clone()).prop_map(|(graph, stream)| Act::Launch { graph, stream }),
        1 => n.clone().prop_map(|buffer| Act::NewBuffer { buffer }),
        1 => n.clone().prop_map(|stream| Act::NewStream { stream }),
        1 => n.clone().prop_map(|graph| Act::DropGraph { graph }),
        1 => n.prop_map(|stream| Act::Wait { stream }),
    ]
}

const BYTES: usize = 32;

/// A program's state, and what its buffers must hold: `contents` by the number of a buffer, numbers are never
/// used again.
struct Program {
    device: Device,
    streams: Vec<Stream>,
    buffers: Vec<(Buffer<u8>, usize)>,
    /// A graph copies from a buffer to another if they are two, and then fills the second half of that.
    graphs: Vec<(Graph, usize, usize, u8)>,
    contents: Vec<[u8; BYTES]>,
}

impl Program {
    fn new(device: Device) -> Program {
        let streams = (0..3).map(|_| Stream::new(&device).unwrap()).collect();
        let buffers = (0..3).map(|number| (device.zeros(BYTES).unwrap(), number)).collect();
        Program { device, streams, buffers, graphs: Vec::new(), contents: vec![[0; BYTES]; 3] }
    }

    fn run(&mut self, act: &Act) {
        match *act {
            Act::Fill { buffer, half, byte, stream } => {
                let range = [0..BYTES, 0..BYTES / 2, BYTES / 2..BYTES][half].clone();
                let (buffer, number) = &mut self.buffers[buffer];
                buffer.slice_mut(range.clone()).fill_bytes(byte, &self.streams[stream]).unwrap();
                self.contents[*number][range].fill(byte);
            }
            Act::Copy { from, to, stream } if from != to => {
                let [(from, read), (to, written)] = self.buffers.get_disjoint_mut([from, to]).unwrap();
                to.as_mut_slice().copy_from_device(from.as_slice(), &self.streams[stream]).unwrap();
                self.contents[*written] = self.contents[*read];
            }
            Act::Copy { .. } => {}
            Act::Upload { buffer, byte, stream } => {
                let (buffer, number) = &mut self.buffers[buffer];
                buffer.copy_from(&[byte; BYTES], &self.streams[stream]).unwrap();
                self.contents[*number] = [byte; BYTES];
            }
            Act::Read { buffer, stream } => {
                let (buffer, number) = &self.buffers[buffer];
                assert_eq!(buffer.to_vec(&self.streams[stream]).unwrap(), self.contents[*number]);
            }
            Act::Capture { from, to, byte } => {
                let (read, written) = (self.buffers[from].1, self.buffers[to].1);
                let graph = self.streams[0].capture(|stream| {
                    if from != to {
                        let [from, to] = self.buffers.get_disjoint_mut([from, to]).unwrap();
                        to.0.as_mut_slice().copy_from_device(from.0.as_slice(), stream)?;
                    }
                    self.buffers[to].0.slice_mut(BYTES / 2..).fill_bytes(byte, stream)
                });
                self.graphs.push((graph.unwrap(), read, written, byte));
            }
            Act::Launch { graph, stream } => {
                let Some((graph, read, written, byte)) = self.graphs.get(graph) else { return };
                graph.launch(&self.streams[stream]).unwrap();
                self.contents[*written] = self.contents[*read];
                self.contents[*written][BYTES / 2..].fill(*byte);
            }
            Act::NewBuffer { buffer } => {
                self.buffers[buffer] = (self.device.zeros(BYTES).unwrap(), self.contents.len());
                self.contents.push([0; BYTES]);
            }
            Act::NewStream { stream } => self.streams[stream] = Stream::new(&self.device).unwrap(),
            Act::DropGraph { graph } => {
                if graph < self.graphs.len() {
                    self.graphs.remove(graph);
                }
            }
            Act::Wait { stream } => self.streams[stream].synchronize().unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(common::cases(64))]

    #[test]
    fn no_program_races(acts in prop::collection::vec(act(), 1..60)) {
        let (_turn, device) = watched();
        let mut program = Program::new(device);
        for act in &acts {
            program.run(act);
        }
        for buffer in 0..3 {
            program.run(&Act::Read { buffer, stream: 0 });
        }
        drop(program);
        assert_sound();
    }
}

const SHAPE: Shape = Shape { experts: 4, top_k: 2, hidden: 128, intermediate: 128 };

/// Two streams take turns with one layer.
#[test]
fn one_layer_serves_two_streams() {
    let (_turn, device) = watched();
    let config = SHAPE.config(Scheme::Block, 1, 1).unwrap();
    let layers = Layers::random(&device, &config, 1, &[true; 4], 0).unwrap();
    let layer = &layers.as_slice()[0];
    let routed = RoutingKind::Uniform.draw(3, 4, 2, 0).unwrap();
    let hidden = device.upload(&vec![bf16::ONE; 3 * SHAPE.hidden]).unwrap();
    let (ids, weights) =
        (device.upload(&routed.topk_ids).unwrap(), device.upload(&routed.topk_weights).unwrap());
    let mut lanes = [(); 2].map(|()| {
        let out = device.zeros::<f32>(3 * SHAPE.hidden).unwrap();
        (Stream::new(&device).unwrap(), layer.workspace(3).unwrap(), out)
    });
    let mut round = || {
        for (stream, workspace, out) in &mut lanes {
            layer.forward_routed(stream, &hidden, &ids, &weights, workspace, out).unwrap();
        }
    };
    round();
    let before = waits();
    round();
    assert_eq!(waits(), before, "all that they share is read");
    let [first, second] = lanes.each_ref().map(|(stream, _, out)| out.to_vec(stream).unwrap());
    assert!(first == second && first.iter().any(|&x| x != 0.0));

    // One workspace for both: each waits for the other.
    let [(a, workspace, out), (b, ..)] = &mut lanes;
    for stream in [&*a, &*b, &*a] {
        let before = waits();
        out.fill_bytes(0, stream).unwrap();
        layer.forward_routed(stream, &hidden, &ids, &weights, workspace, &mut *out).unwrap();
        assert!(waits() > before || std::ptr::eq(stream, a));
        assert_eq!(out.to_vec(&device.default_stream()).unwrap(), first);
    }
    assert_sound();
}

/// What the operations of a forward use is noted when it ends, all of it: whoever overwrites any of it on
/// another stream waits, as does a graph.
#[test]
fn a_forward_is_waited_for() {
    let (_turn, device) = watched();
    let config = SHAPE.config(Scheme::Block, 1, 1).unwrap();
    let layers = Layers::random(&device, &config, 1, &[true; 4], 0).unwrap();
    let layer = &layers.as_slice()[0];
    let routed = RoutingKind::Uniform.draw(3, 4, 2, 0).unwrap();
    let mut hidden = device.upload(&vec![bf16::ONE; 3 * SHAPE.hidden]).unwrap();
    let mut ids = device.upload(&routed.topk_ids).unwrap();
    let mut weights = device.upload(&routed.topk_weights).unwrap();
    let mut workspace = layer.workspace(3).unwrap();
    let mut out = device.zeros::<f32>(3 * SHAPE.hidden).unwrap();
    let a = Stream::new(&device).unwrap();
    for which in 0..5 {
        layer.forward_routed(&a, &hidden, &ids, &weights, &mut workspace, &mut out).unwrap();
        let (before, b) = (waits(), Stream::new(&device).unwrap());
        match which {
            0 => hidden.fill_bytes(0, &b).unwrap(),
            1 => ids.fill_bytes(0, &b).unwrap(),
            2 => weights.fill_bytes(0, &b).unwrap(),
            3 => workspace.memory().fill_bytes(0, &b).unwrap(),
            _ => out.fill_bytes(0, &b).unwrap(),
        }
        assert_eq!(waits(), before + 1, "{which}");
    }

    // A graph holds the workspace: each launch of a forward in it is noted.
    let graph =
        a.capture(|stream| layer.forward_routed(stream, &hidden, &ids, &weights, &mut workspace, &mut out));
    let (graph, b) = (graph.unwrap(), Stream::new(&device).unwrap());
    layer.forward_routed(&a, &hidden, &ids, &weights, &mut workspace, &mut out).unwrap();
    // For the forward, and for each stream above that has used the memory.
    let before = waits();
    graph.launch(&b).unwrap();
    assert_eq!(waits(), before + 6);
    layer.forward_routed(&a, &hidden, &ids, &weights, &mut workspace, &mut out).unwrap();
    assert_eq!(waits(), before + 7);
    drop((layers, workspace));
    assert_sound();
}

/// Threads that share a graph's memory do not get in each other's way.
#[test]
fn graphs_and_operations_on_several_threads() {
    let (_turn, device) = watched();
    let mut x = device.upload(&[0u8; 64]).unwrap();
    let (left, right) = x.as_mut_slice().split_at(32);
    let capture = |mut part: SliceMut<'_, u8>, byte| {
        let stream = Stream::new(&device).unwrap();
        stream.capture(|stream| part.fill_bytes(byte, stream)).unwrap()
    };
    let graphs = [capture(left, 1), capture(right, 2)];
    let (left, right) = x.as_mut_slice().split_at(32);
    std::thread::scope(|scope| {
        for (mut part, graph) in [left, right].into_iter().zip(&graphs) {
            let device = &device;
            scope.spawn(move || {
                let stream = Stream::new(device).unwrap();
                for _ in 0..50 {
                    part.fill_bytes(3, &stream).unwrap();
                    graph.launch(&stream).unwrap();
                }
                stream.synchronize().unwrap();
            });
        }
    });
    assert_eq!(x.to_vec(&device.default_stream()).unwrap(), [[1u8; 32], [2; 32]].concat());
    assert_sound();
}
